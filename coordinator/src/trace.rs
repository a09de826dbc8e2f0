//! Spans of a request (OpenTelemetry), from the caller's `traceparent` on.
//!
//! ```text
//! caller's span ─▶ request ┬▶ queue         arrival to the first step
//!                          ├▶ prefill       first step to the first token
//!                          ├▶ decode        first token to the last
//!                          ├▶ rank.prefill  of each rank: its first step to the first token
//!                          └▶ rank.decode   of each rank: the first token to its last step
//! ```
//! The request's span begins when the request is accepted, because ranks are told of it. The others
//! are made when the request has ended, from times that were taken anyway: nothing is traced on the
//! path of a token. Without a global tracer provider they cost nothing. No attribute holds text of
//! a prompt or an answer.

use std::time::SystemTime;

use opentelemetry::trace::{
    Span, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue, global};
use palimpsest_proto::internal::v1::SpanParent;
use tokio::time::Instant;

/// Name of the instrumentation.
const SCOPE: &str = "palimpsest";

/// The span that a caller names (W3C Trace Context, `traceparent`); `None` if it names none that
/// can be one.
pub fn parent(traceparent: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent?.trim().split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    // Later versions may add parts; 00 has four, and ff is none.
    let is_known =
        is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    if !is_known || !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

/// The span of a request that is traced. Dropped without [`Ended::record`], it ends as it is.
#[derive(Debug)]
pub(crate) struct RequestSpan {
    context: Context,
    /// A moment and the time of day then: all times of the request are counted from it, so that
    /// phases meet.
    anchor: (Instant, SystemTime),
}

impl RequestSpan {
    /// Begins the span of a request that came at `arrived`; `None` when nobody wants it.
    pub(crate) fn begin(parent: Option<&SpanContext>, arrived: Instant) -> Option<Self> {
        let context = Context::new();
        let context = match parent {
            Some(parent) => context.with_remote_span_context(parent.clone()),
            None => context,
        };
        let now = SystemTime::now();
        let anchor = (arrived, now.checked_sub(arrived.elapsed()).unwrap_or(now));
        let builder = SpanBuilder::from_name("request")
            .with_kind(SpanKind::Server)
            .with_start_time(anchor.1);
        let span = global::tracer(SCOPE).build_with_context(builder, &context);
        span.is_recording().then(|| Self {
            context: context.with_span(span),
            anchor,
        })
    }

    /// The time of day at `instant`, which is not before the request.
    fn at(&self, instant: Instant) -> SystemTime {
        self.anchor.1 + instant.saturating_duration_since(self.anchor.0)
    }

    /// What ranks are told of it.
    pub(crate) fn parent(&self) -> SpanParent {
        let span = self.context.span().span_context().clone();
        let (trace_id, span_id) = (
            span.trace_id().to_bytes().to_vec(),
            span.span_id().to_bytes().to_vec(),
        );
        SpanParent {
            trace_id: trace_id.into(),
            span_id: span_id.into(),
        }
    }

    /// The request was not taken.
    pub(crate) fn refused(self, why: &'static str) {
        self.context
            .span()
            .set_attribute(KeyValue::new("palimpsest.outcome", why));
        self.context.span().set_status(Status::error(why));
    }
}

/// What is told of a request that has ended.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub request: &'a str,
    pub model: &'a str,
    pub outcome: &'static str,
    pub failed: bool,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    pub budget: u32,
    pub policy: &'a str,
    pub arrived: Instant,
    pub started: Option<Instant>,
    pub first: Option<Instant>,
    pub last: Option<Instant>,
}

impl Ended<'_> {
    /// Hands the spans of the request to the tracer provider of this process.
    pub(crate) fn record(&self, request: &RequestSpan) {
        let at = |instant| request.at(instant);
        let (tracer, context, end) = (global::tracer(SCOPE), &request.context, at(Instant::now()));
        let span = context.span();
        span.set_attributes(self.attributes());
        if self.failed {
            span.set_status(Status::error(self.outcome));
        }
        let phases = [
            ("queue", Some(self.arrived), self.started),
            ("prefill", self.started, self.first),
            ("decode", self.first, self.last),
        ];
        for (name, from, until) in phases {
            let Some(from) = from else { continue };
            let phase = SpanBuilder::from_name(name).with_start_time(at(from));
            // A phase that never ended ended with the request.
            tracer
                .build_with_context(phase, context)
                .end_with_timestamp(until.map_or(end, at));
        }
        span.end_with_timestamp(end);
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
        vec![
            KeyValue::new("palimpsest.request_id", self.request.to_owned()),
            KeyValue::new("palimpsest.outcome", self.outcome),
            KeyValue::new("palimpsest.kv.budget", i64::from(self.budget)),
            KeyValue::new("palimpsest.kv.policy", self.policy.to_owned()),
            KeyValue::new("gen_ai.request.model", self.model.to_owned()),
            KeyValue::new("gen_ai.usage.input_tokens", count(self.prompt_tokens)),
            KeyValue::new("gen_ai.usage.output_tokens", count(self.generated_tokens)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_as_the_recommendation_writes_it() {
        let found = parent(Some(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ))
        .expect("valid");
        assert_eq!(
            found.trace_id().to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(found.span_id().to_string(), "00f067aa0ba902b7");
        assert!(found.is_sampled() && found.is_remote());
        assert!(
            parent(Some(
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more"
            ))
            .is_some()
        );
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47é6-00f067aa0ba902b7-01",
        ] {
            assert!(parent(Some(bad)).is_none(), "{bad}");
        }
    }
}
