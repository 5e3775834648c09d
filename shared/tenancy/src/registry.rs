//! The tenant-registry, as the other services of this suite use it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use crm_auth::Verifier;
use crm_clock::Clock;
use crm_proto::identity::v1::auth_service_client::AuthServiceClient;
use crm_proto::identity::v1::{GetJwksRequest, IssueServiceTokenRequest};
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::trace::PassTrace;

type TracedChannel = InterceptedService<Channel, PassTrace>;

/// A token is renewed when less than this is left of it.
const TOKEN_MARGIN: chrono::TimeDelta = chrono::TimeDelta::seconds(120);
/// How often the keys are fetched.
const KEYS_EVERY: Duration = Duration::from_secs(30);
/// How long to wait before another attempt; then twice the time, and so on.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// The longest pause between two attempts.
const RETRY_AT_LAST: Duration = Duration::from_secs(3);
/// How long a call to the registry may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a lease may take: who needs one learns within a second that there
/// is none.
const LEASE_TIMEOUT: Duration = Duration::from_millis(800);
/// Building a template takes longer than a call.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);

/// One step of a service's schema. Sets are append-only.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// 1, 2, 3 and so on.
    pub version: u32,
    /// What it does, in a few words.
    pub description: &'static str,
    /// The statements, run in one transaction as the schema's owner.
    pub sql: &'static str,
    /// The oldest version of the service that still works with the schema once
    /// this is there. 0: all do, as with every migration that only expands.
    pub oldest_service_version: u32,
}

/// Where the registry answers.
#[derive(Clone, Debug)]
pub struct RegistryEndpoints {
    /// Its public listener, such as `http://127.0.0.1:50051`.
    pub public: String,
    /// Its internal listener, which serves leases.
    pub internal: String,
    /// Who the client is and whom it believes, where these are `https`.
    pub tls: Option<ClientTlsConfig>,
}

/// A client of the registry, with the credentials of one service.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    service: &'static str,
    secret: SecretString,
    auth: AuthServiceClient<TracedChannel>,
    lease: LeaseServiceClient<TracedChannel>,
    token: Arc<Mutex<Option<Token>>>,
    clock: Clock,
}

#[derive(Clone)]
struct Token {
    bearer: AsciiMetadataValue,
    expire_time: DateTime<Utc>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expire_time", &self.expire_time).finish_non_exhaustive()
    }
}

impl RegistryClient {
    /// A client that connects when it is first used.
    ///
    /// # Errors
    ///
    /// When an endpoint is no URL, or a certificate cannot be used.
    pub fn new(
        service: &'static str,
        secret: SecretString,
        endpoints: &RegistryEndpoints,
        clock: Clock,
    ) -> Result<Self, tonic::transport::Error> {
        let channel = |url: &str| -> Result<Channel, tonic::transport::Error> {
            let mut endpoint = Endpoint::from_shared(url.to_owned())?;
            if let Some(tls) = endpoints.tls.clone().filter(|_| url.starts_with("https:")) {
                endpoint = endpoint.tls_config(tls)?;
            }
            let endpoint = endpoint
                .connect_timeout(Duration::from_secs(1))
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(20));
            Ok(endpoint.connect_lazy())
        };
        Ok(Self {
            service,
            secret,
            auth: AuthServiceClient::with_interceptor(channel(&endpoints.public)?, PassTrace),
            lease: LeaseServiceClient::with_interceptor(channel(&endpoints.internal)?, PassTrace),
            token: Arc::default(),
            clock,
        })
    }

    /// The clock that it goes by.
    pub(crate) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// Registers the service's schema, and waits for a registry that is not
    /// there yet.
    ///
    /// # Errors
    ///
    /// When the registry refuses the set.
    pub async fn register_schema(&self, migrations: &[Migration]) -> Result<(), Status> {
        let request = pb::RegisterSchemaRequest {
            migrations: migrations
                .iter()
                .map(|migration| pb::Migration {
                    version: migration.version,
                    description: migration.description.to_owned(),
                    sql: migration.sql.to_owned(),
                    oldest_service_version: migration.oldest_service_version,
                })
                .collect(),
        };
        patiently(async || {
            let request = self.authorized(request.clone(), REGISTER_TIMEOUT).await?;
            self.lease.clone().register_schema(request).await
        })
        .await?;
        Ok(())
    }

    /// Gives the verifier the registry's keys now, and keeps them fresh for
    /// as long as this process runs. Without the registry, the keys that are
    /// known go on verifying.
    ///
    /// # Errors
    ///
    /// When the registry refuses.
    pub async fn follow_keys(&self, verifier: Verifier) -> Result<(), Status> {
        patiently(async || self.fetch_keys(&verifier).await).await?;
        let client = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(KEYS_EVERY).await;
                if let Err(status) = client.fetch_keys(&verifier).await {
                    tracing::warn!(%status, "the signing keys could not be refreshed");
                }
            }
        });
        Ok(())
    }

    async fn fetch_keys(&self, verifier: &Verifier) -> Result<(), Status> {
        let mut request = Request::new(GetJwksRequest {});
        request.set_timeout(CALL_TIMEOUT);
        let keys = self.auth.clone().get_jwks(request).await?.into_inner().keys;
        if let Err(error) = verifier.set_keys(&keys) {
            tracing::error!(%error, "the published keys cannot be used");
        }
        Ok(())
    }

    /// How this service reaches the database of a tenant; once the registry has
    /// looked at the login, if PostgreSQL refused that.
    pub(crate) async fn acquire_lease(
        &self,
        tenant: crm_auth::TenantId,
        login_refused: bool,
    ) -> Result<pb::AcquireLeaseResponse, Status> {
        let tenant = format!("tenants/{tenant}");
        let message = pb::AcquireLeaseRequest { tenant, login_refused };
        let granted = async {
            let request = self.authorized(message, LEASE_TIMEOUT).await?;
            let granted = self.lease.clone().acquire_lease(request).await;
            Ok(self.accepted(granted).await?.into_inner())
        };
        // The token, too, may have to come from a registry that hangs.
        #[expect(clippy::disallowed_methods, reason = "what a client says, to this process alone")]
        let hangs = |_| Status::deadline_exceeded("the registry does not answer in time");
        tokio::time::timeout(LEASE_TIMEOUT, granted).await.map_err(hangs)?
    }

    /// Tells the registry what this process did since the last report.
    pub(crate) async fn report_activity(
        &self,
        report: pb::ReportActivityRequest,
    ) -> Result<(), Status> {
        let request = self.authorized(report, CALL_TIMEOUT).await?;
        let reported = self.lease.clone().report_activity(request).await;
        self.accepted(reported).await?;
        Ok(())
    }

    /// What becomes of tenants, as it happens.
    pub(crate) async fn watch_tenants(
        &self,
    ) -> Result<Streaming<pb::WatchTenantsResponse>, Status> {
        // No deadline: the stream has none.
        let mut request = Request::new(pb::WatchTenantsRequest {});
        request.metadata_mut().insert("authorization", self.bearer().await?);
        let watched = self.lease.clone().watch_tenants(request).await;
        Ok(self.accepted(watched).await?.into_inner())
    }

    /// Forgets a token that the registry does not take any more, as after its
    /// keys were replaced: the next call brings a new one.
    async fn accepted<T>(&self, answer: Result<T, Status>) -> Result<T, Status> {
        if answer.as_ref().is_err_and(|status| status.code() == tonic::Code::Unauthenticated) {
            *self.token.lock().await = None;
        }
        answer
    }

    async fn authorized<T>(&self, message: T, timeout: Duration) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        request.metadata_mut().insert("authorization", self.bearer().await?);
        Ok(request)
    }

    async fn bearer(&self) -> Result<AsciiMetadataValue, Status> {
        let mut token = self.token.lock().await;
        if let Some(token) = &*token
            && token.expire_time - self.clock.now() > TOKEN_MARGIN
        {
            return Ok(token.bearer.clone());
        }
        let mut request = Request::new(IssueServiceTokenRequest {
            client_id: format!("services/{}", self.service),
            client_secret: self.secret.expose_secret().to_owned(),
        });
        request.set_timeout(Duration::from_secs(1));
        let issued = self.auth.clone().issue_service_token(request).await?.into_inner();
        #[expect(clippy::disallowed_methods, reason = "what a client says, to this process alone")]
        let no_ascii = |_| Status::data_loss("the token is not ASCII");
        let bearer = format!("Bearer {}", issued.access_token);
        let mut bearer: AsciiMetadataValue = bearer.parse().map_err(no_ascii)?;
        bearer.set_sensitive(true);
        let expire_time = issued
            .expire_time
            .and_then(|time| DateTime::from_timestamp(time.seconds, 0))
            .unwrap_or_default();
        Ok(token.insert(Token { bearer, expire_time }).bearer.clone())
    }
}

/// Calls a registry that may not be there yet, until it answers.
pub(crate) async fn patiently<T>(call: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let mut pause = RETRY_AFTER;
    loop {
        match call().await {
            Err(status) if is_transient(&status) => {
                tracing::warn!(%status, "waiting for the tenant-registry");
                tokio::time::sleep(pause).await;
                pause = RETRY_AT_LAST.min(pause * 2);
            }
            answered => return answered,
        }
    }
}

/// Whether another attempt can help.
fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
    )
}
