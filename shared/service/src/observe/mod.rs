//! The outermost layer: gives each call its id and span, turns the gRPC
//! library's own errors and panics into this project's, and notes the outcome
//! in the log, the metrics and the trace.

use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use crm_clock::Clock;
use crm_error::{ApiError, normalize};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use metrics::{Gauge, Histogram};
use opentelemetry::trace::FutureExt as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

use crate::trace;

/// The metadata key of a call's id, in requests and in answers.
const REQUEST_ID: &str = "x-request-id";
/// How many status codes there are (gRPC, status codes).
const CODES: usize = 17;
/// The methods beside this project's own, which every stack serves.
const ROUTINE: [&str; 4] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// The name of every method that is not served.
const OTHER: &str = "other";

/// Adds [`Observe`] to a service.
#[derive(Clone, Debug)]
pub(crate) struct ObserveLayer(Arc<Observed>);

/// What is observed of a service.
#[derive(Debug)]
struct Observed {
    service: &'static str,
    clock: Clock,
    /// By `package.Service/Method`: no caller can make another label.
    methods: HashMap<String, Arc<Method>>,
    other: Arc<Method>,
    in_flight: Gauge,
}

/// A method and its metrics, which are looked up once.
#[derive(Debug)]
struct Method {
    service: &'static str,
    name: String,
    /// Health checks and reflection come all the time and tell little.
    is_routine: bool,
    /// By status code; each from its first call on.
    durations: [OnceLock<Histogram>; CODES],
}

impl ObserveLayer {
    /// Observes the methods of a service, each as `package.Service/Method`. The
    /// recorder of metrics is there already.
    pub(crate) fn new<'m>(
        service: &'static str,
        methods: impl Iterator<Item = &'m str>,
        clock: Clock,
    ) -> Self {
        let method = |name: &str, is_routine| {
            let name = name.to_owned();
            Arc::new(Method { service, name, is_routine, durations: Default::default() })
        };
        let own = methods.map(|name| (name.to_owned(), method(name, false)));
        let routine = ROUTINE.iter().map(|name| ((*name).to_owned(), method(name, true)));
        Self(Arc::new(Observed {
            service,
            clock,
            methods: own.chain(routine).collect(),
            other: method(OTHER, false),
            in_flight: metrics::gauge!("rpc_server_requests_in_flight", "service" => service),
        }))
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe { observed: self.0.clone(), inner }
    }
}

/// A service whose calls are observed.
#[derive(Clone, Debug)]
pub(crate) struct Observe<S> {
    observed: Arc<Observed>,
    inner: S,
}

impl<S> Service<Request<Body>> for Observe<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (call, context, id) = self.observed.begin(&request);
        let span = call.span.clone();
        // A layer may panic before there is anything to wait for: uncaught, that
        // would end the connection, and every other call on it.
        let begun = span.in_scope(|| catch_unwind(AssertUnwindSafe(|| self.inner.call(request))));
        let observed = async move {
            let mut call = call;
            let answer = match begun {
                Ok(answer) => AssertUnwindSafe(answer).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            let mut response = match answer {
                Ok(answer) => answer?,
                Err(_) => Status::from(ApiError::internal("a handler panicked")).into_http(),
            };
            call.code = settle(&mut response, &id);
            if call.code.is_some() {
                return Ok(response);
            }
            // The status comes in trailers.
            Ok(response.map(|body| Body::new(Answer { body, call })))
        };
        Box::pin(observed.with_context(context).instrument(span))
    }
}

impl Observed {
    /// A call that begins, the trace that it belongs to, and its id.
    fn begin(&self, request: &Request<Body>) -> (Call, opentelemetry::Context, String) {
        let path = request.uri().path();
        let method = path.strip_prefix('/').and_then(|name| self.methods.get(name));
        let method = method.unwrap_or(&self.other).clone();
        let id = request_id(request.headers(), &self.clock);
        let (span, context) = trace::begin(self.service, &method.name, &id, request.headers());
        self.in_flight.increment(1);
        let in_flight = self.in_flight.clone();
        let call = Call { span, method, in_flight, started: Instant::now(), code: None };
        (call, context, id)
    }
}

/// A call under way. Its outcome is noted when it is dropped: with its code, or
/// as cancelled if nobody waited for that.
struct Call {
    span: Span,
    method: Arc<Method>,
    in_flight: Gauge,
    started: Instant,
    code: Option<Code>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        let duration = self.started.elapsed();
        self.in_flight.decrement(1);
        self.method.record(code, duration.as_secs_f64());
        trace::end(&self.span, code);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let code = name(code);
        self.span.in_scope(|| {
            if self.method.is_routine {
                tracing::debug!(code, micros, "the call ended");
            } else {
                tracing::info!(code, micros, "the call ended");
            }
        });
    }
}

impl Method {
    fn record(&self, code: Code, seconds: f64) {
        let new = || {
            metrics::histogram!(
                "rpc_server_duration_seconds",
                "service" => self.service,
                "method" => self.name.clone(),
                "code" => name(code),
            )
        };
        if let Some(duration) = self.durations.get(code as usize) {
            duration.get_or_init(new).record(seconds);
        }
    }
}

/// The body of an answer whose status is in its trailers.
struct Answer {
    body: Body,
    call: Call,
}

impl http_body::Body for Answer {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let this = &mut *self;
        let _entered = this.call.span.enter();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    this.call.code = Some(status.code());
                }
            }
            Poll::Ready(Some(Err(status))) => this.call.code = Some(status.code()),
            // A stream that ends without a status is broken (gRPC over HTTP/2).
            Poll::Ready(None) => drop(this.call.code.get_or_insert(Code::Unknown)),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The caller's own id for the call, if it is harmless in a log; or a new one.
fn request_id(headers: &HeaderMap, clock: &Clock) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=64).contains(&id.len()))
        .filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)))
        .map_or_else(|| clock.new_id().to_string(), str::to_owned)
}

/// Replaces an answer that the gRPC library made itself, adds the request id,
/// and tells the answer's code, if its headers do.
fn settle(response: &mut Response<Body>, id: &str) -> Option<Code> {
    let mut code = None;
    if let Some(status) = Status::from_header_map(response.headers()) {
        let mut settled = status.code();
        if let Some(error) = normalize(&status) {
            let status = Status::from(error);
            settled = status.code();
            *response = status.into_http();
        }
        if settled == Code::Internal {
            let error = ApiError::new(
                crm_error::ErrorReason::Internal,
                format!("internal error; request id {id}"),
            )
            .with_metadata("request_id", id);
            *response = Status::from(error).into_http();
        }
        code = Some(settled);
    } else if !response.status().is_success() {
        // An answer in plain HTTP: no gRPC was spoken.
        return Some(Code::Unknown);
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    code
}

/// The name of a code, as the specification of gRPC writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests;
