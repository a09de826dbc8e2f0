//! From documents to a file's scorers.

use std::path::{Path, PathBuf};

use palimpsest_engine::indexer::{Indexer, ModelShape};
use palimpsest_engine::policy::retention::{LayerScorer, RetentionWeights};

use super::super::documents::{Documents, LONG, SHORT, Turns};
use super::super::model::Model;
use super::super::{OFFSET, Options, Progress, add_second, mean_of, rate, tune};
use super::{STRIDE, backend};

/// Sentences with names and numbers.
fn tides(count: usize) -> String {
    let sentence = |n: usize| {
        format!(
            "In {} old Ann-{n} of Port {} was late. ",
            1800 + n % 90,
            n % 7
        )
    };
    (0..count).map(sentence).collect()
}

#[test]
fn documents_repeat_by_seed_and_their_answers_stand_in_them() {
    let opened = palimpsest_models::Model::open(Path::new("random:smollm2-135m")).expect("a shape");
    let tokenizer = opened.tokenizer().expect("bytes").tokenizer_json;
    let tokenizer = tokenizers::Tokenizer::from_bytes(&tokenizer).expect("whole");
    let text = tides(4000);
    let turns = Turns {
        opening: "<s>user ".into(),
        ..Turns::default()
    };
    let stride = 64;
    let documents = Documents::new(&text, &tokenizer, &turns, stride).expect("enough text");
    let plain = |ids: &[u32]| {
        let text = tokenizer.decode(ids, false).expect("bytes");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let mut planted = 0;
    for seed in 0..24 {
        let drawn = documents.draw(LONG, seed).expect("it can be drawn");
        assert_eq!(drawn, documents.draw(LONG, seed).expect("again"));
        assert_eq!(
            documents.draw(SHORT, seed).expect("it can be drawn").length,
            4 * stride
        );
        assert!(drawn.length.is_multiple_of(stride) && drawn.length < drawn.ids.len());
        let read = plain(&drawn.ids[..drawn.length]);
        planted += usize::from(
            [
                "code", "badge", "serial", "Let ", "Parcel", "Remember", "ledger", "password",
            ]
            .iter()
            .any(|fact| read.contains(fact)),
        );
        let first = drawn
            .answers
            .iter()
            .zip(drawn.answers[0]..)
            .take_while(|(at, next)| *at == next);
        let answer: Vec<u32> = first.map(|(&at, _)| drawn.ids[at]).collect();
        assert!(
            drawn.answers[0] > drawn.length && read.contains(&plain(&answer)),
            "{} is not in the text",
            plain(&answer)
        );
    }
    assert!(
        (4..=20).contains(&planted),
        "{planted} of 24 have planted facts"
    );
    assert!(matches!(
        Documents::new(&text[..2000], &tokenizer, &turns, stride),
        Err(crate::Error::TooShort { .. })
    ));
}

/// From documents to a file's scorers, on a model of random weights whose tokens are bytes;
/// interrupted once.
#[test]
fn a_whole_tuning_repeats_and_survives_an_interruption() {
    let directory = tempfile::tempdir().expect("a directory");
    let shape = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true}"#;
    std::fs::write(directory.path().join("config.json"), shape).expect("written");
    let path = format!("random:{}", directory.path().display());
    let opened = palimpsest_models::Model::open(Path::new(&path)).expect("a shape");
    let model = Model::load(&backend(), opened.weights()).expect("it can be read");
    let tokenizer = opened.tokenizer().expect("bytes").tokenizer_json;
    let tokenizer = tokenizers::Tokenizer::from_bytes(&tokenizer).expect("whole");
    let (text, turns) = (tides(4000), Turns::default());
    let documents = Documents::new(&text, &tokenizer, &turns, STRIDE).expect("enough text");
    let options = |name: &str| Options {
        steps: 6,
        rate: 1e-2,
        seed: 5,
        stride: STRIDE,
        state: directory.path().join(name),
    };
    let start = || {
        let scorer = LayerScorer {
            weight: vec![0.1; 64],
            bias: vec![-1.0; 2],
            rate: vec![0.0; 2],
            recent: None,
        };
        let mut retention = vec![scorer; 2];
        add_second(&mut retention);
        let mut indexer = Indexer::new(ModelShape {
            layers: 2,
            kv_heads: 2,
            hidden: 32,
        });
        indexer.set(&RetentionWeights { layers: retention });
        indexer
    };
    let run = |options: &Options, indexer: &mut Indexer, seen: &mut Vec<usize>| {
        tune(&model, indexer, &documents, options, &mut |progress| {
            seen.push(progress.done)
        })
        .expect("it can be tuned")
    };
    let (mut whole, mut seen) = (start(), Vec::new());
    let losses = run(&options("whole"), &mut whole, &mut seen);
    assert_eq!(seen, [1, 2, 3, 4, 5, 6]);
    assert!(
        losses.answers > 0.0 && losses.full > 0.0 && losses.text >= 0.0,
        "{losses:?}"
    );
    assert!(whole != start() && !directory.path().join("whole").exists());
    // Ends in the sixth step, after the state of the fifth was saved.
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut stop = |progress: Progress| assert!(progress.done < 6, "interrupted");
        let _ = tune(&model, &mut start(), &documents, &options("cut"), &mut stop);
    }));
    assert!(ended.is_err() && directory.path().join("cut").exists());
    let (mut resumed, mut seen) = (start(), Vec::new());
    run(&options("cut"), &mut resumed, &mut seen);
    assert_eq!(seen, [6]);
    assert_eq!(resumed, whole);
}

#[test]
fn the_rate_rises_stays_and_falls() {
    let options = |steps| Options {
        steps,
        rate: 1.0,
        seed: 0,
        stride: STRIDE,
        state: PathBuf::new(),
    };
    let rates: Vec<f32> = (0..70).map(|step| rate(&options(70), step)).collect();
    assert!(
        rates[0] == 0.2 && rates[4..=40].iter().all(|&rate| rate == 1.0),
        "{rates:?}"
    );
    assert!(
        rates[40..].is_sorted_by(|a, b| a > b) && (0.1..0.14).contains(&rates[69]),
        "{rates:?}"
    );
    assert!((0..2).all(|step| rate(&options(2), step) > 0.0));
}

#[test]
fn means_are_of_files_of_one_kind() {
    let indexer = |x: f32, two: bool| {
        let mut retention = vec![LayerScorer {
            weight: vec![x; 3],
            bias: vec![x],
            rate: vec![0.0],
            recent: None,
        }];
        if two {
            add_second(&mut retention);
        }
        let mut indexer = Indexer::new(ModelShape {
            layers: 1,
            kv_heads: 1,
            hidden: 3,
        });
        indexer.set(&RetentionWeights { layers: retention });
        indexer
    };
    let mean = mean_of(vec![indexer(1.0, true), indexer(4.0, true)]).expect("of one kind");
    let layers = RetentionWeights::of(&mean).expect("just written").layers;
    assert_eq!(layers[0].weight, [2.5; 3]);
    assert_eq!(layers[0].recent.as_ref().expect("two").bias, [2.5 + OFFSET]);
    assert!(matches!(
        mean_of(vec![indexer(1.0, true), indexer(1.0, false)]),
        Err(crate::Error::Scorers)
    ));
    assert!(mean_of(Vec::new()).is_err());
}
