//! The layers that stand before every handler, in their order, with reasons.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::IntoResponse;
use crm_auth::{AuthLayer, Verifier};
use crm_clock::Clock;
use crm_proto::rules::Rules;
use http::{Request, Response};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::pb::health_server::HealthServer;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceBuilder};

use crate::admission::{AdmitLayer, Streaming};
use crate::health::Health;
use crate::limits::{LimitsLayer, MAX_MESSAGE_BYTES};
use crate::metrics::recorder;
use crate::observe::ObserveLayer;

/// A service with all its layers, ready to be served.
pub type Stack = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Collects the gRPC services of one listener.
#[derive(Debug)]
pub struct StackBuilder {
    routes: RoutesBuilder,
    /// What is served here.
    names: Vec<&'static str>,
    /// What others serve, and reflection tells of all the same.
    listed: Vec<&'static str>,
    /// Messages of others' files that stand in answers here as `Any`.
    described: Vec<&'static str>,
    /// The largest request.
    most_bytes: usize,
}

impl Default for StackBuilder {
    fn default() -> Self {
        Self {
            routes: Routes::builder(),
            names: Vec::new(),
            listed: Vec::new(),
            described: Vec::new(),
            most_bytes: MAX_MESSAGE_BYTES,
        }
    }
}

impl StackBuilder {
    /// Adds a service.
    #[must_use]
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes.add_service(service);
        self
    }

    /// Names services that others serve, for reflection alone.
    #[must_use]
    pub fn listing(mut self, names: impl IntoIterator<Item = &'static str>) -> Self {
        self.listed.extend(names);
        self
    }

    /// Names messages that answers carry as `google.protobuf.Any` and that other
    /// services' files define, for reflection alone.
    #[must_use]
    pub fn describing(mut self, messages: impl IntoIterator<Item = &'static str>) -> Self {
        self.described.extend(messages);
        self
    }

    /// Takes requests up to this size.
    #[must_use]
    pub fn accepting(mut self, bytes: usize) -> Self {
        self.most_bytes = bytes;
        self
    }

    /// Adds health and reflection, and puts the layers before everything.
    ///
    /// # Errors
    ///
    /// When a method has no rule, or the descriptors cannot be read: then
    /// nothing may be served.
    pub fn build(
        mut self,
        name: &'static str,
        verifier: Verifier,
        clock: Clock,
    ) -> Result<(Stack, Health), Box<dyn std::error::Error + Send + Sync>> {
        // What is not served here has no rule here, and is unknown to anyone.
        let rules = Arc::new(Rules::load()?.of_services(&self.names));
        // Nothing serves before its App says so.
        let health = Health::new(name, self.names.clone());
        self.routes.add_service(HealthServer::new(health.clone()));
        // Older clients, grpcurl 1.8 and Python among them, speak v1alpha.
        let named = [self.names.as_slice(), &self.listed].concat();
        self.routes.add_service(reflection(&named, &self.described)?.build_v1()?);
        self.routes.add_service(reflection(&named, &self.described)?.build_v1alpha()?);
        // Metrics are looked up once: the recorder must be there before.
        recorder()?;
        let methods = rules.iter().filter_map(|(path, _)| path.strip_prefix('/'));
        let observe = ObserveLayer::new(name, methods, clock);
        let stack = ServiceBuilder::new()
            // Outermost, so that every answer has an id, the project's form,
            // a line in the log and a place in the metrics.
            .layer(observe)
            // Before all that may wait.
            .layer(LimitsLayer)
            // Before the body is read: nothing is taken in for a caller who may
            // not call.
            .layer(AuthLayer::new(rules, verifier))
            // Innermost, so that a place is held by work alone: not by whoever
            // is refused, nor by whoever sends slowly.
            .layer(AdmitLayer::new(streaming()?, self.most_bytes))
            .service(self.routes.routes().prepare());
        Ok((BoxCloneSyncService::new(stack), health))
    }
}

/// The methods of all services that stream.
pub(crate) fn streaming() -> Result<Streaming, prost::DecodeError> {
    Streaming::read(&[
        crm_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ])
}

/// Reflection over the services of one listener, and no others: files that
/// define other services are left out, or keep but their messages where one of
/// those is described.
fn reflection(
    names: &[&'static str],
    described: &[&'static str],
) -> Result<tonic_reflection::server::Builder<'static>, prost::DecodeError> {
    let mut files = FileDescriptorSet::decode(crm_proto::FILE_DESCRIPTOR_SET)?;
    files.file.retain_mut(|file| {
        let package = file.package().to_owned();
        let is_in =
            |known: &[&str], name: &str| known.contains(&format!("{package}.{name}").as_str());
        let others = !file.service.is_empty();
        file.service.retain(|service| is_in(names, service.name()));
        !others
            || !file.service.is_empty()
            || file.message_type.iter().any(|message| is_in(described, message.name()))
    });
    let builder = tonic_reflection::server::Builder::configure()
        .register_file_descriptor_set(files)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health");
    Ok(names.iter().fold(builder, |builder, name| builder.with_service_name(*name)))
}
