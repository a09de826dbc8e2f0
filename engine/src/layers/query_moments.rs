//! Running sums over queries, for the policies that look at their distribution.

use palimpsest_kernels::{Backend, QkvShape};

use crate::error::Result;
use crate::layers::attention::Span;
use crate::policy::expected::{Moments, SKIPPED};
use crate::rope::Angles;

/// What the rows of a step have in a layer.
pub struct QueryRows<'a, B: Backend> {
    /// Decoder layer.
    pub layer: usize,
    /// Head layout.
    pub shape: QkvShape,
    /// Rows of the step.
    pub rows: usize,
    /// Queries, rotated `[T, H, D]`.
    pub queries: &'a B::Buffer,
    /// How they are rotated.
    pub angles: &'a Angles,
}

/// Adds the step's queries, turned back to before rotation, to the moments of the sequences whose
/// policy reads them. Others cost nothing: queries leave the device only if one does.
///
/// # Errors
/// Those of the kernels.
pub fn add<B: Backend>(backend: &B, rows: &QueryRows<'_, B>, spans: &mut [Span<'_>]) -> Result<()> {
    if !spans.iter().any(|span| span.cache.policy.reads_queries()) {
        return Ok(());
    }
    let QkvShape {
        heads,
        kv_heads,
        head_dim,
    } = rows.shape;
    let (group, half) = (heads / kv_heads, head_dim / 2);
    let mut host = vec![0.0; rows.rows * heads * head_dim];
    backend.download(rows.queries, 0, &mut host)?;
    let mut query = vec![0.0; head_dim];
    for span in spans
        .iter_mut()
        .filter(|span| span.cache.policy.reads_queries())
    {
        let skipped = SKIPPED
            .saturating_sub(span.first_position())
            .min(span.rows.len() as u64) as usize;
        for row in span.rows.start + skipped..span.rows.end {
            let (cos, sin) = (
                &rows.angles.cos[row * half..][..half],
                &rows.angles.sin[row * half..][..half],
            );
            for head in 0..heads {
                let rotated = &host[(row * heads + head) * head_dim..][..head_dim];
                turn_back(rotated, (cos, sin), &mut query);
                let moments = &mut span.cache.heads[rows.layer * kv_heads + head / group].moments;
                moments.resize(group * Moments::len(head_dim), 0.0);
                Moments::add(
                    &mut moments[head % group * Moments::len(head_dim)..][..Moments::len(head_dim)],
                    &query,
                );
            }
        }
    }
    Ok(())
}

fn turn_back(rotated: &[f32], (cos, sin): (&[f32], &[f32]), query: &mut [f64]) {
    let (low, high) = rotated.split_at(cos.len());
    let (to_low, to_high) = query.split_at_mut(cos.len());
    for i in 0..cos.len() {
        let [a, b, c, s] = [low[i], high[i], cos[i], sin[i]].map(f64::from);
        to_low[i] = a * c + b * s;
        to_high[i] = b * c - a * s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_back_undoes_the_rotation() {
        let angle = 0.7f32;
        let (x, y) = (0.25f32, -1.5f32);
        let rotated = [
            x * angle.cos() - y * angle.sin(),
            y * angle.cos() + x * angle.sin(),
        ];
        let mut query = [0.0; 2];
        turn_back(&rotated, (&[angle.cos()], &[angle.sin()]), &mut query);
        assert!((query[0] - f64::from(x)).abs() < 1e-6 && (query[1] - f64::from(y)).abs() < 1e-6);
    }
}
