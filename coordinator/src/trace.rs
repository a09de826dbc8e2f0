//! Spans of a request (OpenTelemetry), from the caller's `traceparent` on.
//!
//! ```text
//! caller's span ─▶ request ┬▶ queue    arrival to the first step
//!                          ├▶ prefill  first step to the first token
//!                          └▶ decode   first token to the last
//! ```
//! They are made when the request has ended, from times that were taken anyway: nothing is traced on the path of a token. Without a
//! global tracer provider they cost nothing. No attribute holds text of a prompt or an answer.

use std::time::SystemTime;

use opentelemetry::{
    Context, KeyValue, global,
    trace::{
        Span, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        Tracer,
    },
};
use tokio::time::Instant;

/// Name of the instrumentation.
const SCOPE: &str = "palimpsest";

/// The span that a caller names (W3C Trace Context, `traceparent`); `None` if it names none that can be one.
pub fn parent(traceparent: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent?.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    // Later versions may add parts; 00 has four, and ff is none.
    let is_known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    if !is_known || !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

/// What is told of a request that has ended.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub parent: Option<&'a SpanContext>,
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
    pub(crate) fn record(&self) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let at = |instant: Instant| wall.checked_sub(now.saturating_duration_since(instant)).unwrap_or(wall);
        let tracer = global::tracer(SCOPE);
        let context = Context::new();
        let context = match self.parent {
            Some(parent) => context.with_remote_span_context(parent.clone()),
            None => context,
        };
        let request = SpanBuilder::from_name("request")
            .with_kind(SpanKind::Server)
            .with_start_time(at(self.arrived))
            .with_attributes(self.attributes());
        let mut request = tracer.build_with_context(request, &context);
        if !request.is_recording() {
            return;
        }
        if self.failed {
            request.set_status(Status::error(self.outcome));
        }
        let context = context.with_span(request);
        let phases = [
            ("queue", Some(self.arrived), self.started),
            ("prefill", self.started, self.first),
            ("decode", self.first, self.last),
        ];
        for (name, from, until) in phases {
            let Some(from) = from else { continue };
            let phase = SpanBuilder::from_name(name).with_start_time(at(from));
            // A phase that never ended ended with the request.
            tracer.build_with_context(phase, &context).end_with_timestamp(until.map_or(wall, at));
        }
        context.span().end_with_timestamp(wall);
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
        let found = parent(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")).expect("valid");
        assert_eq!(found.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(found.span_id().to_string(), "00f067aa0ba902b7");
        assert!(found.is_sampled() && found.is_remote());
        assert!(parent(Some("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more")).is_some());
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
