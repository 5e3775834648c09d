//! HTTP/1.1 without surprises: an answer to a request that was not read would
//! end the connection while its client sends, and the client's next call with
//! it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::poll_fn;
use http::header::{CONNECTION, EXPECT};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::limits;
use crate::stack::Stack;

/// Says how long the connection stays open for another request.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The answer of the stack, when what it left of the request has been read; or
/// with the word that the connection ends, as where `ends`.
pub(crate) async fn answer(
    stack: Stack,
    request: Request<Body>,
    ends: impl Fn() -> bool,
) -> Response<Body> {
    // Whoever waits for leave to send has not sent.
    let waits = request.headers().contains_key(EXPECT);
    let left = Left::default();
    let request = request.map(|body| Body::new(Watched { body, left: left.clone() }));
    let Ok(mut answer) = stack.oneshot(request).await;
    let is_read = match left.take() {
        Some(_) if waits => false,
        Some(body) => discard(body).await,
        None => true,
    };
    let headers = answer.headers_mut();
    if !is_read || ends() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    } else if let Ok(told) = format!("timeout={}", limits::IDLE_TOLD.as_secs()).parse() {
        headers.insert(KEEP_ALIVE, told);
    }
    answer
}

/// Reads the rest of a request, unless that is long or slow. Whether it did.
async fn discard(mut body: Body) -> bool {
    let reading = async {
        let mut length = 0;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            length += frame.ok()?.into_data().map_or(0, |data| data.len());
            if length > limits::DISCARDED_BYTES {
                return None;
            }
        }
        Some(())
    };
    timeout(limits::body_time(0), reading).await.is_ok_and(|read| read.is_some())
}

/// Where the rest of a request is that nobody wants.
#[derive(Clone, Default)]
struct Left(Arc<Mutex<Option<Body>>>);

impl Left {
    fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that is not lost where it is dropped before its end.
struct Watched {
    body: Body,
    left: Left,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            let body = std::mem::replace(&mut self.body, Body::empty());
            *self.left.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

impl http_body::Body for Watched {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
