//! Residual readout of associative memories: two small products per query.

use super::device::CpuBackend;
use super::exec::Exec;
use super::lanes::{Kernel, Lanes, Shared, WIDTH, dispatch};
use super::pages::CpuPages;
use crate::backend::{AssociativeLayer, LEAST_MASS, ReadoutItem};
use crate::error::{Result, at_least};
use crate::latent::AssociativeState;

/// Token rows of one task.
const ROWS: usize = 16;

/// See [`LatentMemory::readout`](crate::backend::LatentMemory::readout).
pub(crate) fn readout(
    exec: Exec<'_>,
    layer: AssociativeLayer<'_, CpuBackend>,
    pages: &CpuPages,
    q: &[f32],
    items: &[ReadoutItem],
    out: &mut [f32],
) -> Result<()> {
    let (op, shape) = ("readout", layer.shape);
    let width = shape.heads * shape.head_dim;
    let (size, first_gate) = (layer.count * shape.head_dim, layer.layer * shape.kv_heads);
    at_least(op, "gates", layer.gates.len(), first_gate + shape.kv_heads)?;
    at_least(
        op,
        "features",
        layer.features.len(),
        (layer.layer + 1) * size,
    )?;
    let features = &layer.features[layer.layer * size..][..size];
    let gates = &layer.gates[first_gate..];
    let mut states = Vec::with_capacity(items.len());
    for item in items {
        at_least(op, "q", q.len(), item.rows.end * width)?;
        at_least(op, "out", out.len(), item.rows.end * width)?;
        at_least(op, "kv_heads", shape.kv_heads, item.kv_head + 1)?;
        let state = pages.latents().associative(op, item.memory)?;
        at_least(op, "features", features.len(), state.sums.len())?;
        states.push(state);
    }
    let mut tasks = Vec::new();
    for (item, state) in items.iter().zip(&states) {
        let task = |first| (item.kv_head, *state, first..item.rows.end.min(first + ROWS));
        tasks.extend(item.rows.clone().step_by(ROWS).map(task));
    }
    let work = items
        .iter()
        .zip(&states)
        .map(|(item, state)| item.rows.len() * state.sums.len())
        .sum();
    let group = shape.heads / shape.kv_heads;
    let out = Shared::new(out);
    exec.run(tasks.len(), work, &|task| {
        let (kv_head, state, rows) = &tasks[task];
        for row in rows.clone() {
            let first = row * width + kv_head * group * shape.head_dim;
            let len = group * shape.head_dim;
            // SAFETY: a row belongs to one item per KV head, and tasks have different rows or
            // heads.
            let out = unsafe { out.part(first, len) };
            dispatch(
                exec.level,
                Read {
                    features,
                    gate: gates[*kv_head],
                    state,
                    q: &q[first..first + len],
                    out,
                },
            );
        }
    });
    Ok(())
}

/// The query heads of one KV head at one row.
struct Read<'a> {
    features: &'a [f32],
    gate: f32,
    state: &'a AssociativeState,
    q: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Read<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let dim = self.state.sums.len() / self.state.norms.len().max(1);
        if dim == 0 {
            return;
        }
        let mut phi = Vec::with_capacity(self.state.norms.len());
        for (q, out) in self.q.chunks_exact(dim).zip(self.out.chunks_exact_mut(dim)) {
            phi.clear();
            let mut mass = 0.0;
            for (feature, norm) in self.features.chunks_exact(dim).zip(&self.state.norms) {
                let mut sum = L::splat(0.0);
                for (f, q) in feature.chunks(WIDTH).zip(q.chunks(WIDTH)) {
                    sum = L::from_slice(f, 0.0).fma(L::from_slice(q, 0.0), sum);
                }
                let value = sum.sum();
                mass += value * value * norm;
                phi.push(value);
            }
            let scale = self.gate / mass.max(LEAST_MASS);
            for (d, out) in out.chunks_mut(WIDTH).enumerate() {
                let mut sum = L::splat(0.0);
                for (row, &phi) in self.state.sums.chunks_exact(dim).zip(&phi) {
                    let row = &row[d * WIDTH..dim.min((d + 1) * WIDTH)];
                    sum = L::from_slice(row, 0.0).fma(L::splat(phi), sum);
                }
                sum.fma(L::splat(scale), L::from_slice(out, 0.0)).write(out);
            }
        }
    }
}
