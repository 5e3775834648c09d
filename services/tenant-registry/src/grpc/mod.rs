//! The registry's gRPC methods: decode, call, encode.

mod cluster;
mod convert;

use crm_auth::{PlatformContext, ServiceContext};
use crm_clock::Clock;
use crm_error::ApiError;
use crm_proto::identity::v1 as identity_pb;
use crm_proto::identity::v1::auth_service_server::AuthService;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_server::LeaseService;
use crm_proto::registry::v1::tenant_service_server::TenantService;
use crm_service::open::{open, open_public, settle};
use crm_service::repeat::RequestKey;
use crm_service::{names, timestamp};
use tonic::{Request, Response, Status};

pub(crate) use cluster::ClusterApi;

use crate::activity::Activities;
use crate::identity::Identity;
use crate::lease::Logins;
use crate::schema::{NewMigration, Schemas};
use crate::tenant::{NewTenant, TenantError, Tenants};

/// `crm.registry.v1.TenantService`.
#[derive(Debug)]
pub(crate) struct TenantApi {
    pub(crate) tenants: Tenants,
    pub(crate) activities: Activities,
}

/// `crm.identity.v1.AuthService`.
#[derive(Debug)]
pub(crate) struct AuthApi {
    pub(crate) identity: Identity,
}

/// `crm.registry.v1.LeaseService`.
#[derive(Debug)]
pub(crate) struct LeaseApi {
    pub(crate) logins: Logins,
    pub(crate) schemas: Schemas,
    pub(crate) activities: Activities,
    pub(crate) session_cap: u32,
    pub(crate) clock: Clock,
}

#[tonic::async_trait]
impl TenantService for TenantApi {
    async fn create_tenant(
        &self,
        request: Request<pb::CreateTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        let (ctx, message, mut violations) = open::<PlatformContext, _>(request)?;
        let anonymous = pb::CreateTenantRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let new = message.tenant.map(NewTenant::from);
        if let Some(new) = &new {
            new.check(&mut violations);
        }
        let new = settle(new, violations)?;
        let tenant = if message.validate_only {
            self.tenants.preview(new).await.map_err(ApiError::from)?.into()
        } else {
            self.tenants.create(new, ctx.subject().to_owned(), key).await.map_err(ApiError::from)?
        };
        Ok(Response::new(tenant))
    }

    async fn get_tenant(
        &self,
        request: Request<pb::GetTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        let (_, message, mut violations) = open::<PlatformContext, _>(request)?;
        let key = convert::tenant_key(&message.name, &mut violations);
        let key = settle(key, violations)?;
        let tenant = self.tenants.get(key).await.map_err(ApiError::from)?;
        Ok(Response::new(tenant.into()))
    }

    async fn get_tenant_activity(
        &self,
        request: Request<pb::GetTenantActivityRequest>,
    ) -> Result<Response<pb::TenantActivity>, Status> {
        let (_, message, mut violations) = open::<PlatformContext, _>(request)?;
        let key = convert::activity_key(&message.name, &mut violations);
        let key = settle(key, violations)?;
        let tenant = self.tenants.get(key).await.map_err(ApiError::from)?;
        let Some(id) = tenant.id else { return Err(ApiError::from(TenantError::NotFound).into()) };
        let activity = self.activities.get(id, tenant.cluster, tenant.database).await;
        let activity = activity.map_err(ApiError::from)?;
        Ok(Response::new(convert::activity(id, activity)))
    }
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
    async fn acquire_lease(
        &self,
        request: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::AcquireLeaseResponse>, Status> {
        let (ctx, message, mut violations) = open::<ServiceContext, _>(request)?;
        let id = names::parse_field("tenants", &message.tenant, "tenant", &mut violations);
        let id = settle(id, violations)?;
        let leased = self.logins.lease(id, ctx.service().to_owned()).await;
        let (row, login) = leased.map_err(ApiError::from)?;
        Ok(Response::new(convert::lease(row, &login, self.session_cap, self.clock.now())))
    }

    async fn report_activity(
        &self,
        request: Request<pb::ReportActivityRequest>,
    ) -> Result<Response<pb::ReportActivityResponse>, Status> {
        let (ctx, message, mut violations) = open::<ServiceContext, _>(request)?;
        let report = convert::report(ctx.service(), message, &mut violations);
        let report = settle(Some(report), violations)?;
        self.activities.report(report).await.map_err(ApiError::from)?;
        Ok(Response::new(pb::ReportActivityResponse {}))
    }

    async fn register_schema(
        &self,
        request: Request<pb::RegisterSchemaRequest>,
    ) -> Result<Response<pb::RegisterSchemaResponse>, Status> {
        let (ctx, message, violations) = open::<ServiceContext, _>(request)?;
        settle(Some(()), violations)?;
        let migrations = message.migrations.into_iter().map(NewMigration::from).collect();
        let version = self.schemas.register(ctx.service().to_owned(), migrations).await;
        let schema_version = version.map_err(ApiError::from)?;
        Ok(Response::new(pb::RegisterSchemaResponse { schema_version }))
    }
}
