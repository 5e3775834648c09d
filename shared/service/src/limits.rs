//! What bounds a call and a connection: every limit, in one place.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crm_error::{ApiError, ErrorReason, deadline_exceeded};
use http::{HeaderMap, Request, Response};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::protocol;
use crate::stopping::{Ending, Stopping};

/// The largest request message, unless a method names another.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Streams that one connection may have open.
pub(crate) const STREAMS_PER_CONNECTION: u32 = 100;
/// How much of a request body is taken in before its handler reads it.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// The whole of a call's metadata.
pub(crate) const HEADER_LIST_BYTES: u32 = 16 * 1024;
/// After how long a silent connection is probed, and then given up.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(20);
/// How old a connection may become, so that clients spread over replicas.
pub(crate) const CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);
/// How long an old connection may finish its calls.
pub(crate) const CONNECTION_GRACE: Duration = Duration::from_secs(60);
/// How long health checks fail before calls are refused, so that those who
/// watch send them elsewhere.
pub(crate) const NOTICE: Duration = Duration::from_millis(200);
/// How long calls may go on after the first signal to stop: it is the deadline
/// of those that have a later one.
pub(crate) const DRAIN: Duration = Duration::from_secs(6);
/// How long a client may take for the TLS handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);

/// Calls of one service that may run at once; more are refused, not queued.
const CALLS_AT_ONCE: usize = 1024;
/// The deadline of a call that names none.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// The longest deadline that a call may have.
const MAX_DEADLINE: Duration = Duration::from_secs(30);
/// tonic enforces the caller's own deadline with a CANCELLED; ending a little
/// earlier makes it the DEADLINE_EXCEEDED that gRPC promises.
const HEAD_START: Duration = Duration::from_millis(5);

/// Sheds load, enforces deadlines, and ends what the server stops before.
#[derive(Clone, Debug)]
pub(crate) struct LimitsLayer {
    calls: Arc<Semaphore>,
}

impl LimitsLayer {
    pub(crate) fn new() -> Self {
        Self { calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)) }
    }
}

impl<S> Layer<S> for LimitsLayer {
    type Service = Limits<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Limits { calls: self.calls.clone(), inner }
    }
}

/// A service behind [`LimitsLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Limits<S> {
    calls: Arc<Semaphore>,
    inner: S,
}

impl<S> Service<Request<Body>> for Limits<S>
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
        if let Some(refusal) = protocol::refuse(&request) {
            return Box::pin(async { Ok(refusal) });
        }
        let Ok(permit) = self.calls.clone().try_acquire_owned() else {
            let error = ApiError::new(ErrorReason::Overloaded, "the server is overloaded")
                .with_retry_after(Duration::from_secs(1));
            return Box::pin(async { Ok(Status::from(error).into_http()) });
        };
        let deadline = match deadline(request.headers()) {
            Ok(deadline) => deadline,
            Err(error) => return Box::pin(async { Ok(Status::from(error).into_http()) }),
        };
        let stopping = request.extensions().get::<Stopping>().cloned().unwrap_or_default();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = tokio::select! {
                answer = tokio::time::timeout(deadline, answer) => answer.ok(),
                () = stopping.over.cancelled() => None,
            };
            drop(permit);
            let Some(answer) = answer else {
                return Ok(Status::from(deadline_exceeded()).into_http());
            };
            Ok(answer?.map(|body| Body::new(Ending::new(body, stopping))))
        })
    }
}

/// The deadline of a call: `grpc-timeout` (gRPC over HTTP/2), within bounds.
fn deadline(headers: &HeaderMap) -> Result<Duration, ApiError> {
    let mut values = headers.get_all("grpc-timeout").iter();
    let Some(value) = values.next() else { return Ok(DEFAULT_DEADLINE) };
    // A caller who cannot say how long it waits must not believe that it did:
    // what is no duration, or are two, is refused and not ignored.
    let asked = value.to_str().ok().and_then(parse_timeout).filter(|_| values.next().is_none());
    let asked = asked.ok_or_else(|| {
        ApiError::new(ErrorReason::MalformedRequest, "grpc-timeout is not a duration")
    })?;
    Ok(asked.min(MAX_DEADLINE).saturating_sub(HEAD_START))
}

fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_says() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for junk in ["", "m", "1", "-1S", "1.5S", "123456789S", "1s", "S1", "1Sé", "é"] {
            assert_eq!(parse_timeout(junk), None, "{junk:?}");
        }
    }

    #[test]
    fn deadlines_stay_within_bounds() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", value.parse().unwrap());
            deadline(&headers)
        };

        assert_eq!(deadline(&HeaderMap::new()).unwrap(), DEFAULT_DEADLINE);
        assert_eq!(with("1H").unwrap(), MAX_DEADLINE - HEAD_START);
        assert_eq!(with("1n").unwrap(), Duration::ZERO);
        assert_eq!(with("soon").unwrap_err().reason(), ErrorReason::MalformedRequest);
    }
}
