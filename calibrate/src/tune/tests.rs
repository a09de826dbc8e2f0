use std::path::Path;

use palimpsest_engine::indexer::ModelShape;
use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};

use super::documents::{Document, Turns};
use super::losses::Outputs;
use super::pass::Reading;
use super::scorers::threshold;
use super::*;

const STRIDE: usize = 16;
const TEXT_WEIGHT: f64 = 6.0;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/models")
        .join(name)
}

fn backend() -> CpuBackend {
    CpuBackend::new(CpuOptions {
        threads: Some(1),
        activations: Activations::F32,
        simd: None,
    })
}

fn model(name: &str) -> Model {
    let opened = palimpsest_models::Model::open(&fixture(name)).expect("a fixture");
    Model::load(&backend(), opened.weights()).expect("it can be read")
}

fn document(model: &Model, strides: usize) -> Document {
    let (mut draws, length) = (Draws::new(3), strides * STRIDE);
    let ids = (0..length + 9)
        .map(|_| draws.between(0, model.config.vocabulary - 1) as u32)
        .collect();
    Document {
        ids,
        length,
        answers: vec![length + 3, length + 4, length + 8],
    }
}

fn scorers(model: &Model, reading: &Reading) -> Scorers {
    let (kv_heads, hidden) = (model.config.kv_heads, model.config.hidden);
    let mut draws = Draws::new(11);
    let mut layer = || {
        let mut values = |len: usize| (0..len).map(|_| draws.signed()).collect::<Vec<f32>>();
        let (weight, bias) = (values(kv_heads * hidden), values(kv_heads));
        let recent = RecentScorer {
            weight: values(kv_heads * hidden),
            bias: values(kv_heads),
            rate: vec![-1.5; kv_heads],
        };
        LayerScorer {
            weight,
            bias,
            rate: vec![0.0; kv_heads],
            recent: Some(recent),
        }
    };
    let start: Vec<_> = model.layers.iter().map(|_| layer()).collect();
    let inputs = model
        .layers
        .iter()
        .zip(&reading.states)
        .map(|(layer, x)| model.attention_input(layer, x));
    let inputs: Vec<_> = inputs
        .collect::<candle_core::Result<_>>()
        .expect("it reads");
    Scorers::new(start, kv_heads, &inputs).expect("it was made for this model")
}

fn reader(model: &Model) -> Reader<'_> {
    Reader {
        model,
        stride: STRIDE,
        protected: Protected {
            sinks: 2,
            window: 4,
        },
    }
}

/// The oracle of this second implementation of the decoder: logits of Hugging Face transformers,
/// made by `tests/oracle`.
#[test]
fn the_model_is_that_of_transformers_when_nothing_goes() {
    for name in [
        "llama",
        "llama-tied",
        "mistral",
        "qwen2",
        "qwen3",
        "gguf-llama",
        "gguf-qwen2",
    ] {
        let directory = fixture(name);
        let gguf = directory.join("model.gguf");
        let opened = palimpsest_models::Model::open(if gguf.exists() { &gguf } else { &directory });
        let model =
            Model::load(&backend(), opened.expect("a fixture").weights()).expect("it can be read");
        let golden = std::fs::read(directory.join("golden.safetensors")).expect("a fixture");
        let golden = safetensors::SafeTensors::deserialize(&golden).expect("whole");
        let bytes = |name: &str| golden.tensor(name).expect("there").data().to_vec();
        let want: Vec<f32> = bytes("logits")
            .chunks_exact(4)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        let ids: Vec<u32> = bytes("prompt")
            .chunks_exact(4)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        let document = Document {
            length: ids.len() / STRIDE * STRIDE,
            ids,
            answers: Vec::new(),
        };
        let reading = reader(&model).read_full(&document).expect("it reads");
        let logits = model
            .logits(reading.output())
            .and_then(|l| l.flatten_all()?.to_vec1::<f32>())
            .expect("logits");
        let off = logits
            .iter()
            .zip(&want)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(
            logits.len() == want.len() && off < 1e-3,
            "{name}: logits differ by {off}"
        );
    }
}

#[test]
fn thresholds_leave_what_is_wanted() {
    let mut draws = Draws::new(1);
    let scores: Vec<f32> = (0..500).map(|_| 8.0 * draws.signed()).collect();
    let at = threshold(&scores, 60.0);
    let left: f32 = scores
        .iter()
        .map(|score| 1.0 / (1.0 + (-(score - at) / 0.5).exp()))
        .sum();
    assert!((left - 60.0).abs() < 0.01, "{left}");
}

/// Losses of a reading whose thresholds and memories are those of another: what the gradient is of.
fn replayed(
    reader: &Reader<'_>,
    document: &Document,
    scorers: &Scorers,
    reading: &Reading,
    full: &candle_core::Tensor,
) -> f64 {
    let output = reader.replay(document, scorers, reading).expect("it reads");
    let (losses, _) = Losses::of(
        reader.model,
        document,
        Outputs {
            full,
            output: &output,
        },
        TEXT_WEIGHT,
    )
    .expect("finite");
    losses.answers + TEXT_WEIGHT * losses.text
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (name, centroids) in [("llama", 0), ("qwen3", 3), ("mistral", 2)] {
        let model = model(name);
        let (reader, document) = (reader(&model), document(&model, 5));
        let full = reader.read_full(&document).expect("it reads");
        let mut scorers = scorers(&model, &full);
        let budget = Budget {
            slots: 9.0,
            centroids,
        };
        let reading = reader
            .read_evicting(&document, &scorers, budget)
            .expect("it reads");
        let full = full.output();
        let (losses, slopes) = Losses::of(
            &model,
            &document,
            Outputs {
                full,
                output: reading.output(),
            },
            TEXT_WEIGHT,
        )
        .expect("finite");
        assert!(
            losses.text > 1e-6,
            "{name}: eviction costs something: {losses:?}"
        );
        let again = replayed(&reader, &document, &scorers, &reading, full);
        assert!(
            (again - losses.answers - TEXT_WEIGHT * losses.text).abs() < 1e-4,
            "{name}: the backward pass reads the same"
        );
        let gradient = reader
            .backward(&document, &scorers, &reading, slopes)
            .expect("finite");
        for (kind, gradient) in gradient.iter().enumerate() {
            let largest = gradient
                .iter()
                .fold(0.0f32, |most, slope| most.max(slope.abs()));
            assert!(
                largest > 0.0,
                "{name}: parameters of kind {kind} have a gradient"
            );
            // Those that matter most: single precision says little of the others.
            let mut order: Vec<usize> = (0..gradient.len()).collect();
            order.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
            for &index in order.iter().take(6) {
                let (at, step) = (
                    scorers.parameters[kind].values[index],
                    1e-2 / (1.0 + largest),
                );
                let mut moved = |to: f32| {
                    scorers.parameters[kind].values[index] = to;
                    replayed(&reader, &document, &scorers, &reading, full)
                };
                let slope = (moved(at + step) - moved(at - step)) / f64::from(2.0 * step);
                scorers.parameters[kind].values[index] = at;
                let off = (slope - f64::from(gradient[index])).abs();
                assert!(
                    off < 0.05 * f64::from(largest),
                    "{name}, kind {kind}, {index}: {} where differences say {slope}",
                    gradient[index]
                );
            }
        }
    }
}

/// Steps against the gradient lower what eviction costs, and the file's scorers are the trained
/// ones.
#[test]
fn a_few_steps_lower_the_loss_and_are_folded_into_the_file() {
    let model = model("llama");
    let (reader, document) = (reader(&model), document(&model, 6));
    let full = reader.read_full(&document).expect("it reads");
    let mut scorers = scorers(&model, &full);
    let budget = Budget {
        slots: 10.0,
        centroids: 0,
    };
    let mut losses = Vec::new();
    for _ in 0..12 {
        let reading = reader
            .read_evicting(&document, &scorers, budget)
            .expect("it reads");
        let (found, slopes) = Losses::of(
            &model,
            &document,
            Outputs {
                full: full.output(),
                output: reading.output(),
            },
            TEXT_WEIGHT,
        )
        .expect("finite");
        losses.push(found.text * TEXT_WEIGHT + found.answers);
        let gradient = reader
            .backward(&document, &scorers, &reading, slopes)
            .expect("finite");
        scorers.step(gradient, 0.05);
    }
    assert!(losses.last() < losses.first(), "{losses:?}");
    // As if the last step were all of the mean.
    for parameters in &mut scorers.parameters {
        parameters.mean = parameters.values.clone();
    }
    let hidden = model
        .attention_input(&model.layers[1], &full.states[1])
        .expect("it reads");
    let vars = scorers.vars(1).expect("there");
    let want = scorers
        .scores(1, &vars, &hidden)
        .and_then(|s| s.to_vec2::<f32>())
        .expect("scores");
    let folded = &scorers.folded().expect("finite")[1];
    let recent = folded.recent.as_ref().expect("two scorers");
    let rows: Vec<Vec<f32>> = hidden.to_vec2().expect("two axes");
    let kv_heads = model.config.kv_heads;
    for (part, weight, bias) in [
        (0, &folded.weight, &folded.bias),
        (1, &recent.weight, &recent.bias),
    ] {
        for head in 0..kv_heads {
            let weight = &weight[head * model.config.hidden..][..model.config.hidden];
            for (token, x) in rows.iter().enumerate() {
                let got = bias[head] + weight.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
                let want = want[part * kv_heads + head][token];
                assert!(
                    (got - want).abs() < 1e-3,
                    "part {part}, head {head}, token {token}: {got} is not {want}"
                );
            }
        }
    }
    assert!(recent.rate.iter().all(|&rate| rate < 0.0));
}

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

#[test]
fn a_tuning_that_was_interrupted_goes_on_with_the_same_result() {
    let model = model("llama");
    let full = reader(&model)
        .read_full(&document(&model, 2))
        .expect("it reads");
    let directory = tempfile::tempdir().expect("a directory");
    let state = State::new(&directory.path().join("state"), 7);
    let slopes = |step: usize, scorers: &Scorers| {
        [0, 1, 2].map(|kind| {
            let mut draws = Draws::new(step as u64 * 3 + kind as u64);
            scorers.parameters[kind]
                .values
                .iter()
                .map(|_| draws.signed())
                .collect::<Vec<f32>>()
        })
    };
    let mut whole = scorers(&model, &full);
    for step in 0..4 {
        if step == 2 {
            state.save(&whole, 2).expect("room on the disk");
        }
        let slopes = slopes(step, &whole);
        whole.step(slopes, 0.01);
    }
    let mut resumed = scorers(&model, &full);
    assert_eq!(
        State::new(&directory.path().join("state"), 8).load(&mut resumed),
        None,
        "of another tuning"
    );
    assert_eq!(state.load(&mut resumed), Some(2));
    for step in 2..4 {
        let slopes = slopes(step, &resumed);
        resumed.step(slopes, 0.01);
    }
    for (a, b) in whole.parameters.iter().zip(&resumed.parameters) {
        assert!(a.values == b.values && a.mean == b.mean);
    }
    let bytes = std::fs::read(directory.path().join("state")).expect("saved");
    std::fs::write(directory.path().join("state"), &bytes[..bytes.len() / 2]).expect("written");
    assert_eq!(state.load(&mut resumed), None, "cut short");
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
