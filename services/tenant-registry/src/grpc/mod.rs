//! The registry's gRPC methods: decode, call, encode.

mod activity;
mod certificate;
mod cluster;
mod convert;
mod migration;
mod tenant;

use crm_auth::ServiceContext;
use crm_clock::Clock;
use crm_error::ApiError;
use crm_proto::identity::v1 as identity_pb;
use crm_proto::identity::v1::auth_service_server::AuthService;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_server::LeaseService;
use crm_service::open::{open, open_public, settle};
use crm_service::{names, timestamp};
use futures_util::stream::{BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};

pub(crate) use certificate::certificate_fits;
pub(crate) use cluster::ClusterApi;
pub(crate) use migration::MigrationApi;
pub(crate) use tenant::TenantApi;

use crate::activity::Activities;
use crate::events::Events;
use crate::identity::Identity;
use crate::lease::Logins;
use crate::schema::{NewMigration, Schemas};

/// `crm.identity.v1.AuthService`.
#[derive(Clone, Debug)]
pub(crate) struct AuthApi {
    pub(crate) identity: Identity,
}

/// `crm.registry.v1.LeaseService`.
#[derive(Debug)]
pub(crate) struct LeaseApi {
    pub(crate) logins: Logins,
    pub(crate) schemas: Schemas,
    pub(crate) activities: Activities,
    pub(crate) events: Events,
    pub(crate) session_cap: u32,
    pub(crate) clock: Clock,
}

#[tonic::async_trait]
impl AuthService for AuthApi {
    async fn issue_service_token(
        &self,
        request: Request<identity_pb::IssueServiceTokenRequest>,
    ) -> Result<Response<identity_pb::IssueServiceTokenResponse>, Status> {
        let (message, violations) = open_public(request);
        settle(Some(()), violations)?;
        let issued = self.identity.exchange(message.client_id, &message.client_secret).await;
        let issued = issued.map_err(ApiError::from)?;
        Ok(Response::new(identity_pb::IssueServiceTokenResponse {
            access_token: issued.token,
            expire_time: Some(timestamp(issued.expire_time)),
        }))
    }

    async fn get_jwks(
        &self,
        _: Request<identity_pb::GetJwksRequest>,
    ) -> Result<Response<identity_pb::GetJwksResponse>, Status> {
        Ok(Response::new(identity_pb::GetJwksResponse { keys: self.identity.jwks() }))
    }
}

#[tonic::async_trait]
impl LeaseService for LeaseApi {
    type WatchTenantsStream = BoxStream<'static, Result<pb::WatchTenantsResponse, Status>>;

    async fn acquire_lease(
        &self,
        request: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::AcquireLeaseResponse>, Status> {
        let (ctx, message, mut violations) = open::<ServiceContext, _>(request)?;
        let id = names::parse_field("tenants", &message.tenant, "tenant", &mut violations);
        let id = settle(id, violations)?;
        let leased = self.logins.lease(id, ctx.service().to_owned(), message.login_refused).await;
        let (row, login) = leased.map_err(ApiError::from)?;
        Ok(Response::new(convert::lease(row, &login, self.session_cap, self.clock.now())))
    }

    async fn report_activity(
        &self,
        request: Request<pb::ReportActivityRequest>,
    ) -> Result<Response<pb::ReportActivityResponse>, Status> {
        let (ctx, message, mut violations) = open::<ServiceContext, _>(request)?;
        let report = activity::report(ctx.service(), message, &mut violations);
        let report = settle(Some(report), violations)?;
        self.activities.report(report).await.map_err(ApiError::from)?;
        Ok(Response::new(pb::ReportActivityResponse {}))
    }

    async fn register_schema(
        &self,
        request: Request<pb::RegisterSchemaRequest>,
    ) -> Result<Response<pb::RegisterSchemaResponse>, Status> {
        let (ctx, message, mut violations) = open::<ServiceContext, _>(request)?;
        convert::check_migrations(&message.migrations, &mut violations);
        settle(Some(()), violations)?;
        let migrations = message.migrations.into_iter().map(NewMigration::from).collect();
        let version = self.schemas.register(ctx.service().to_owned(), migrations).await;
        let schema_version = version.map_err(ApiError::from)?;
        Ok(Response::new(pb::RegisterSchemaResponse { schema_version }))
    }

    async fn watch_tenants(
        &self,
        request: Request<pb::WatchTenantsRequest>,
    ) -> Result<Response<Self::WatchTenantsStream>, Status> {
        let (ctx, _, violations) = open::<ServiceContext, _>(request)?;
        settle(Some(()), violations)?;
        let events = self.events.watch(ctx.expire_time()).map(|event| {
            let event = event.map_err(ApiError::from)?;
            Ok(event.into())
        });
        Ok(Response::new(events.boxed()))
    }
}
