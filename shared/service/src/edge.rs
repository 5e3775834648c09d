//! The public edge: gRPC and gRPC-web for an allow-list of services.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method, Request, Response};
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceBuilder, ServiceExt as _};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::stack::Stack;

/// Sends each call to the stack that serves it. What is not on the list is
/// refused, whatever the caller's token.
#[derive(Clone, Debug)]
pub struct Edge {
    stacks: Arc<HashMap<&'static str, Stack>>,
    own: Stack,
}

impl Edge {
    /// An edge that answers for these services. `own` serves the edge's own
    /// methods, health and reflection, and refuses all others.
    pub fn new(own: Stack, stacks: impl IntoIterator<Item = (&'static str, Stack)>) -> Self {
        Self { stacks: Arc::new(stacks.into_iter().collect()), own }
    }

    /// The edge as browsers need it: CORS for these origins, then gRPC-web.
    pub fn into_service(self, origins: Vec<HeaderValue>) -> Stack {
        let name = HeaderName::from_static;
        let cors = CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins))
            .allow_methods([Method::POST])
            .allow_headers([
                AUTHORIZATION,
                CONTENT_TYPE,
                name("grpc-timeout"),
                name("x-grpc-web"),
                name("x-request-id"),
                name("x-tenant-id"),
                name("x-user-agent"),
            ])
            .max_age(Duration::from_secs(600))
            .expose_headers([
                name("grpc-status"),
                name("grpc-message"),
                name("grpc-status-details-bin"),
                name("x-request-id"),
            ]);
        let service = ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(Body::new))
            // Outermost: a preflight is no gRPC call.
            .layer(cors)
            .layer(GrpcWebLayer::new())
            .service(self);
        BoxCloneSyncService::new(service)
    }
}

impl Service<Request<Body>> for Edge {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let stack = self.stacks.get(service).unwrap_or(&self.own);
        stack.clone().oneshot(request).boxed()
    }
}
