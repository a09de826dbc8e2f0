//! Fits the associative memory: what its readout should add is what attention lost by the eviction.
//!
//! Source: IndexMem (arXiv 2605.25475), second training stage: the mean squared error between the
//! gated readout and the difference of full and bounded attention. Unlike there, writes are causal:
//! a query learns from what was evicted at a boundary before it. Every step trains some number of
//! the first features, so that a memory may use fewer than all.

mod case;

use palimpsest_engine::memory::associative::AssociativeLayerWeights;

use self::case::Slopes;
pub use self::case::{Case, Heads};
use crate::draws::Draws;
use crate::gradient::{Adam, Scaling, dot, uniform};

/// Shape and training of the associative memory.
#[derive(Debug, Clone, Copy)]
pub struct AssociativeOptions {
    /// `F`.
    pub features: usize,
    /// Steps, one document each.
    pub steps: usize,
    /// Learning rate at the start; it falls to 0 linearly.
    pub rate: f32,
}

impl Default for AssociativeOptions {
    fn default() -> Self {
        Self {
            features: 128,
            steps: 300,
            rate: 1e-2,
        }
    }
}

/// One document in this many decides how much of a readout counts.
const GATES_EVERY: usize = 4;

/// Fits one layer. `cases`: every document's KV heads, in order, `K` a document. A few channels of
/// keys are far larger than the others, so channels are scaled for training, and the features take
/// that in at the end.
pub fn fit(
    cases: &[Case],
    heads: Heads,
    options: AssociativeOptions,
    seed: u64,
) -> AssociativeLayerWeights {
    let mut draws = Draws::new(seed);
    let dim = heads.dim;
    let scaling = Scaling::of(cases.iter().map(|case| &case.keys[..]), dim).without_means();
    let scaled = |case: &Case| Case {
        dim,
        queries: scaling.standardised(&case.queries),
        missing: case.missing.clone(),
        keys: scaling.standardised(&case.keys),
        values: case.values.clone(),
    };
    let cases: Vec<Case> = cases.iter().map(scaled).collect();
    // Features learn from most documents and gates from the rest, so that a gate knows how well
    // features generalise.
    let documents = (cases.len() / heads.kv_heads).div_ceil(GATES_EVERY).max(1);
    let (for_gates, for_features) =
        cases.split_at(documents.min(cases.len() / heads.kv_heads) * heads.kv_heads);
    let cases = if for_features.is_empty() {
        for_gates
    } else {
        for_features
    };
    let mut features = uniform(
        &mut draws,
        options.features * dim,
        1.0 / (dim as f32).sqrt(),
    );
    let mut gates = best_gates(cases, heads, &features);
    // A gate of 0 has no gradient for the features.
    gates.iter_mut().for_each(|gate| *gate = gate.max(1e-3));
    let values: usize = cases.iter().map(|case| case.missing.len()).sum();
    let energy = cases
        .iter()
        .map(|case| dot(&case.missing, &case.missing))
        .sum::<f32>()
        / values.max(1) as f32;
    let (mut of_features, mut of_gates) = (Adam::new(features.len()), Adam::new(gates.len()));
    let documents = cases.len() / heads.kv_heads;
    for step in 0..if energy > 0.0 { options.steps } else { 0 } {
        // All features in one step of four; else the first half of them, the first quarter and so
        // on.
        let used = (options.features >> draws.between(0, 3)).max(1) * dim;
        let (mut feature_slopes, mut gate_slopes) =
            (vec![0.0; features.len()], vec![0.0; gates.len()]);
        let document = &cases[step % documents * heads.kv_heads..][..heads.kv_heads];
        for (kv_head, case) in document
            .iter()
            .enumerate()
            .filter(|(_, case)| !case.is_empty())
        {
            let slopes = Slopes {
                features: &mut feature_slopes[..used],
                gate: &mut gate_slopes[kv_head],
            };
            case.loss(&features[..used], gates[kv_head], energy, slopes);
        }
        let rate = options.rate * (1.0 - step as f32 / options.steps as f32);
        of_features.step(&mut features, &feature_slopes, rate);
        of_gates.step(&mut gates, &gate_slopes, rate);
    }
    let gates = best_gates(for_gates, heads, &features);
    scaling.fold(&mut features, None);
    AssociativeLayerWeights { features, gates }
}

/// The gates that leave the least error with these features; none is negative, since a memory that
/// only does harm is off.
fn best_gates(cases: &[Case], heads: Heads, features: &[f32]) -> Vec<f32> {
    let (mut along, mut energy) = (vec![0.0; heads.kv_heads], vec![0.0; heads.kv_heads]);
    for (index, case) in cases
        .iter()
        .enumerate()
        .filter(|(_, case)| !case.is_empty())
    {
        let out = case.readout(features).out;
        along[index % heads.kv_heads] += f64::from(dot(&out, &case.missing));
        energy[index % heads.kv_heads] += f64::from(dot(&out, &out));
    }
    along
        .iter()
        .zip(&energy)
        .map(|(a, e)| {
            if *e > 0.0 {
                (a / e).max(0.0) as f32
            } else {
                0.0
            }
        })
        .collect()
}

/// Share of what eviction took from attention outputs (squared) that the readout gives back, over
/// all cases.
pub fn explained(layer: &AssociativeLayerWeights, cases: &[Case], heads: Heads) -> f64 {
    let (mut left, mut energy) = (0.0, 0.0);
    for (index, case) in cases
        .iter()
        .enumerate()
        .filter(|(_, case)| !case.is_empty())
    {
        let gate = layer.gates[index % heads.kv_heads];
        for (out, missing) in case.readout(&layer.features).out.iter().zip(&case.missing) {
            left += f64::from((gate * out - missing).powi(2));
            energy += f64::from(missing * missing);
        }
    }
    if energy > 0.0 {
        1.0 - left / energy
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::case::Readout;
    use super::*;
    use crate::collect::LayerSample;
    use crate::gradient::testing;

    const HEADS: Heads = Heads {
        kv_heads: 2,
        group: 2,
        dim: 8,
    };

    /// Keys of a few kinds whose values depend on the kind: what a linear memory can hold.
    fn document(seed: u64) -> LayerSample {
        let tokens = 96;
        let mut draws = Draws::new(seed);
        let mut values =
            |n: usize, size: f32| (0..n).map(|_| draws.signed() * size).collect::<Vec<f32>>();
        let mut sample = LayerSample {
            queries: values(tokens * HEADS.kv_heads * HEADS.group * HEADS.dim, 3.0),
            keys: values(HEADS.kv_heads * tokens * HEADS.dim, 0.3),
            ..LayerSample::default()
        };
        for (token, key) in sample.keys.chunks_exact_mut(HEADS.dim).enumerate() {
            key[token % 4] += 3.0;
            sample
                .values
                .extend((0..HEADS.dim).map(|d| if d == token % 4 { 2.0 } else { 0.1 }));
        }
        sample
    }

    fn cases(seeds: std::ops::Range<u64>) -> Vec<Case> {
        let kept: Vec<u32> = (0..64).filter(|t| t % 4 != 1).collect();
        let case = |seed| {
            let document = document(seed);
            (0..2)
                .map(|k| Case::new(&document, HEADS, k, 64, &kept))
                .collect::<Vec<_>>()
        };
        seeds.flat_map(case).collect()
    }

    #[test]
    fn training_gives_back_some_of_what_eviction_took_on_a_new_document() {
        let options = AssociativeOptions {
            features: 8,
            steps: 300,
            rate: 1e-2,
        };
        let fitted = fit(&cases(0..4), HEADS, options, 1);
        let share = explained(&fitted, &cases(9..10), HEADS);
        assert!(share > 0.1, "{share} of the missing energy");
        let off = AssociativeLayerWeights {
            gates: vec![0.0; 2],
            ..fitted
        };
        assert_eq!(explained(&off, &cases(9..10), HEADS), 0.0);
    }

    #[test]
    fn nothing_is_missing_where_nothing_was_evicted() {
        let all: Vec<u32> = (0..64).collect();
        let case = Case::new(&document(3), HEADS, 1, 64, &all);
        assert!(case.is_empty());
        assert!(case.missing.iter().all(|m| *m == 0.0));
    }

    /// The readout that is trained is the one that the engine computes.
    #[test]
    fn the_readout_is_the_backends() {
        use palimpsest_kernels::latent::AssociativeState;
        use palimpsest_kernels::parts::*;
        use palimpsest_kernels::reference::ReferenceBackend;
        use palimpsest_kernels::{
            AssociativeLayer, KvType, LatentHead, LatentKind, LatentState, PageShape, QkvShape,
            ReadoutItem,
        };
        let kept: Vec<u32> = (0..32).collect();
        let case = Case::new(&document(4), HEADS, 0, 64, &kept);
        let options = AssociativeOptions {
            features: 6,
            steps: 0,
            rate: 1.0,
        };
        let fitted = fit(&cases(0..1), HEADS, options, 2);
        let Readout {
            sums,
            norms,
            out: want,
            ..
        } = case.readout(&fitted.features);
        let rows = case.queries.len() / HEADS.dim / HEADS.group;
        let shape = QkvShape {
            heads: HEADS.group,
            kv_heads: 1,
            head_dim: HEADS.dim,
        };
        let backend = ReferenceBackend;
        let buffer = || backend.alloc(case.queries.len()).expect("room");
        let (mut q, mut out) = (buffer(), buffer());
        backend.upload(&case.queries, &mut q, 0).expect("fits");
        let page = PageShape {
            head_dim: HEADS.dim,
            dtype: KvType::F32,
        };
        let mut pages = backend.alloc_pages(page, 0).expect("room");
        let kind = LatentKind::Associative { features: 6 };
        let memory = LatentHead {
            id: backend.alloc_latent(&mut pages, kind, 1).expect("room"),
            head: 0,
        };
        let state = LatentState::Associative(AssociativeState { sums, norms });
        backend
            .write_latent(&mut pages, memory, &state)
            .expect("fits");
        let layer = AssociativeLayer {
            shape,
            features: &fitted.features,
            count: 6,
            gates: &vec![1.0],
            layer: 0,
        };
        let items = [ReadoutItem {
            rows: 0..rows,
            kv_head: 0,
            memory,
        }];
        backend
            .readout(layer, &pages, &q, &items, &mut out)
            .expect("valid");
        let mut got = vec![0.0; case.queries.len()];
        backend.download(&out, 0, &mut got).expect("fits");
        for (got, want) in got.iter().zip(&want) {
            assert!(
                (got - want).abs() < 1e-4 * want.abs().max(1.0),
                "{got} is not {want}"
            );
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let case = &cases(0..1)[1];
        let mut features = uniform(&mut Draws::new(8), 6 * HEADS.dim, 0.4);
        let (mut gate, energy) = (vec![0.7], 0.9);
        let (mut of_features, mut of_gate) = (vec![0.0; features.len()], 0.0);
        let slopes = Slopes {
            features: &mut of_features,
            gate: &mut of_gate,
        };
        case.loss(&features, gate[0], energy, slopes);
        let fixed = features.clone();
        let loss = |features: &[f32], gate: f32| {
            let (mut of_features, mut of_gate) = (vec![0.0; 6 * HEADS.dim], 0.0);
            let unused = Slopes {
                features: &mut of_features,
                gate: &mut of_gate,
            };
            case.loss(features, gate, energy, unused)
        };
        testing::check(&mut features, &of_features, 1, &mut |moved| {
            loss(moved, 0.7)
        });
        testing::check(&mut gate, &[of_gate], 1, &mut |moved| {
            loss(&fixed, moved[0])
        });
    }
}
