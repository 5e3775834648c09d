//! Two replicas of a suite whose tenants and clusters are this proof's own.

use std::ops::Sub;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crm_auth::{PLATFORM_OPERATOR, TenantClaims};
use crm_proto::changes::v1::ListChangesRequest;
use crm_proto::changes::v1::change_service_client::ChangeServiceClient;
use crm_proto::options::v1::Scope;
use crm_proto::registry::v1 as registry;
use crm_standalone::app::LOCAL_OPERATOR;
use crm_testing::{Channel, Client, OtherCluster, Replica, Server, Tenant, own_server};
use prost::Message as _;
use prost::bytes::Bytes;
use sqlx::postgres::PgConnection;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;

use super::PATIENCE;
use crate::methods::Method;
use crate::world::bearer;

/// The most that a page may have.
const PAGE: i32 = 1000;

/// The suite, and what was made in it.
pub(super) struct Suite {
    pub(super) server: Server,
    replica: Replica,
    /// A superuser's connection to the registry's database.
    registry: tokio::sync::Mutex<PgConnection>,
    /// Whose methods are called.
    tenant: Tenant,
    /// Tenants that methods of the registry made or changed: what must hold of
    /// them is looked at when they are dropped.
    pub(super) others: Mutex<Vec<Tenant>>,
    /// Clusters that were added.
    pub(super) clusters: Mutex<Vec<OtherCluster>>,
}

/// What is there, as a call that writes changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Grows by one with every write.
    pub(super) writes: i64,
    /// What there is of that which writes may make.
    rows: i64,
}

impl Sub for Written {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { writes: self.writes - before.writes, rows: self.rows - before.rows }
    }
}

impl Suite {
    pub(super) async fn start() -> Self {
        // Others must not see clusters come. Without spares tenants are made in
        // many steps.
        let server = own_server(0);
        let replica = server.replica().await;
        let registry = server.superuser("crm_registry").await.into();
        let tenant = Tenant::create_in(&server).await;
        let (others, clusters) = (Mutex::default(), Mutex::default());
        Self { server, replica, registry, tenant, others, clusters }
    }

    /// Stops the other replica once nothing is under way.
    pub(super) async fn stop(self) {
        let until = Instant::now() + PATIENCE;
        let mut registry = self.registry.lock().await;
        loop {
            let due = sqlx::query_scalar("SELECT count(*) FROM due_migrations");
            let due: i64 = due.fetch_one(&mut *registry).await.unwrap();
            if due == 0 {
                break;
            }
            assert!(Instant::now() < until, "{due} migrations are still due");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(registry);
        self.replica.stop().await;
    }

    /// Connections to a method's listener at both replicas.
    pub(super) fn channels(&self, method: &Method) -> (Channel, Channel) {
        let channel = |addresses| {
            let address = format!("http://{}", method.address_at(addresses));
            Endpoint::from_shared(address).unwrap().connect_lazy().into()
        };
        (channel(self.server.addresses), channel(self.replica.addresses))
    }

    /// The metadata of the caller that a method is for.
    pub(super) fn caller(&self, method: &Method) -> MetadataMap {
        bearer(&match method.guard() {
            Some((Scope::Tenant, _)) => self.owner_token(),
            Some((Scope::Platform, _)) => self.token(PLATFORM_OPERATOR, None),
            guard => panic!("who calls {}, which asks for {guard:?}?", method.short_name()),
        })
    }

    /// The tenant's owner.
    pub(super) fn owner(&self) -> Client {
        Client::new(self.owner_token())
    }

    fn owner_token(&self) -> String {
        let claims = TenantClaims { tid: self.tenant.id, generation: 1, ver: 1 };
        self.token("roles/owner", Some(claims))
    }

    fn token(&self, role: &str, tenant: Option<TenantClaims>) -> String {
        let issued =
            self.server.identity.issue(LOCAL_OPERATOR.to_owned(), vec![role.to_owned()], tenant);
        issued.unwrap().token
    }

    /// Keeps a tenant that a method made.
    pub(super) fn keep(&self, method: &Method, answer: &Bytes) {
        if method.short_name() == "TenantService.CreateTenant" {
            let tenant = registry::Tenant::decode(answer.clone()).unwrap();
            self.others.lock().unwrap().push(Tenant::of(&self.server, tenant));
        }
    }

    /// What is there of what a method writes.
    pub(super) async fn written(&self, method: &Method) -> Written {
        match method.guard() {
            Some((Scope::Tenant, _)) => self.written_by_the_tenant().await,
            _ => self.written_by_operators().await,
        }
    }

    /// The tenant's revision and its changes.
    async fn written_by_the_tenant(&self) -> Written {
        let owner = self.owner();
        let channel = owner.channel(self.server.addresses.messaging);
        let mut client = ChangeServiceClient::new(channel);
        let (mut after_revision, mut rows) = (0, 0);
        loop {
            let request = ListChangesRequest { after_revision, page_size: PAGE, ..<_>::default() };
            let page = client.list_changes(owner.request(request)).await.unwrap().into_inner();
            rows += i64::try_from(page.changes.len()).unwrap();
            after_revision = page.next_after_revision;
            if after_revision >= page.revision {
                return Written { writes: page.revision, rows };
            }
        }
    }

    /// The revisions of tenants and clusters, and the migrations that are no
    /// longer failed; tenants and clusters themselves, and databases.
    async fn written_by_operators(&self) -> Written {
        let mut registry = self.registry.lock().await;
        let (writes, rows) = sqlx::query_as(
            "SELECT (
                 (SELECT sum(revision) FROM tenants) + (SELECT sum(revision) FROM clusters)
                 - (SELECT count(*) FROM database_migrations WHERE state = 4)
             )::bigint, (
                 (SELECT count(*) FROM tenants) + (SELECT count(*) FROM clusters)
                 + (SELECT count(*) FROM databases WHERE purpose = 'tenant')
             )::bigint",
        )
        .fetch_one(&mut *registry)
        .await
        .unwrap();
        Written { writes, rows }
    }
}
