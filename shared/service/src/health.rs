//! Whether a stack can do its work, as it tells health checks
//! (`grpc.health.v1.Health`).

use std::future::ready;

use crm_error::ApiError;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use crate::limits;

/// Says whether a service can do its work, to health checks.
#[derive(Clone, Debug)]
pub struct Health {
    part: &'static str,
    names: Vec<&'static str>,
    is_serving: watch::Sender<bool>,
}

impl Health {
    /// Of a stack that does not serve yet.
    pub(crate) fn new(part: &'static str, names: Vec<&'static str>) -> Self {
        Self { part, names, is_serving: watch::Sender::new(false) }
    }

    /// Reports every service of the stack, and the server as a whole.
    pub fn set(&self, serving: bool) {
        self.is_serving.send_if_modified(|was| std::mem::replace(was, serving) != serving);
    }

    /// Reports all of them as not serving, and leaves those who watch the time to
    /// hear of it: then calls may be refused.
    pub async fn give_notice(healths: &[Self]) {
        for health in healths {
            health.set(false);
        }
        tokio::time::sleep(limits::NOTICE).await;
    }

    /// The name of the stack, and whether it was said last that it serves.
    pub fn state(&self) -> (&'static str, bool) {
        (self.part, *self.is_serving.borrow())
    }

    fn knows(&self, name: &str) -> bool {
        name.is_empty() || self.names.contains(&name)
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = &request.get_ref().service;
        if !self.knows(name) {
            return Err(ApiError::not_found("service", "").into());
        }
        Ok(Response::new(answer(status(*self.is_serving.borrow()))))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !self.knows(&request.get_ref().service) {
            // What is served here does not change: there is nothing more to say.
            let unknown = stream::once(ready(Ok(answer(ServingStatus::ServiceUnknown))));
            return Ok(Response::new(unknown.chain(stream::pending()).boxed()));
        }
        Ok(Response::new(states(self.is_serving.subscribe()).map(Ok).boxed()))
    }
}

/// What is said now, and then each change.
fn states(
    mut is_serving: watch::Receiver<bool>,
) -> impl stream::Stream<Item = HealthCheckResponse> {
    is_serving.mark_changed();
    stream::unfold(is_serving, |mut is_serving| async move {
        is_serving.changed().await.ok()?;
        let now = status(*is_serving.borrow_and_update());
        Some((answer(now), is_serving))
    })
}

fn status(is_serving: bool) -> ServingStatus {
    if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tonic_health::pb::health_server::Health as _;

    use super::*;

    async fn watch(health: &Health, service: &str) -> BoxStream<'static, ServingStatus> {
        let service = service.to_owned();
        let answers = health.watch(Request::new(HealthCheckRequest { service })).await.unwrap();
        answers.into_inner().map(|answer| answer.unwrap().status()).boxed()
    }

    #[tokio::test]
    async fn whoever_watches_hears_what_is_so_and_each_change() {
        let health = Health::new("part", vec!["a.Service"]);
        for name in ["", "a.Service"] {
            health.set(false);
            let mut states = watch(&health, name).await;

            assert_eq!(states.next().await, Some(ServingStatus::NotServing));
            health.set(true);
            assert_eq!(states.next().await, Some(ServingStatus::Serving));
            health.set(true);
            assert_eq!(states.next().now_or_never(), None);
        }
    }

    #[tokio::test]
    async fn an_unknown_service_is_called_so_and_its_watch_stays_open() {
        let health = Health::new("part", vec!["a.Service"]);

        let mut states = watch(&health, "another.Service").await;

        assert_eq!(states.next().await, Some(ServingStatus::ServiceUnknown));
        health.set(true);
        assert_eq!(states.next().now_or_never(), None);
    }
}
