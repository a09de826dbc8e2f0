//! Spans to a collector over OTLP/gRPC, when the standard variables name one.

use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

/// Either of them switches traces on. The other variables of the standard (headers, timeout,
/// sampler, service name) are honoured as well.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// Sends what is left when it is dropped.
pub struct Traces(SdkTracerProvider);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Starts to export, if a collector is named. Needs a tokio runtime; what cannot be sent is dropped
/// and logged.
///
/// # Errors
/// If the variables cannot be used.
pub fn start() -> anyhow::Result<Option<Traces>> {
    let named = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    if !ENDPOINTS.iter().any(|name| named(name)) {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_tonic().build()?;
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let mut resource = Resource::builder().with_attribute(version);
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("palimpsest");
    }
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    Ok(Some(Traces(provider)))
}
