//! Traces: the spans of this project, as OpenTelemetry knows them.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer, TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tonic::Code;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The name of the span that is a call. It has the fields `service`, `method`
/// and `request_id` from the start, later `trace_id` and `tenant`.
pub(crate) const CALL: &str = "call";

/// How long the last spans may take on their way to the collector.
const FLUSH: Duration = Duration::from_secs(2);
/// The name of a program that has none (OpenTelemetry, resource conventions).
const UNNAMED: &str = "unknown_service";

/// The traces of a process. Without a collector every call has a trace id all
/// the same, for the log and for whom it calls.
#[derive(Clone, Debug)]
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// Spans are sent to the collector in the background: one that does not
    /// answer costs spans, never calls. What else there is to set comes from
    /// the variables that OpenTelemetry specifies. Call it within the runtime.
    pub(crate) fn new(endpoint: Option<&str>) -> Result<Self, ExporterBuildError> {
        let provider = SdkTracerProvider::builder().with_resource(resource());
        let provider = match endpoint {
            None => provider,
            Some(endpoint) => {
                let exporter =
                    SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
                provider.with_batch_exporter(exporter)
            }
        };
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(provider.build()))
    }

    pub(crate) fn tracer(&self) -> Calls {
        Calls(self.0.tracer("crm"))
    }

    /// Sends what is left, if the collector takes it soon. It blocks.
    pub(crate) fn flush(&self) {
        // The exporter has told the log what went wrong.
        let _flushed = self.0.shutdown_with_timeout(FLUSH);
    }
}

/// What the process is: as `OTEL_SERVICE_NAME` says, or the program's name.
fn resource() -> Resource {
    let told = Resource::builder().build();
    let name = told.get(&Key::from_static_str("service.name"));
    if name.is_some_and(|name| !name.as_str().starts_with(UNNAMED)) {
        return told;
    }
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_name()?.to_str());
    Resource::builder().with_service_name(program.unwrap_or("crm").to_owned()).build()
}

/// Names the spans of calls as OpenTelemetry's conventions for RPC do.
#[derive(Clone, Debug)]
pub(crate) struct Calls(SdkTracer);

impl Tracer for Calls {
    type Span = opentelemetry_sdk::trace::Span;

    fn build_with_context(&self, mut span: SpanBuilder, parent: &Context) -> Self::Span {
        if span.name == CALL {
            span.span_kind = Some(SpanKind::Server);
            let attributes = span.attributes.get_or_insert_default();
            let method = attributes.iter().position(|attribute| attribute.key.as_str() == "method");
            if let Some(method) = method.map(|at| attributes.swap_remove(at).value.to_string()) {
                attributes.push(KeyValue::new("rpc.system", "grpc"));
                if let Some((service, method)) = method.split_once('/') {
                    attributes.push(KeyValue::new("rpc.service", service.to_owned()));
                    attributes.push(KeyValue::new("rpc.method", method.to_owned()));
                }
                span.name = method.into();
            }
        }
        self.0.build_with_context(span, parent)
    }
}

/// Makes a call's span part of its caller's trace (W3C Trace Context), or the
/// first of a new one.
pub(crate) fn begin(span: &Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        let caller = TraceContextPropagator::new().extract(&Headers(headers));
        // Where nothing is traced there is nothing to set.
        let _set = span.set_parent(caller);
    }
    let trace_id = span.context().span().span_context().trace_id();
    if trace_id != opentelemetry::TraceId::INVALID {
        span.record("trace_id", tracing::field::display(trace_id));
    }
}

/// Notes how a call ended.
pub(crate) fn end(span: &Span, code: Code) {
    span.set_attribute("rpc.grpc.status_code", i64::from(i32::from(code)));
    // A refusal is the caller's affair (OpenTelemetry, conventions for RPC).
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.set_status(Status::error(""));
    }
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
