//! Residual readout of associative memories: two small products per query.

use super::elementwise::at_least;
use super::lanes::{Kernel, Lanes, Shared, WIDTH, dispatch};
use super::pages::Exec;
use crate::backend::{AssociativeLayer, QkvShape, ReadoutItem};
use crate::error::{Error, Result};

/// Token rows of one task.
const ROWS: usize = 16;

/// See [`crate::Backend::readout`].
pub(crate) fn readout(
    exec: Exec<'_>,
    shape: QkvShape,
    layer: AssociativeLayer<'_>,
    q: &[f32],
    items: &[ReadoutItem<'_>],
    out: &mut [f32],
) -> Result<()> {
    let (op, width) = ("readout", shape.heads * shape.head_dim);
    at_least(op, "gates", layer.gates.len(), shape.kv_heads)?;
    for item in items {
        at_least(op, "q", q.len(), item.rows.end * width)?;
        at_least(op, "out", out.len(), item.rows.end * width)?;
        at_least(op, "kv_heads", shape.kv_heads, item.kv_head + 1)?;
        let features = item.norms.len();
        at_least(op, "features", layer.features.len(), features * shape.head_dim)?;
        let (got, want) = (item.sums.len(), features * shape.head_dim);
        if got != want {
            return Err(Error::Shape { op, what: "sums", got, want });
        }
    }
    let mut tasks = Vec::new();
    for item in items {
        tasks.extend(item.rows.clone().step_by(ROWS).map(|first| (item, first..item.rows.end.min(first + ROWS))));
    }
    let work = items.iter().map(|i| i.rows.len() * i.sums.len()).sum();
    let group = shape.heads / shape.kv_heads;
    let out = Shared::new(out);
    exec.run(tasks.len(), work, &|task| {
        let (item, rows) = &tasks[task];
        for row in rows.clone() {
            let first = row * width + item.kv_head * group * shape.head_dim;
            let len = group * shape.head_dim;
            // SAFETY: a row belongs to one item per KV head, and tasks have different rows or heads.
            let out = unsafe { out.part(first, len) };
            let gate = layer.gates[item.kv_head];
            dispatch(exec.level, Read { features: layer.features, gate, item, q: &q[first..first + len], out });
        }
    });
    Ok(())
}

/// The query heads of one KV head at one row.
struct Read<'a> {
    features: &'a [f32],
    gate: f32,
    item: &'a ReadoutItem<'a>,
    q: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Read<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let dim = self.item.sums.len() / self.item.norms.len().max(1);
        if dim == 0 {
            return;
        }
        let mut phi = Vec::with_capacity(self.item.norms.len());
        for (q, out) in self.q.chunks_exact(dim).zip(self.out.chunks_exact_mut(dim)) {
            phi.clear();
            let mut mass = 0.0;
            for (feature, norm) in self.features.chunks_exact(dim).zip(self.item.norms) {
                let mut sum = L::splat(0.0);
                for (f, q) in feature.chunks(WIDTH).zip(q.chunks(WIDTH)) {
                    sum = L::from_slice(f, 0.0).fma(L::from_slice(q, 0.0), sum);
                }
                let value = sum.sum();
                mass += value * value * norm;
                phi.push(value);
            }
            let scale = self.gate / mass.max(AssociativeLayer::LEAST_MASS);
            for (d, out) in out.chunks_mut(WIDTH).enumerate() {
                let mut sum = L::splat(0.0);
                for (row, &phi) in self.item.sums.chunks_exact(dim).zip(&phi) {
                    let row = &row[d * WIDTH..dim.min((d + 1) * WIDTH)];
                    sum = L::from_slice(row, 0.0).fma(L::splat(phi), sum);
                }
                sum.fma(L::splat(scale), L::from_slice(out, 0.0)).write(out);
            }
        }
    }
}
