use palimpsest_models::{DigestCache, Model};
use palimpsest_tests::{tiny_indexer, tiny_model};

use super::*;

/// A model with its weights' name, and a cache.
struct Fixture {
    model: tempfile::TempDir,
    cache: tempfile::TempDir,
    weights: WeightsId,
}

impl Fixture {
    fn new() -> Self {
        let model = tiny_model(1);
        let opened = Model::open(model.path()).expect("a model");
        let weights = opened.weights().identity(&DigestCache::nowhere());
        Self {
            cache: tempfile::tempdir().expect("a directory"),
            weights: weights.expect("files"),
            model,
        }
    }

    fn subject(&self) -> Subject {
        Subject {
            file: self.model.path().to_owned(),
            weights: Some(self.weights),
            kept: Some(self.cache.path().join("kept.safetensors")),
        }
    }

    fn find(&self) -> Option<Indexer> {
        let found = find(&self.subject(), None).expect("nothing was named");
        found.map(|found| found.indexer)
    }

    fn beside(&self) -> PathBuf {
        self.model.path().join(INDEXER)
    }
}

/// An indexer that says for which weights it was trained.
fn write(path: &Path, seed: u64, weights: &str) -> Indexer {
    let mut indexer = tiny_indexer(seed);
    indexer.metadata.insert(WEIGHTS.into(), weights.into());
    fs::write(path, indexer.to_bytes().expect("an indexer")).expect("a file");
    indexer
}

fn trained(found: Option<&Indexer>) -> Option<String> {
    found?.metadata.get(WEIGHTS).cloned()
}

#[test]
fn an_indexer_is_found_by_the_weights_it_was_trained_for() {
    let fixture = Fixture::new();
    assert_eq!(fixture.find(), None);
    let kept = fixture.subject().kept.expect("a place");
    write(&kept, 1, &fixture.weights.to_string());
    assert!(fixture.find().is_some(), "the one in the cache");
    // One beside the model comes first, and may have been trained for several.
    let several = format!("{} {}", WeightsId(7), fixture.weights);
    write(&fixture.beside(), 2, &several);
    assert_eq!(trained(fixture.find().as_ref()), Some(several));
    // One of other weights is left alone.
    write(&fixture.beside(), 2, &WeightsId(7).to_string());
    assert_eq!(
        trained(fixture.find().as_ref()),
        Some(fixture.weights.to_string())
    );
    fs::remove_file(kept).expect("a file");
    assert_eq!(fixture.find(), None);
}

#[test]
fn what_does_not_say_or_cannot_be_read_is_used_only_by_name() {
    let fixture = Fixture::new();
    let unsaid = tiny_indexer(1).to_bytes().expect("an indexer");
    fs::write(fixture.beside(), &unsaid).expect("a file");
    assert_eq!(fixture.find(), None);
    let named = fixture.beside();
    assert!(
        find(&fixture.subject(), Some(&named))
            .expect("readable")
            .is_some()
    );
    for bytes in [&b"no indexer"[..], &unsaid[..unsaid.len() - 1]] {
        fs::write(fixture.beside(), bytes).expect("a file");
        assert_eq!(fixture.find(), None);
        let error = find(&fixture.subject(), Some(&named)).expect_err("unreadable");
        assert!(format!("{error:#}").contains(INDEXER), "{error:#}");
    }
    let missing = find(&fixture.subject(), Some(Path::new("/nope"))).expect_err("missing");
    assert!(missing.to_string().contains("/nope"), "{missing}");
}

#[test]
fn a_file_has_its_indexer_under_its_own_name_or_in_its_repository() {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let of = |file: &str| Subject {
        file: file.into(),
        weights: Some(WeightsId(1)),
        kept: None,
    };
    let root = format!("/c/models--a--b/snapshots/{commit}");
    let file = format!("{root}/q4/x.Q4_0.gguf");
    let places = of(&file).places();
    let expected = [
        format!("{root}/q4/x.Q4_0.indexer.safetensors"),
        format!("{root}/q4/{INDEXER}"),
        format!("{root}/{INDEXER}"),
    ];
    assert_eq!(places, expected.map(PathBuf::from));
    assert_eq!(of("/m/x.gguf").places().len(), 2);
}

#[test]
fn a_learned_policy_that_cannot_be_gives_way_to_the_best_that_can() {
    let asked = |policy: &str| KvContract {
        policy: policy.into(),
        budget: 512,
        head_budget: "column".into(),
        ..KvContract::default()
    };
    for learned in [Retention::NAME, PairwiseIndexer::NAME] {
        let kv = contract(&asked(learned), None, Some("model")).expect("a contract");
        assert_eq!(kv.policy, "keydiff");
        assert_eq!((kv.budget, kv.head_budget.as_str()), (512, ""));
        let indexer = tiny_indexer(1);
        let kept = contract(&asked(learned), Some(&indexer), Some("model"));
        assert_eq!(kept.expect("a contract"), asked(learned));
    }
    let open = contract(&KvContract::default(), None, None).expect("a contract");
    assert_eq!(open.policy, "keydiff");
    let plain = contract(&asked("h2o"), None, Some("model")).expect("a contract");
    assert_eq!(plain, asked("h2o"));
}

/// The name of the default model's weights stands in the program.
#[test]
fn the_built_in_indexer_is_for_the_default_model() {
    let Some(path) = std::env::var_os("PALIMPSEST_TEST_MODEL") else {
        eprintln!("SKIPPED: PALIMPSEST_TEST_MODEL is not set");
        return;
    };
    let model = Model::open(Path::new(&path)).expect("a model");
    let weights = model.weights().identity(&DigestCache::nowhere());
    assert_eq!(weights, Some(BUILT_IN_FOR));
    let subject = Subject {
        file: PathBuf::from(path),
        weights,
        kept: None,
    };
    let found = find(&subject, None).expect("readable").expect("an indexer");
    assert_eq!(Some(found.indexer), Indexer::parse(BUILT_IN).ok());
    assert_eq!(found.file, None);
}
