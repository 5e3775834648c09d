//! What bounds a call and a connection: every limit, in one place.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crm_error::{ApiError, ErrorReason, deadline_exceeded};
use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::protocol;
use crate::stopping::{Ending, Stopping};

/// The largest request message, unless a method names another.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Calls of one service that may run at once; more are refused, not queued.
pub(crate) const CALLS: usize = 1024;
/// What of these is kept for operators, services and health checks.
pub(crate) const KEPT_CALLS: usize = 32;
/// Up to here a tenant may have them all; beyond, so many.
pub(crate) const CALLS_UNCONTENDED: usize = (CALLS - KEPT_CALLS) / 2;
pub(crate) const CALLS_OF_ONE: usize = 64;

/// Connections of a process; fewer where it may open fewer descriptors.
pub(crate) const CONNECTIONS: usize = 10_000;
/// What of these is kept for listeners that are not public.
pub(crate) const KEPT_CONNECTIONS: usize = 64;
/// Connections of one address to one listener; and of a proxy, which calls for
/// many.
pub(crate) const CONNECTIONS_OF_ONE: usize = 256;
pub(crate) const CONNECTIONS_OF_A_PROXY: usize = 4096;
/// How long a client may take for the TLS handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long it may take until it has said what it speaks: the preface of
/// HTTP/2, or the first head of HTTP/1.1.
pub(crate) const PREFACE: Duration = Duration::from_secs(5);

/// Bytes of requests that are not there as a whole, in a process.
pub(crate) const PARTIAL_BYTES: usize = 64 * 1024 * 1024;
/// Up to here one address may have them all; beyond, as much as so many of the
/// largest requests take.
pub(crate) const PARTIAL_BYTES_UNCONTENDED: usize = PARTIAL_BYTES / 4;
pub(crate) const LARGEST_REQUESTS_OF_ONE: usize = 8;
/// What a call that waits for its request takes, beside what has come.
pub(crate) const WAITING_CALL_BYTES: usize = 8 * 1024;
/// How long a request may take to come, whatever its size; and how fast it
/// comes then.
const BODY_TIME: Duration = Duration::from_secs(5);
const BODY_BYTES_PER_SECOND: usize = 32 * 1024;
/// Streams that anyone may open, such as watches of health: in a process, and
/// from one address.
pub(crate) const STREAMS: usize = 1024;
pub(crate) const STREAMS_OF_ONE: usize = 16;

/// Streams that one connection may have open.
pub(crate) const STREAMS_PER_CONNECTION: u32 = 100;
/// How much of a request body is taken in before it is read.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// The same for a connection: one stream that nobody reads stops no other.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = STREAMS_PER_CONNECTION * STREAM_WINDOW_BYTES;
/// How much of a connection is read in one go: the calls that it brings are
/// begun before more comes.
pub(crate) const TURN_BYTES: usize = 4 * 1024;
/// How many connections of a proxy are read at a time, where of another peer one
/// is for each core.
pub(crate) const TURNS_OF_A_PROXY: usize = 16;
/// Calls that were given up before they were begun. No turn brings more: a call
/// of three bytes and its end take 25 (RFC 9113, section 4.1).
pub(crate) const PENDING_RESETS: usize = TURN_BYTES / 25 + 2;
/// Streams of a connection that were wrong in themselves. Behind a proxy many
/// callers share one: it outlives the wrong ones of its time.
pub(crate) const WRONG_STREAMS: usize = 100_000;
/// The whole of a call's metadata.
pub(crate) const HEADER_LIST_BYTES: u32 = 16 * 1024;
/// The head of a request in HTTP/1.1, before it is found to be too large.
pub(crate) const HEAD_BYTES: usize = 64 * 1024;
/// How much more of a refused request is read in HTTP/1.1, so that the
/// connection can be used again.
pub(crate) const DISCARDED_BYTES: usize = 2 * MAX_MESSAGE_BYTES;
/// After how long a silent connection is probed, and then given up.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a connection of HTTP/1.1 may wait for the next request; and what
/// clients are told, so that none sends when it closes.
pub(crate) const IDLE: Duration = Duration::from_secs(75);
pub(crate) const IDLE_TOLD: Duration = Duration::from_secs(60);
/// How old a connection may become, so that clients spread over replicas.
pub(crate) const CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);
/// By how much it may differ, so that they do not all come again at once.
pub(crate) const CONNECTION_AGE_SPREAD: Duration = Duration::from_secs(3 * 60);
/// How long an old connection may finish its calls.
pub(crate) const CONNECTION_GRACE: Duration = Duration::from_secs(60);
/// How long the last answers have to be sent.
pub(crate) const LINGER: Duration = Duration::from_millis(200);
/// How long health checks fail before calls are refused, so that those who
/// watch send them elsewhere.
pub(crate) const NOTICE: Duration = Duration::from_millis(200);
/// How long calls may go on after the first signal to stop: it is the deadline
/// of those that have a later one.
pub(crate) const DRAIN: Duration = Duration::from_secs(6);

/// The deadline of a call that names none.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// The longest deadline that a call may have.
const MAX_DEADLINE: Duration = Duration::from_secs(30);
/// An answer that comes a little earlier finds its caller still there.
const HEAD_START: Duration = Duration::from_millis(5);

/// How long a request may take until so much of it has come.
pub(crate) fn body_time(bytes: usize) -> Duration {
    BODY_TIME + Duration::from_secs((bytes / BODY_BYTES_PER_SECOND) as u64)
}

/// Enforces deadlines, and ends what the server stops before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LimitsLayer;

impl<S> Layer<S> for LimitsLayer {
    type Service = Limits<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Limits { inner }
    }
}

/// A service behind [`LimitsLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Limits<S> {
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
