//! A tenant for a test.

use std::sync::Arc;

use crm_auth::{PLATFORM_OPERATOR, TenantClaims};
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_standalone::app::LOCAL_OPERATOR;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tonic::Status;
use uuid::Uuid;

use crate::check::{Check, faults_of_log};
use crate::client::Client;
use crate::neighbour;
use crate::server::{Server, server};

/// A tenant with a database of its own. When its last clone goes, what must
/// hold of every tenant is checked, whatever the test did to it.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// As the registry answered it.
    pub tenant: pb::Tenant,
    /// Its id.
    pub id: Uuid,
    check: Arc<Check>,
}

impl Tenant {
    /// Makes a tenant, by the call that anyone would make. It has a neighbour,
    /// whose canaries nobody may ever read.
    pub async fn create() -> Self {
        neighbour::settle().await;
        Self::create_alone().await
    }

    pub(crate) async fn create_alone() -> Self {
        Self::create_in(server()).await
    }

    /// Makes a tenant of another server than the run's own.
    pub async fn create_in(server: &Server) -> Self {
        Self::try_create_in(server).await.unwrap()
    }

    /// Asks a server's registry for a tenant.
    ///
    /// # Errors
    ///
    /// What the registry answers.
    pub async fn try_create_in(server: &Server) -> Result<Self, Status> {
        let operator = Client::operator(server);
        let request = pb::CreateTenantRequest {
            tenant: Some(pb::Tenant {
                display_name: "Test tenant".to_owned(),
                slug: format!("test-{}", server.clock.new_id().as_simple()),
                ..pb::Tenant::default()
            }),
            ..pb::CreateTenantRequest::default()
        };
        let mut client = TenantServiceClient::new(operator.channel(server.addresses.registry));
        let tenant = client.create_tenant(operator.request(request)).await?.into_inner();
        Ok(Self::of(server, tenant))
    }

    /// One that a server's registry answered.
    pub fn of(server: &Server, tenant: pb::Tenant) -> Self {
        let id = tenant.name.strip_prefix("tenants/").unwrap().parse().unwrap();
        let check = Arc::new(Check::new(server, id));
        Self { tenant, id, check }
    }

    /// Says that this test breaks, on purpose and for good, what is checked at
    /// the end of every other.
    pub fn is_left_broken(&self, why: &'static str) {
        println!("{} is left broken: {why}", self.tenant.name);
        self.check.give_up();
    }

    /// A client with an administrator's token.
    pub fn admin(&self) -> Client {
        self.client("roles/admin", LOCAL_OPERATOR)
    }

    /// A client whose token names a role and a subject.
    pub fn client(&self, role: &str, subject: &str) -> Client {
        let claims = TenantClaims { tid: self.id, generation: 1, ver: 1 };
        let roles = vec![role.to_owned()];
        let issued = server().identity.issue(subject.to_owned(), roles, Some(claims)).unwrap();
        Client::new(issued.token)
    }

    /// A superuser's connection to its database.
    pub async fn database(&self) -> PgConnection {
        server().superuser(&self.tenant.database).await
    }

    /// What must hold after whatever was done: the log has no gap, ends at the
    /// head, and every row's revision is in it.
    pub async fn check_log(&self) {
        let mut database = self.database().await;
        let faults = faults_of_log(&mut database).await.unwrap();
        database.close().await.unwrap();
        assert!(faults.is_empty(), "{faults:?}");
    }
}

impl Client {
    /// A client with the local operator's token.
    pub fn operator(server: &Server) -> Self {
        let roles = vec![PLATFORM_OPERATOR.to_owned()];
        Self::new(server.identity.issue(LOCAL_OPERATOR.to_owned(), roles, None).unwrap().token)
    }
}
