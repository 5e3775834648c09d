//! Calls to the suite, as a client makes them.

use std::net::SocketAddr;
use std::time::Duration;

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::identity::v1::IssueServiceTokenRequest;
use crm_proto::identity::v1::auth_service_client::AuthServiceClient;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};

use crate::Failure;
use crate::suite::Suite;

/// How long making a tenant may take: on a busy disk, long.
const CREATE_TENANT: Duration = Duration::from_secs(30);

/// A token, ready to be sent.
#[derive(Clone)]
pub(crate) struct Bearer(AsciiMetadataValue);

impl Bearer {
    pub(crate) fn new(token: &str) -> Result<Self, Failure> {
        Ok(Self(format!("Bearer {token}").parse()?))
    }

    /// A request with this token.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.0.clone());
        request
    }
}

/// A login of a service in a tenant's database.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) port: u16,
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) password: String,
    /// How many sessions one process may have with it.
    pub(crate) session_cap: u32,
}

impl Login {
    /// How sqlx connects with it.
    pub(crate) fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(&self.user)
            .password(&self.password)
            .database(&self.database)
            .ssl_mode(PgSslMode::Disable)
    }
}

/// One connection.
pub(crate) async fn connect(address: SocketAddr) -> Result<Channel, Failure> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.connect().await?)
}

/// Clients of the contacts service, spread over a few connections.
pub(crate) async fn contact_clients(
    address: SocketAddr,
    clients: u32,
    channels: u32,
) -> Result<Vec<ContactServiceClient<Channel>>, Failure> {
    let mut connected = Vec::new();
    for _ in 0..channels.min(clients) {
        connected.push(ContactServiceClient::new(connect(address).await?));
    }
    Ok(connected.iter().cycle().take(clients as usize).cloned().collect())
}

/// A client that makes tenants as the local operator.
pub(crate) struct Operator {
    client: TenantServiceClient<Channel>,
    bearer: Bearer,
}

impl Operator {
    pub(crate) async fn connect(suite: &Suite) -> Result<Self, Failure> {
        let client = TenantServiceClient::new(connect(suite.registry()).await?);
        Ok(Self { client, bearer: suite.token(None).await? })
    }

    /// Makes a tenant, and answers its resource name.
    pub(crate) async fn create_tenant(&mut self, slug: &str) -> Result<String, Failure> {
        let tenant = pb::Tenant {
            slug: slug.to_owned(),
            display_name: format!("Bench {slug}"),
            ..pb::Tenant::default()
        };
        let message =
            pb::CreateTenantRequest { tenant: Some(tenant), ..pb::CreateTenantRequest::default() };
        let mut request = self.bearer.request(message);
        request.set_timeout(CREATE_TENANT);
        let made = self.client.create_tenant(request).await?;
        Ok(made.into_inner().name)
    }

    /// What a tenant did until now.
    pub(crate) async fn activity(&mut self, tenant: &str) -> Result<pb::TenantActivity, Failure> {
        let message = pb::GetTenantActivityRequest { name: format!("{tenant}/activity") };
        Ok(self.client.get_tenant_activity(self.bearer.request(message)).await?.into_inner())
    }
}

/// A client that asks for leases as the contacts service does.
pub(crate) struct Leases {
    client: LeaseServiceClient<Channel>,
    bearer: Bearer,
}

impl Leases {
    pub(crate) async fn connect(suite: &Suite) -> Result<Self, Failure> {
        let credentials = IssueServiceTokenRequest {
            client_id: "services/contacts".to_owned(),
            client_secret: suite.secret("contacts.secret")?,
        };
        let mut auth = AuthServiceClient::new(connect(suite.registry()).await?);
        let issued = auth.issue_service_token(credentials).await?.into_inner();
        let client = LeaseServiceClient::new(connect(suite.leases()).await?);
        Ok(Self { client, bearer: Bearer::new(&issued.access_token)? })
    }

    /// The login of the contacts service in the database of a tenant.
    pub(crate) async fn login(&mut self, tenant: &str) -> Result<Login, Failure> {
        let message = pb::AcquireLeaseRequest { tenant: tenant.to_owned(), ..Default::default() };
        let lease = self.client.acquire_lease(self.bearer.request(message)).await?.into_inner();
        Ok(Login {
            port: u16::try_from(lease.port)?,
            database: lease.database,
            user: lease.user,
            password: lease.secret,
            session_cap: lease.session_cap,
        })
    }
}
