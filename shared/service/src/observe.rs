//! The outermost layer: gives each call its id and span, turns the gRPC
//! library's own errors and panics into this project's, and logs the outcome.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use crm_clock::Clock;
use crm_error::{ApiError, normalize};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;

/// The metadata key of a call's id, in requests and in answers.
const REQUEST_ID: &str = "x-request-id";

/// Adds [`Observe`] to a service.
#[derive(Clone, Debug)]
pub(crate) struct ObserveLayer {
    pub(crate) service: &'static str,
    pub(crate) clock: Clock,
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe { layer: self.clone(), inner }
    }
}

/// A service whose calls are observed.
#[derive(Clone, Debug)]
pub(crate) struct Observe<S> {
    layer: ObserveLayer,
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
        // Health checks and reflection come all the time and tell little.
        let routine = request.uri().path().starts_with("/grpc.");
        let id = request_id(request.headers(), &self.layer.clock);
        let span = tracing::info_span!(
            "call",
            service = self.layer.service,
            method = request.uri().path(),
            request_id = id,
            tenant = tracing::field::Empty,
        );
        let entered = span.enter();
        let started = Instant::now();
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        drop(entered);
        let observed = async move {
            let mut response = match answer.await {
                Ok(answer) => answer?,
                Err(_) => Status::from(ApiError::internal("a handler panicked")).into_http(),
            };
            let code = settle(&mut response, &id);
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            if routine {
                tracing::debug!(code = ?code, micros, "answered");
            } else {
                tracing::info!(code = ?code, micros, "answered");
            }
            Ok(response)
        };
        Box::pin(observed.instrument(span))
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
/// and tells the answer's code.
fn settle(response: &mut Response<Body>, id: &str) -> Code {
    let mut code = Code::Ok;
    if let Some(status) = Status::from_header_map(response.headers()) {
        code = status.code();
        if let Some(error) = normalize(&status) {
            let status = Status::from(error);
            code = status.code();
            *response = status.into_http();
        }
        if code == Code::Internal {
            let error = ApiError::new(
                crm_error::ErrorReason::Internal,
                format!("internal error; request id {id}"),
            )
            .with_metadata("request_id", id);
            *response = Status::from(error).into_http();
        }
    } else if !response.status().is_success() {
        // An answer in plain HTTP: no gRPC was spoken.
        return Code::Unknown;
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    code
}
