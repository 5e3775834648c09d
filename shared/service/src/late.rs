//! A stack that is served before it is there.

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use crm_clock::Clock;
use crm_error::ApiError;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use http::{Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Request as Call, Response as Answer, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus as Code,
};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceBuilder, ServiceExt as _};

use crate::admission::AdmitLayer;
use crate::limits::{LimitsLayer, MAX_MESSAGE_BYTES};
use crate::observe::ObserveLayer;
use crate::stack::{Stack, streaming};

/// Answers before what it waits for is there: health checks with NOT_SERVING,
/// every other call with UNAVAILABLE. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Late {
    waiting: Stack,
    stack: Arc<OnceLock<Stack>>,
    is_there: CancellationToken,
}

impl Late {
    /// For the process of this name.
    pub(crate) fn new(name: &'static str, clock: Clock) -> Result<Self, prost::DecodeError> {
        let streaming = streaming()?;
        let is_there = CancellationToken::new();
        let checks = NotServing { until: is_there.clone() };
        let routes = Routes::new(HealthServer::new(checks)).prepare();
        let waiting = tower::service_fn(move |request: Request<Body>| {
            let routes = routes.clone();
            let is_check = request.uri().path().split('/').nth(1)
                == Some(<HealthServer<NotServing> as NamedService>::NAME);
            async move {
                if is_check {
                    return routes.oneshot(request).await;
                }
                let error = ApiError::unavailable("what this process waits for is not there yet");
                Ok::<_, Infallible>(Status::from(error).into_http())
            }
        });
        let waiting = ServiceBuilder::new()
            .layer(ObserveLayer::new(name, std::iter::empty(), clock))
            .layer(LimitsLayer)
            .layer(AdmitLayer::new(streaming, MAX_MESSAGE_BYTES))
            .service(waiting);
        let waiting = BoxCloneSyncService::new(waiting);
        Ok(Self { waiting, stack: Arc::default(), is_there })
    }

    /// The stack is there. Whoever watches its health asks again.
    pub(crate) fn set(&self, stack: Stack) {
        // It is set once.
        let _set = self.stack.set(stack);
        self.is_there.cancel();
    }
}

impl Service<Request<Body>> for Late {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.stack.get().unwrap_or(&self.waiting).clone().oneshot(request).boxed()
    }
}

/// The health of every service while the process waits.
#[derive(Debug)]
struct NotServing {
    until: CancellationToken,
}

#[tonic::async_trait]
impl Health for NotServing {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        _: Call<HealthCheckRequest>,
    ) -> Result<Answer<HealthCheckResponse>, Status> {
        Ok(Answer::new(not_serving()))
    }

    async fn watch(
        &self,
        _: Call<HealthCheckRequest>,
    ) -> Result<Answer<Self::WatchStream>, Status> {
        let now = stream::once(ready(Ok(not_serving())));
        let end = self.until.clone().cancelled_owned();
        Ok(Answer::new(now.chain(stream::pending()).take_until(end).boxed()))
    }
}

fn not_serving() -> HealthCheckResponse {
    HealthCheckResponse { status: Code::NotServing.into() }
}
