//! Spans, as a collector receives them.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

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
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.as_ref()?.value.as_ref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_traced_from_the_callers_header_to_its_last_token() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let service = TraceServiceServer::new(collector.clone());
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
    let log = tokio::task::spawn_blocking(move || {
        let serving = Serving::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
        let headers = format!("traceparent: 00-{TRACE}-{CALLER}-01\r\nx-request-id: mine\r\n");
        let body = r#"{"prompt": "Geheimnis", "max_tokens": 40, "ignore_eos": true, "stream": true}"#;
        let answer = serving.send("POST", "/v1/completions", &headers, body);
        assert!(answer.contains("[DONE]"), "{answer}");
        // What it has not sent by then it sends before it ends.
        serving.stop()
    });
    let log = log.await.expect("no panic");
    let received = collector.0.lock().expect("no panic").clone();
    assert!(!format!("{received:?}").contains("Geheimnis") && !log.contains("Geheimnis"));
    let scopes = received.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
    let spans: Vec<&Span> = scopes.flat_map(|scope| &scope.spans).collect();
    let named = |name: &str| *spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}: {log}"));
    let request = named("request");
    assert_eq!((hex(&request.trace_id), hex(&request.parent_span_id)), (TRACE.to_owned(), CALLER.to_owned()));
    assert_eq!(attribute(request, "palimpsest.request_id"), Some(&Value::StringValue("mine".into())));
    assert_eq!(attribute(request, "gen_ai.usage.output_tokens"), Some(&Value::IntValue(40)));
    let mut at = request.start_time_unix_nano;
    for name in ["queue", "prefill", "decode"] {
        let span = named(name);
        assert_eq!((&span.trace_id, &span.parent_span_id), (&request.trace_id, &request.span_id), "{name}");
        assert!(at.abs_diff(span.start_time_unix_nano) < 1_000, "{name} begins where the one before it ends");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{name}");
        at = span.end_time_unix_nano;
    }
    assert!(at <= request.end_time_unix_nano);
    // The log says which trace the request is in, and the request in each of its lines.
    let traced = log.lines().find(|line| line.contains(TRACE)).expect("a line with the trace");
    let line: serde_json::Value = serde_json::from_str(traced).expect("JSON");
    assert_eq!(line["fields"]["request"], "mine", "{line}");
}

#[test]
fn nothing_is_traced_when_no_collector_is_named() {
    let serving = Serving::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]);
    let answer = serving.send("POST", "/v1/completions", "", r#"{"prompt": "a", "max_tokens": 2}"#);
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let log = serving.stop();
    assert!(!log.contains("trace_id") && log.contains("\"ended\""), "{log}");
}
