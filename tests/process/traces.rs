//! Spans, as a collector receives them.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use palimpsest_tests::tiny_model;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::group::{Process, ask, await_that, free, is_ok};
use crate::serving::Serving;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("no panic").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    let found = span
        .attributes
        .iter()
        .find(|attribute| attribute.key == name)?;
    found.value.as_ref()?.value.as_ref()
}

/// A collector that listens, and its address.
async fn collecting() -> (Collector, String) {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let service = TraceServiceServer::new(collector.clone());
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    (collector, endpoint)
}

impl Collector {
    fn received(&self) -> Vec<ExportTraceServiceRequest> {
        self.0.lock().expect("no panic").clone()
    }
}

fn spans(received: &[ExportTraceServiceRequest]) -> Vec<&Span> {
    let scopes = received
        .iter()
        .flat_map(|request| &request.resource_spans)
        .flat_map(|spans| &spans.scope_spans);
    scopes.flat_map(|scope| &scope.spans).collect()
}

/// The spans of the rank, below the request's: one for each phase.
fn check_rank(spans: &[&Span], request: &Span) {
    let count = |name: &str| match attribute(request, name) {
        Some(Value::IntValue(count)) => *count,
        other => panic!("{name} is {other:?}"),
    };
    let (prompt, answer) = (
        count("gen_ai.usage.input_tokens"),
        count("gen_ai.usage.output_tokens"),
    );
    // The last token is sampled and not fed.
    for (name, tokens) in [("rank.prefill", prompt), ("rank.decode", answer - 1)] {
        let found: Vec<&&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name}: {spans:?}");
        let span = found[0];
        assert_eq!(
            (&span.trace_id, &span.parent_span_id),
            (&request.trace_id, &request.span_id),
            "{name}"
        );
        assert_eq!(
            attribute(span, "palimpsest.rank"),
            Some(&Value::IntValue(0))
        );
        assert_eq!(
            attribute(span, "palimpsest.tokens"),
            Some(&Value::IntValue(tokens)),
            "{name}"
        );
        let Some(Value::IntValue(steps)) = attribute(span, "palimpsest.steps") else {
            panic!("{span:?}")
        };
        assert!(
            (1..=tokens).contains(steps),
            "{steps} steps for {tokens} tokens"
        );
        let Some(Value::DoubleValue(busy)) = attribute(span, "palimpsest.busy_seconds") else {
            panic!("{span:?}")
        };
        let length = (span.end_time_unix_nano - span.start_time_unix_nano) as f64 / 1e9;
        assert!(
            *busy > 0.0 && *busy <= length + 1e-3,
            "{name}: {busy} s of {length} s"
        );
        assert!(
            span.start_time_unix_nano >= request.start_time_unix_nano,
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_traced_from_the_callers_header_to_its_last_token() {
    let (collector, endpoint) = collecting().await;
    let log = tokio::task::spawn_blocking(move || {
        let serving = Serving::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
        let headers = format!("traceparent: 00-{TRACE}-{CALLER}-01\r\nx-request-id: mine\r\n");
        let body =
            r#"{"prompt": "Geheimnis", "max_tokens": 40, "ignore_eos": true, "stream": true}"#;
        let answer = serving.send("POST", "/v1/completions", &headers, body);
        assert!(answer.contains("[DONE]"), "{answer}");
        // What it has not sent by then it sends before it ends.
        serving.stop()
    });
    let log = log.await.expect("no panic");
    let received = collector.received();
    assert!(!format!("{received:?}").contains("Geheimnis") && !log.contains("Geheimnis"));
    let spans = spans(&received);
    let named = |name: &str| {
        *spans
            .iter()
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("no {name}: {log}"))
    };
    let request = named("request");
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_span_id)),
        (TRACE.to_owned(), CALLER.to_owned())
    );
    assert_eq!(
        attribute(request, "palimpsest.request_id"),
        Some(&Value::StringValue("mine".into()))
    );
    assert_eq!(
        attribute(request, "gen_ai.usage.output_tokens"),
        Some(&Value::IntValue(40))
    );
    let mut at = request.start_time_unix_nano;
    for name in ["queue", "prefill", "decode"] {
        let span = named(name);
        assert_eq!(
            (&span.trace_id, &span.parent_span_id),
            (&request.trace_id, &request.span_id),
            "{name}"
        );
        assert!(
            at.abs_diff(span.start_time_unix_nano) < 1_000,
            "{name} begins where the one before it ends"
        );
        assert!(
            span.end_time_unix_nano >= span.start_time_unix_nano,
            "{name}"
        );
        at = span.end_time_unix_nano;
    }
    assert!(at <= request.end_time_unix_nano);
    check_rank(&spans, request);
    // The log says which trace the request is in, and the request in each of its lines.
    let traced = log
        .lines()
        .find(|line| line.contains(TRACE))
        .expect("a line with the trace");
    let line: serde_json::Value = serde_json::from_str(traced).expect("JSON");
    assert_eq!(line["fields"]["request"], "mine", "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_in_another_process_traces_below_the_request() {
    let (collector, endpoint) = collecting().await;
    let asked = tokio::task::spawn_blocking(move || {
        let (model, env) = (
            tiny_model(1),
            [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())],
        );
        let (rank_at, grpc, http) = (free(), free(), free());
        let rank = Process::loaded_rank(&rank_at, model.path().to_str().expect("UTF-8"), &env);
        let args = [
            "coordinator",
            "--ranks",
            &rank_at,
            "--listen",
            &grpc,
            "--http",
            &http,
        ];
        let coordinator = Process::start(&args, &env);
        await_that(Instant::now(), || is_ok(&http, "/readyz"));
        let headers = format!("traceparent: 00-{TRACE}-{CALLER}-01\r\n");
        let body = r#"{"prompt": "Geheimnis", "max_tokens": 5, "ignore_eos": true}"#;
        let answer = ask(&http, "POST", "/v1/completions", &headers, body).expect("an answer");
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        // A caller that does not want to be traced is traced nowhere.
        let headers = format!("traceparent: 00-{TRACE}-{CALLER}-00\r\n");
        ask(&http, "POST", "/v1/completions", &headers, body).expect("an answer");
        coordinator.stop();
        rank.stop();
    });
    asked.await.expect("no panic");
    let received = collector.received();
    let spans = spans(&received);
    let requests: Vec<&&Span> = spans.iter().filter(|span| span.name == "request").collect();
    assert_eq!(requests.len(), 1, "{spans:?}");
    assert_eq!(hex(&requests[0].trace_id), TRACE);
    check_rank(&spans, requests[0]);
}

#[test]
fn nothing_is_traced_when_no_collector_is_named() {
    let serving = Serving::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]);
    let answer = serving.send(
        "POST",
        "/v1/completions",
        "",
        r#"{"prompt": "a", "max_tokens": 2}"#,
    );
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let log = serving.stop();
    assert!(
        !log.contains("trace_id") && log.contains("\"ended\""),
        "{log}"
    );
}
