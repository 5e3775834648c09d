//! Connections whose answers are looked at.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::{Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::transport;
use tower::Service;

use crate::watch::{LONGEST, Reader, answered};

/// A connection of a test. What it answers is watched: see `watch`.
#[derive(Clone, Debug)]
pub struct Channel(transport::Channel);

impl From<transport::Channel> for Channel {
    fn from(channel: transport::Channel) -> Self {
        Self(channel)
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let reader = Reader::of(request.headers());
        let answer = self.0.call(request);
        Box::pin(async move {
            let response = answer.await?;
            answered();
            reader.read_headers(response.headers());
            Ok(response.map(|body| Body::new(WatchedBody { body, reader, seen: Vec::new() })))
        })
    }
}

/// The body of an answer.
struct WatchedBody {
    body: Body,
    reader: Reader,
    /// The end of what has come: what is looked for may be cut by frames.
    seen: Vec<u8>,
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            if let Some(data) = frame.data_ref() {
                self.seen.extend_from_slice(data);
                self.reader.read(&self.seen);
                let kept = self.seen.len().saturating_sub(LONGEST);
                self.seen.drain(..kept);
            }
            if let Some(trailers) = frame.trailers_ref() {
                self.reader.read_headers(trailers);
            }
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
