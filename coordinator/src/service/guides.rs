//! Compiling what guides answers, to refuse what cannot be used before a request waits.

use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::Guide;
use tokio::time::Instant;

use super::parts::{Choice, CompiledGuide};
use super::{Call, Service};
use crate::pool;
use crate::request::{self, GuidedCalls, Prompt};

impl Service {
    /// Compiles the guides of the choices, to see whether they can be used. Choices of one call
    /// mostly have one guide.
    pub(super) async fn compile_guides(
        &self,
        call: &Call,
        choices: impl Iterator<Item = &mut Choice>,
    ) -> Result<(), RequestError> {
        let mut compiled: Option<CompiledGuide> = None;
        for Choice { checked, .. } in choices {
            let Some(guide) = checked.guide.clone() else {
                continue;
            };
            let known = compiled.take().filter(|known| known.guide == guide);
            let known = match known {
                Some(known) => known,
                None => self.compile_guide(call, guide, checked.deadline).await?,
            };
            checked.guide_warnings.clone_from(&known.warnings);
            compiled = Some(known);
        }
        Ok(())
    }

    async fn compile_guide(
        &self,
        call: &Call,
        guide: Guide,
        deadline: Instant,
    ) -> Result<CompiledGuide, RequestError> {
        let model = self.model.clone();
        // Few bytes may take long: never in place.
        let bytes = guide.bytes().max(pool::INLINE_BYTES + 1);
        let work = move || {
            let warnings = request::compile_guide(&guide, &model)?;
            Ok(CompiledGuide { guide, warnings })
        };
        let charge = call.charge.clone();
        self.pool.run(bytes, deadline, charge, work).await
    }

    /// Compiles what the tools of a prompt ask of calls in its answers.
    pub(super) async fn compile_calls(
        &self,
        call: &Call,
        prompt: &Prompt,
        choices: &[Choice],
    ) -> Result<GuidedCalls, RequestError> {
        let (Some(format), Some(Choice { checked, .. })) = (&prompt.format, choices.first()) else {
            return Ok(GuidedCalls::default());
        };
        // Choices of one prompt have one guide, or calls beside it are not looked for.
        let answer = checked.guide.clone();
        let is_shared = choices.iter().all(|one| one.checked.guide == answer);
        if !is_shared || !format.is_strict() && answer.is_none() {
            return Ok(GuidedCalls::default());
        }
        let (format, model, deadline) = (format.clone(), self.model.clone(), checked.deadline);
        let bytes = format.asked.iter().map(|tool| tool.parameters.len()).sum();
        // Few bytes may take long: never in place.
        let bytes = usize::max(bytes, pool::INLINE_BYTES + 1);
        let work = move || request::compile_calls(&format, answer.as_ref(), &model);
        self.pool
            .run(bytes, deadline, call.charge.clone(), work)
            .await
    }
}
