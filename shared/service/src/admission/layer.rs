//! The innermost layer: a call that is authenticated and whole gets one of the
//! places of its service.

use std::collections::HashSet;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crm_auth::{PlatformContext, ServiceContext, TenantContext};
use crm_error::ApiError;
use http::{Extensions, Request, Response};
use http_body::{Frame, SizeHint};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use uuid::Uuid;

use super::body::whole;
use super::quota::{Bounds, Quota, Share, Spent};
use super::{Origin, Peer};
use crate::limits;
use crate::protocol::head_bytes;

/// What operators need when all else is taken.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Who has a place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Tenant(Uuid),
    Operator(String),
    Service(String),
    Anyone(Peer),
}

impl Who {
    fn of(extensions: &Extensions, peer: Peer) -> Self {
        if let Some(ctx) = extensions.get::<TenantContext>() {
            Self::Tenant(ctx.tenant().as_uuid())
        } else if let Some(ctx) = extensions.get::<PlatformContext>() {
            Self::Operator(ctx.subject().to_owned())
        } else if let Some(ctx) = extensions.get::<ServiceContext>() {
            Self::Service(ctx.service().to_owned())
        } else {
            Self::Anyone(peer)
        }
    }
}

/// The methods that take or give more than one message, by path.
#[derive(Debug, Default)]
pub(crate) struct Streaming {
    requests: HashSet<String>,
    answers: HashSet<String>,
}

impl Streaming {
    /// Reads them from descriptors.
    pub(crate) fn read(sets: &[&[u8]]) -> Result<Self, prost::DecodeError> {
        let mut streaming = Self::default();
        for set in sets {
            for file in FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    for method in &service.method {
                        let (package, service) = (file.package(), service.name());
                        let path = format!("/{package}.{service}/{}", method.name());
                        if method.client_streaming() {
                            streaming.requests.insert(path.clone());
                        }
                        if method.server_streaming() {
                            streaming.answers.insert(path);
                        }
                    }
                }
            }
        }
        Ok(streaming)
    }
}

/// Gives out the places of one service.
#[derive(Clone, Debug)]
pub(crate) struct AdmitLayer {
    calls: Arc<Quota<Who>>,
    streaming: Arc<Streaming>,
    most_bytes: usize,
}

impl AdmitLayer {
    /// For requests of at most so many bytes.
    pub(crate) fn new(streaming: Streaming, most_bytes: usize) -> Self {
        let bounds = Bounds {
            total: limits::CALLS,
            kept: limits::KEPT_CALLS,
            contended: limits::CALLS_UNCONTENDED,
            each: limits::CALLS_OF_ONE,
        };
        let calls = Quota::new("calls", bounds);
        Self { calls, streaming: Arc::new(streaming), most_bytes }
    }

    /// Waits until the request is there as a whole, and then takes a place for
    /// it: one that is taken before is held by whoever sends nothing.
    async fn admit(&self, request: Request<Body>) -> Result<(Request<Body>, Admitted), Status> {
        let origin = request.extensions().get::<Origin>().cloned().unwrap_or_default();
        let path = request.uri().path();
        let who = Who::of(request.extensions(), origin.peer());
        let is_kept = match who {
            Who::Operator(_) | Who::Service(_) => true,
            Who::Tenant(_) | Who::Anyone(_) => path.starts_with(HEALTH),
        };
        let is_answer_stream = self.streaming.answers.contains(path);
        let is_open_to_all = is_answer_stream && matches!(who, Who::Anyone(_));
        let stream = is_open_to_all.then(|| origin.stream()).transpose();
        let stream = stream.map_err(ApiError::from)?;
        let place = || -> Result<_, ApiError> { Ok(self.take(who.clone(), is_kept)?) };
        let early = if cfg!(bug_permit_first) { Some(place()?) } else { None };
        let request = if self.streaming.requests.contains(path) {
            request
        } else {
            let (parts, body) = request.into_parts();
            let head = head_bytes(&parts.headers);
            let body = whole(body, self.most_bytes, head, &origin).await?;
            Request::from_parts(parts, body)
        };
        let place = early.map_or_else(place, Ok)?;
        Ok((request, Admitted { place, stream, is_answer_stream }))
    }

    fn take(&self, who: Who, is_kept: bool) -> Result<Share<Who>, Spent> {
        if is_kept { self.calls.take_kept(who, 1) } else { self.calls.take(who, 1) }
    }
}

/// What a call has until its answer has been taken.
#[derive(Debug)]
struct Admitted {
    place: Share<Who>,
    stream: Option<Share<Peer>>,
    is_answer_stream: bool,
}

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admit { layer: self.clone(), inner }
    }
}

/// A service behind [`AdmitLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Admit<S> {
    layer: AdmitLayer,
    inner: S,
}

impl<S> Service<Request<Body>> for Admit<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
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
        // The one that was asked whether it is ready is the one to call.
        let next = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, next);
        let layer = self.layer.clone();
        Box::pin(async move {
            let (request, admitted) = match layer.admit(request).await {
                Ok(admitted) => admitted,
                Err(refusal) => return Ok(refusal.into_http()),
            };
            let answer = inner.call(request).await?;
            let Admitted { place, stream, is_answer_stream } = admitted;
            // A stream works for its caller only now and then.
            let place = (!is_answer_stream).then_some(place);
            Ok(answer.map(|body| Body::new(Holding { body, _place: place, _stream: stream })))
        })
    }
}

/// The body of an answer, which holds what its call has.
struct Holding {
    body: Body,
    _place: Option<Share<Who>>,
    _stream: Option<Share<Peer>>,
}

impl http_body::Body for Holding {
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
