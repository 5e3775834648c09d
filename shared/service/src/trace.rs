//! Traces: the spans of this project, as OpenTelemetry knows them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceState,
    Tracer, TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SdkTracer, SdkTracerProvider};
use tonic::Code;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The name of the span that is a call.
const CALL: &str = "call";
/// How long the last spans may take on their way to the collector.
const FLUSH: Duration = Duration::from_secs(2);
/// The name of a program that has none (OpenTelemetry, resource conventions).
const UNNAMED: &str = "unknown_service";

/// Whether spans go to a collector. Where they do not, none are made: they cost
/// a fifth of a small call.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// The traces of a process.
#[derive(Clone, Debug)]
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// Spans are sent to the collector in the background: one that does not
    /// answer costs spans, never calls. What else there is to set comes from
    /// the variables that OpenTelemetry specifies. Call it within the runtime.
    pub(crate) fn start(endpoint: &str) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let provider = SdkTracerProvider::builder().with_resource(resource());
        IS_ON.store(true, Ordering::Relaxed);
        Ok(Self(provider.with_batch_exporter(exporter).build()))
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

/// Begins the span of a call, in its caller's trace (W3C Trace Context) or as
/// the first of a new one. The context is for whom the call calls: there is a
/// trace id, for all their logs, without a collector, too.
pub(crate) fn begin(
    service: &'static str,
    method: &str,
    request_id: &str,
    headers: &HeaderMap,
) -> (Span, Context) {
    let is_on = IS_ON.load(Ordering::Relaxed);
    let caller = caller(headers);
    let context = caller.clone().unwrap_or_else(|| if is_on { Context::new() } else { untraced() });
    let trace_id =
        |context: &Context| tracing::field::display(context.span().span_context().trace_id());
    // Of the highest level, so that no line of a call is without its ids.
    let span = tracing::error_span!(
        CALL,
        service,
        method,
        request_id,
        trace_id = context.has_active_span().then(|| trace_id(&context)),
        tenant = tracing::field::Empty,
    );
    if !is_on {
        return (span, context);
    }
    // It fails only where nothing is traced.
    let _set = span.set_parent(context);
    let context = span.context();
    if caller.is_none() {
        span.record("trace_id", trace_id(&context));
    }
    (span, context)
}

/// What the caller says of its trace, if that is as it should be.
fn caller(headers: &HeaderMap) -> Option<Context> {
    headers.get("traceparent")?;
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let is_valid = context.span().span_context().is_valid();
    is_valid.then_some(context)
}

/// A trace that nobody records.
fn untraced() -> Context {
    let ids = RandomIdGenerator::default();
    let (trace_id, span_id) = (ids.new_trace_id(), ids.new_span_id());
    let state = TraceState::default();
    let span = SpanContext::new(trace_id, span_id, TraceFlags::default(), false, state);
    Context::new().with_remote_span_context(span)
}

/// Notes how a call ended.
pub(crate) fn end(span: &Span, code: Code) {
    if !IS_ON.load(Ordering::Relaxed) {
        return;
    }
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
