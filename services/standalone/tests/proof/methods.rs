//! Every method of the suite, from its descriptors, and calls with any bytes.

use std::net::SocketAddr;
use std::time::Duration;

use crm_proto::FILE_DESCRIPTOR_SET;
use crm_proto::options::v1::{Permission, Scope};
use crm_proto::rules::{Access, Rules};
use crm_standalone::app::Addresses;
use crm_testing::{Channel, Raw, server};
use http::uri::PathAndQuery;
use prost::bytes::Bytes;
use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

/// A method, and what its rule says.
#[derive(Clone, Debug)]
pub(crate) struct Method {
    pub(crate) descriptor: MethodDescriptor,
    pub(crate) access: Access,
}

/// All descriptors of `proto/`.
pub(crate) fn pool() -> DescriptorPool {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap()
}

/// Every method of every service of this project.
pub(crate) fn methods() -> Vec<Method> {
    let rules = Rules::load().unwrap();
    let pool = pool();
    let methods: Vec<_> = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|descriptor| {
            let path = path(&descriptor);
            Method { access: rules.get(&path).unwrap().clone(), descriptor }
        })
        .collect();
    assert!(methods.len() >= 34, "methods were lost: {}", methods.len());
    methods
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

impl Method {
    /// `/package.Service/Method`.
    pub(crate) fn path(&self) -> String {
        path(&self.descriptor)
    }

    /// `Service.Method`, as examples and messages name it.
    pub(crate) fn short_name(&self) -> String {
        format!("{}.{}", self.descriptor.parent_service().name(), self.descriptor.name())
    }

    pub(crate) fn input(&self) -> MessageDescriptor {
        self.descriptor.input()
    }

    /// The scope and the permissions that it asks for; `None` when it is public.
    pub(crate) fn guard(&self) -> Option<(Scope, &[Permission])> {
        match &self.access {
            Access::Public => None,
            Access::Guarded { scope, permissions } => Some((*scope, permissions)),
        }
    }

    /// The listener that serves it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address_at(server().addresses)
    }

    /// The listener of a replica that serves it.
    pub(crate) fn address_at(&self, addresses: Addresses) -> SocketAddr {
        let service = self.descriptor.parent_service();
        match (service.parent_file().package_name(), service.name()) {
            ("crm.contacts.v1", _) => addresses.contacts,
            ("crm.messaging.v1" | "crm.changes.v1", _) => addresses.messaging,
            ("crm.registry.v1", "LeaseService") => addresses.internal,
            ("crm.registry.v1" | "crm.identity.v1", _) => addresses.registry,
            (package, service) => panic!("which listener serves {package}.{service}?"),
        }
    }

    /// Calls it on its listener, with a connection of its own.
    pub(crate) async fn call(
        &self,
        metadata: MetadataMap,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        let address = format!("http://{}", self.address());
        let channel = Endpoint::from_shared(address).unwrap().connect_lazy();
        self.call_on(channel, metadata, message).await
    }

    /// Calls it over a connection: the bytes of the answer, or of the first one
    /// of a stream that does not end by itself.
    pub(crate) async fn call_on(
        &self,
        channel: impl Into<Channel>,
        metadata: MetadataMap,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        let mut client = Grpc::new(channel.into());
        client.ready().await.unwrap();
        let mut request = Request::from_parts(metadata, http::Extensions::default(), message);
        request.set_timeout(Duration::from_secs(30));
        let path = PathAndQuery::try_from(self.path()).unwrap();
        if !self.descriptor.is_server_streaming() {
            return Ok(client.unary(request, path, Raw).await?.into_inner());
        }
        let mut answers = client.server_streaming(request, path, Raw).await?.into_inner();
        Ok(answers.message().await?.unwrap_or_default())
    }
}
