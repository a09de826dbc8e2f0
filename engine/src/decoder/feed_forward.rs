//! The feed-forward part of a layer: one network, or experts that tokens are dealt to.
//!
//! Experts are dealt to ranks by column: each rank holds the same columns of every expert. So a
//! step costs every rank the same whichever experts its tokens go to, where ranks that held whole
//! experts would wait for the one whose experts are wanted most. Outputs of experts are added in
//! fixed point, over experts and ranks alike ([`palimpsest_kernels::fixed`]): the sum has the same
//! bits in any order, so a token gets the same state in any batch and on any number of ranks.
//! A product runs over the rows of one expert together, and experts without rows are not read.

use palimpsest_kernels::{Backend, fixed};

use super::Decoder;
use super::scratch::{Gates, Routing};
use crate::error::Result;
use crate::layers::experts::{Assigned, assign};
use crate::layers::{FeedForward, Gated};
use crate::peers::RowParallel;

impl<B: Backend> Decoder<B> {
    /// The feed-forward part of a layer, added to the residual stream.
    pub(super) fn feed_forward(&mut self, index: usize, rows: usize) -> Result<()> {
        let (b, layer, s) = (&self.backend, &self.layers[index], &mut self.scratch);
        let (eps, hidden) = (self.config.rms_eps, self.config.hidden);
        let units = &self.shard.ffn_units;
        b.rms_norm(&s.x, &layer.ffn_norm, eps, rows, &mut s.h)?;
        match &layer.feed_forward {
            FeedForward::Dense(gated) => {
                s.gates.fill(b, gated, &s.h, rows)?;
                let product = RowParallel {
                    matrix: &gated.down,
                    x: &s.gates.act,
                    rows,
                    width: hidden,
                    units,
                };
                self.peers.row_parallel(b, &product, &mut s.h)?;
            }
            FeedForward::Routed {
                router,
                router_bias,
                experts,
                shape,
            } => {
                let bias = router_bias.as_ref();
                b.matmul(router, &s.h, rows, bias, &mut s.routing.logits)?;
                let mut logits = vec![0.0; rows * shape.count];
                b.download(&s.routing.logits, 0, &mut logits)?;
                let assigned = assign(&logits, *shape);
                let step = RoutedStep {
                    backend: b,
                    experts,
                    units,
                    hidden,
                    leads: self.shard.place.rank == 0,
                };
                s.routing.sums.clear();
                s.routing.sums.resize(rows * hidden, 0);
                step.add_all(&assigned, &s.h, &mut s.gates, &mut s.routing)?;
                self.peers.sum_shares(b, &mut s.routing.sums, &mut s.h)?;
            }
        }
        s.add(b, layer.post_ffn_norm.as_ref(), eps, rows)
    }

    /// Bytes of experts that a token does not go to, over all layers.
    pub(super) fn idle_bytes(&self) -> usize {
        let idle = |layer: &crate::layers::Layer<B>| layer.feed_forward.idle_bytes(&self.backend);
        self.layers.iter().map(idle).sum()
    }
}

/// Experts at work on the rows of a step.
struct RoutedStep<'a, B: Backend> {
    backend: &'a B,
    experts: &'a [Gated<B>],
    /// Where the units among the feed-forward columns end.
    units: &'a [usize],
    /// `E`.
    hidden: usize,
    /// Whether this rank adds what all ranks have: biases of outputs.
    leads: bool,
}

impl<B: Backend> RoutedStep<'_, B> {
    /// Adds this rank's share of every expert's output to the sums of `routing`, in fixed point.
    /// `h`: `[T, E]`.
    fn add_all(
        &self,
        assigned: &[Assigned],
        h: &B::Buffer,
        gates: &mut Gates<B>,
        routing: &mut Routing<B>,
    ) -> Result<()> {
        let (b, hidden) = (self.backend, self.hidden);
        for (gated, assigned) in self.experts.iter().zip(assigned) {
            let count = assigned.rows.len();
            if count == 0 {
                continue;
            }
            b.gather_rows(h, hidden, &assigned.rows, &mut routing.rows)?;
            gates.fill(b, gated, &routing.rows, count)?;
            // The down projection is linear: its inputs are weighted in the place of its outputs,
            // of which every rank has a share only.
            gates.scale(b, &assigned.weights)?;
            routing.share.resize(count * hidden, 0);
            let share = &mut routing.share[..count * hidden];
            b.matmul_share(&gated.down, &gates.act, count, self.units, share)?;
            let bias = gated.biases.as_ref().filter(|_| self.leads);
            let rows = assigned.rows.iter().zip(&assigned.weights);
            for ((row, weight), share) in rows.zip(share.chunks_exact(hidden)) {
                let sums = &mut routing.sums[row * hidden..][..hidden];
                sums.iter_mut()
                    .zip(share)
                    .for_each(|(sum, share)| *sum += share);
                let Some(biases) = bias else { continue };
                sums.iter_mut()
                    .zip(&biases.down)
                    .for_each(|(sum, bias)| *sum += fixed::from_f32(weight * bias));
            }
        }
        Ok(())
    }
}
