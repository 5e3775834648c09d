//! What calls learn of the end of their server: each gets to its end, and every
//! end has a status.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use crm_error::{ApiError, ErrorReason};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;

/// The end of a server, among the extensions of each request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stopping {
    /// No new calls are taken: answers with nothing more to say for now end.
    pub(crate) asked: CancellationToken,
    /// Nothing is waited for any more: calls without an answer end.
    pub(crate) over: CancellationToken,
    /// What the server counts, until the call's answer has been sent.
    _unanswered: Weak<()>,
}

impl Stopping {
    pub(crate) fn new(asked: CancellationToken) -> Self {
        Self { asked, ..Self::default() }
    }

    /// For one connection, whose calls may have to end before the server does.
    pub(crate) fn of_connection(&self) -> Self {
        Self { asked: self.asked.child_token(), ..self.clone() }
    }

    /// For one call, which counts among `calls` as long as it has this.
    pub(crate) fn of_call(&self, calls: &Arc<()>) -> Self {
        Self { _unanswered: Arc::downgrade(calls), ..self.clone() }
    }
}

/// The body of an answer, which ends with UNAVAILABLE where the server stops
/// while it has nothing to say: it is a stream then. An answer of one message
/// always has something to say.
pub(crate) struct Ending {
    body: Body,
    stopping: Stopping,
    asked: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    is_over: bool,
}

impl Ending {
    pub(crate) fn new(body: Body, stopping: Stopping) -> Self {
        Self { body, stopping, asked: None, is_over: false }
    }
}

impl http_body::Body for Ending {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let wait = || Box::pin(this.stopping.asked.clone().cancelled_owned());
        ready!(this.asked.get_or_insert_with(wait).as_mut().poll(cx));
        this.is_over = true;
        let error = ApiError::new(ErrorReason::Overloaded, "the server is stopping");
        let mut trailers = HeaderMap::new();
        Status::from(error).add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
