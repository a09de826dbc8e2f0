//! Spans of this rank (OpenTelemetry): what it did for each request that is traced, below the
//! coordinator's span of the request.
//!
//! `rank.prefill` goes from the first step of a sequence to the end of the step that sampled its
//! first token, `rank.decode` from there to the end of its last step. Two spans for a request, and
//! not one for each step: a step serves many requests. Requests that are not traced cost one look
//! at an empty table. No attribute holds tokens.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Span, SpanBuilder, SpanContext, TraceContextExt, TraceFlags, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue, SpanId, TraceId, global};
use palimpsest_proto::internal::v1::{SpanParent, StepPlan};

/// Name of the instrumentation.
const SCOPE: &str = "palimpsest";

/// The traced sequences of a rank.
#[derive(Debug)]
pub(crate) struct Traces {
    rank: i64,
    sequences: HashMap<u64, Sequence>,
}

#[derive(Debug)]
struct Sequence {
    parent: SpanContext,
    phase: Phase,
}

/// A span under way.
#[derive(Debug)]
struct Phase {
    name: &'static str,
    from: SystemTime,
    until: SystemTime,
    steps: i64,
    tokens: i64,
    /// Time in steps.
    busy: Duration,
}

impl Traces {
    pub(crate) fn new(rank: usize) -> Self {
        Self {
            rank: i64::try_from(rank).unwrap_or(i64::MAX),
            sequences: HashMap::new(),
        }
    }

    /// A step that began at `began` has been done.
    pub(crate) fn step(&mut self, plan: &StepPlan, began: Instant) {
        let inits = plan
            .sequences
            .iter()
            .filter_map(|step| Some((step.sequence, step.init.as_ref()?.trace.as_ref()?)));
        let mut new = inits.peekable();
        if self.sequences.is_empty() && new.peek().is_none() {
            return;
        }
        let (busy, until) = (began.elapsed(), SystemTime::now());
        let from = until.checked_sub(busy).unwrap_or(until);
        for (id, parent) in new {
            if let Some(parent) = context(parent) {
                self.sequences.insert(
                    id,
                    Sequence {
                        parent,
                        phase: Phase::begin("rank.prefill", from),
                    },
                );
            }
        }
        for step in &plan.sequences {
            let Some(sequence) = self.sequences.get_mut(&step.sequence) else {
                continue;
            };
            let phase = &mut sequence.phase;
            phase.until = until;
            phase.steps += 1;
            phase.tokens += i64::try_from(step.tokens.len()).unwrap_or(i64::MAX);
            phase.busy += busy;
            if step.sample && phase.name == "rank.prefill" {
                let done = std::mem::replace(phase, Phase::begin("rank.decode", until));
                done.record(&sequence.parent, self.rank);
            }
        }
    }

    /// The sequence has no further step.
    pub(crate) fn end(&mut self, id: u64) {
        // A decode without a step was none.
        if let Some(Sequence { parent, phase }) = self
            .sequences
            .remove(&id)
            .filter(|sequence| sequence.phase.steps > 0)
        {
            phase.record(&parent, self.rank);
        }
    }

    /// No sequence has a further step.
    pub(crate) fn end_all(&mut self) {
        let all: Vec<u64> = self.sequences.keys().copied().collect();
        all.into_iter().for_each(|id| self.end(id));
    }
}

impl Phase {
    const fn begin(name: &'static str, from: SystemTime) -> Self {
        Self {
            name,
            from,
            until: from,
            steps: 0,
            tokens: 0,
            busy: Duration::ZERO,
        }
    }

    /// Hands the span to the tracer provider of this process.
    fn record(self, parent: &SpanContext, rank: i64) {
        let attributes = [
            KeyValue::new("palimpsest.rank", rank),
            KeyValue::new("palimpsest.steps", self.steps),
            KeyValue::new("palimpsest.tokens", self.tokens),
            KeyValue::new("palimpsest.busy_seconds", self.busy.as_secs_f64()),
        ];
        let builder = SpanBuilder::from_name(self.name)
            .with_start_time(self.from)
            .with_attributes(attributes);
        let context = Context::new().with_remote_span_context(parent.clone());
        global::tracer(SCOPE)
            .build_with_context(builder, &context)
            .end_with_timestamp(self.until);
    }
}

/// The span that a plan names, if it can be one.
fn context(parent: &SpanParent) -> Option<SpanContext> {
    let trace = TraceId::from_bytes(parent.trace_id[..].try_into().ok()?);
    let span = SpanId::from_bytes(parent.span_id[..].try_into().ok()?);
    let context = SpanContext::new(
        trace,
        span,
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::internal::v1::{SequenceInit, SequenceStep};

    use super::*;

    fn step(sequence: u64, trace: Option<SpanParent>, tokens: u32, sample: bool) -> SequenceStep {
        let init = trace.map(|trace| SequenceInit {
            trace: Some(trace),
            ..Default::default()
        });
        SequenceStep {
            sequence,
            init,
            tokens: (0..tokens).collect(),
            sample,
            ..Default::default()
        }
    }

    fn plan(sequences: Vec<SequenceStep>) -> StepPlan {
        StepPlan {
            sequences,
            ..Default::default()
        }
    }

    #[test]
    fn phases_of_traced_sequences_are_counted_and_others_are_not() {
        let parent = SpanParent {
            trace_id: vec![1; 16].into(),
            span_id: vec![2; 8].into(),
        };
        let broken = SpanParent {
            trace_id: vec![1; 15].into(),
            span_id: vec![2; 8].into(),
        };
        let mut traces = Traces::new(1);
        traces.step(
            &plan(vec![
                step(1, None, 3, true),
                step(2, Some(broken), 3, false),
            ]),
            Instant::now(),
        );
        assert!(traces.sequences.is_empty());
        traces.step(
            &plan(vec![
                step(1, None, 1, true),
                step(3, Some(parent), 16, false),
            ]),
            Instant::now(),
        );
        traces.step(&plan(vec![step(3, None, 5, false)]), Instant::now());
        let phase = &traces.sequences[&3].phase;
        assert_eq!(
            (phase.name, phase.steps, phase.tokens),
            ("rank.prefill", 2, 21)
        );
        traces.step(&plan(vec![step(3, None, 4, true)]), Instant::now());
        traces.step(&plan(vec![step(3, None, 1, true)]), Instant::now());
        let phase = &traces.sequences[&3].phase;
        assert_eq!(
            (phase.name, phase.steps, phase.tokens),
            ("rank.decode", 1, 1)
        );
        traces.end_all();
        assert!(traces.sequences.is_empty());
    }
}
