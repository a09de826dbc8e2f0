//! Faults for tests: a rank that diverges from the others of its group, or whose guides are slow.

use std::time::Duration;

use palimpsest_kernels::Backend;
use palimpsest_proto::internal::v1 as internal;

use super::Runner;

impl<B: Backend> Runner<B> {
    /// Lets this rank compute something that the others do not in these steps of the model, counted
    /// from 1 over all epochs.
    pub fn diverge_at(&mut self, steps: Vec<u64>) {
        self.diverge_at = steps;
    }

    /// Holds the masks of guides back, each sequence's by these times in turn.
    pub fn delay_masks(&mut self, delays: &[Duration]) {
        self.guides.delay(delays);
    }

    /// Diverges in the present step, if that was asked for.
    pub(super) fn diverge(&mut self, plan: &internal::StepPlan) {
        if self.diverge_at.contains(&self.steps) {
            tracing::warn!(
                "diverging in epoch {}, step {}, as was asked",
                plan.epoch,
                plan.step
            );
            self.decoder.perturb_next_step();
        }
    }
}
