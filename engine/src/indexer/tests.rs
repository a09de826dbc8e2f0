//! Files with every part that this engine knows: they come back as they were written, and damaged
//! ones are refused.

use palimpsest_kernels::reference::ReferenceBackend;

use super::*;
use crate::memory::Memories;
use crate::memory::associative::{AssociativeLayerWeights, AssociativeWeights};
use crate::policy::pairwise::{PairwiseLayer, PairwiseWeights};
use crate::policy::retention::{LayerScorer, RecentScorer, RetentionWeights};
use crate::policy::{self, Site};

const SHAPE: ModelShape = ModelShape {
    layers: 2,
    kv_heads: 2,
    hidden: 3,
};
const HEAD_DIM: usize = 8;

#[test]
fn a_digest_tells_weights_under_other_names_and_in_other_shapes() {
    let digest = |name: &str, shape: &[usize], last: f32| {
        let mut indexer = Indexer::new(SHAPE);
        let tensor = Tensor {
            shape: shape.to_vec(),
            values: vec![1.0, last],
            stored: Precision::Single,
        };
        indexer.tensors.insert(name.to_owned(), tensor);
        let mut hash = Xxh3::new();
        indexer.digest(&mut hash);
        hash.digest()
    };
    let known = digest("a", &[1, 2], 2.0);
    assert_eq!(digest("a", &[1, 2], 2.0), known);
    assert_ne!(digest("b", &[1, 2], 2.0), known, "another name");
    assert_ne!(digest("a", &[2, 1], 2.0), known, "another shape");
    assert_ne!(digest("a", &[1, 2], 2.5), known, "another weight");
}

fn retention(x: f32, y: f32) -> RetentionWeights {
    let scorer = |x: f32| LayerScorer {
        weight: vec![x; 6],
        bias: vec![x, 1.0],
        rate: vec![-1.0, 0.0],
        recent: None,
    };
    RetentionWeights {
        layers: vec![scorer(x), scorer(y)],
    }
}

/// Second scorers, beside which the first ones do not fade.
fn two(mut scorers: RetentionWeights) -> RetentionWeights {
    for layer in &mut scorers.layers {
        layer.rate = vec![0.0; 2];
        layer.recent = Some(recent());
    }
    scorers
}

fn recent() -> RecentScorer {
    RecentScorer {
        weight: vec![3.0; 6],
        bias: vec![0.5; 2],
        rate: vec![-2.0; 2],
    }
}

fn pairwise() -> PairwiseWeights {
    let rows = 2 * PairwiseWeights::rows(2, 4);
    let layer = |x: f32| PairwiseLayer {
        weight: vec![x; rows * 3],
        bias: vec![x; rows],
        norm: vec![1.0; 2 * 4 * 4],
        offset: vec![x, 0.0],
    };
    PairwiseWeights {
        heads: 2,
        dim: 4,
        layers: vec![layer(0.125), layer(0.25)],
    }
}

fn associative() -> AssociativeWeights {
    let layer = |x: f32| AssociativeLayerWeights {
        features: vec![x; 3 * HEAD_DIM],
        gates: vec![x, 0.5],
    };
    AssociativeWeights {
        features: 3,
        head_dim: HEAD_DIM,
        layers: vec![layer(1.0), layer(2.0)],
    }
}

/// Every part that there is.
fn whole() -> Indexer {
    let mut indexer = Indexer::new(SHAPE);
    indexer.metadata.insert("seed".into(), "7".into());
    indexer.set(&retention(0.5, 2.0));
    indexer.set(&pairwise());
    indexer.set(&associative());
    indexer
}

/// What a rank of a model with these heads says of a file.
fn open(bytes: &[u8], head_dim: usize) -> Result<()> {
    let indexer = Indexer::parse(bytes)?;
    let mut reader = indexer.reader();
    policy::install(&mut Site {
        backend: &ReferenceBackend,
        kv_heads: 0..indexer.shape.kv_heads,
        trained: Some(&mut reader),
    })?;
    Memories::load(&ReferenceBackend, &mut reader, head_dim, 0..SHAPE.kv_heads)?;
    reader.finish()
}

fn refused(indexer: &Indexer) -> String {
    let bytes = indexer.to_bytes().expect("fits the format");
    let error = open(&bytes, HEAD_DIM).expect_err("a damaged file");
    error.to_string()
}

#[test]
fn a_file_comes_back_as_it_was_written() {
    let mut small = Indexer::new(SHAPE);
    small.metadata.insert("seed".into(), "7".into());
    small.set(&retention(0.5, 2.0));
    let mut of_two = small.clone();
    of_two.set(&two(retention(0.5, 2.0)));
    for indexer in [whole(), small, of_two] {
        let bytes = indexer.to_bytes().expect("fits the format");
        let back = Indexer::parse(&bytes).expect("just written");
        assert_eq!(back.tensors, indexer.tensors);
        assert_eq!(
            back.get::<RetentionWeights>().expect("whole"),
            indexer.get().expect("whole")
        );
        assert_eq!(
            back.get::<PairwiseWeights>().expect("whole"),
            indexer.get().expect("whole")
        );
        assert_eq!(
            back.get::<AssociativeWeights>().expect("whole"),
            indexer.get().expect("whole")
        );
        assert_eq!(back.metadata["seed"], "7");
        assert!(back.check(SHAPE).is_ok());
        let other = ModelShape {
            kv_heads: 4,
            ..SHAPE
        };
        assert!(back.check(other).unwrap_err().to_string().contains('4'));
        assert!(open(&bytes, HEAD_DIM).is_ok());
        let has_memory = back.get::<AssociativeWeights>().expect("whole").is_some();
        assert_eq!(open(&bytes, 16).is_err(), has_memory);
    }
}

#[test]
fn damaged_files_are_refused() {
    let bytes = whole().to_bytes().expect("fits the format");
    for cut in 0..bytes.len() {
        assert!(open(&bytes[..cut], HEAD_DIM).is_err(), "cut at {cut}");
    }
    let mut nan = whole();
    nan.set(&retention(0.5, f32::NAN));
    let error = refused(&nan);
    assert!(
        error.contains("retention.1.weight") || error.contains("retention.1.bias"),
        "{error}"
    );
    let mut rising = whole();
    let mut scorers = retention(0.5, 2.0);
    scorers.layers[1].rate[0] = 0.5;
    rising.set(&scorers);
    let error = refused(&rising);
    assert!(error.contains("cannot rise"), "{error}");
    let mut both = whole();
    let mut scorers = retention(0.5, 2.0);
    for layer in &mut scorers.layers {
        layer.recent = Some(recent());
    }
    both.set(&scorers);
    let error = refused(&both);
    assert!(error.contains("only that one passes"), "{error}");
}

#[test]
fn a_part_that_the_metadata_does_not_know_of_is_refused() {
    let bytes = whole().to_bytes().expect("fits the format");
    let swap = |from: &str, to: &str| {
        let at = bytes
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .expect("in the header");
        let mut changed = bytes.clone();
        changed[at..at + from.len()].copy_from_slice(to.as_bytes());
        open(&changed, HEAD_DIM)
    };
    let error = swap("query_dim", "query_dIm").unwrap_err().to_string();
    assert!(error.contains("tensors"), "{error}");
    assert!(swap("\"hidden\":\"3\"", "\"hidden\":\"4\"").is_err());
}
