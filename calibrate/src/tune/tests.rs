mod whole;

use std::path::Path;

use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};

use super::documents::Document;
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
