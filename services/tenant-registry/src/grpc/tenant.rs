//! The methods of tenants: decode, call, encode.

use crm_auth::PlatformContext;
use crm_error::ApiError;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant_service_server::TenantService;
use crm_service::open::{open, settle};
use crm_service::page::{Binding, Cursor};
use crm_service::repeat::RequestKey;
use tonic::{Request, Response, Status};

use super::{activity, convert};
use crate::activity::Activities;
use crate::purge::Purges;
use crate::tenant::{Change, NewTenant, Target, TenantError, Tenants};

/// `crm.registry.v1.TenantService`.
#[derive(Debug)]
pub(crate) struct TenantApi {
    pub(crate) tenants: Tenants,
    pub(crate) purges: Purges,
    pub(crate) activities: Activities,
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
        let key = convert::tenant_key(&message.name, "name", &mut violations);
        let key = settle(key, violations)?;
        let tenant = self.tenants.get(key).await.map_err(ApiError::from)?;
        Ok(Response::new(tenant.into()))
    }

    async fn list_tenants(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Result<Response<pb::ListTenantsResponse>, Status> {
        let (_, message, mut violations) = open::<PlatformContext, _>(request)?;
        let deleted = message.show_deleted.to_string();
        let binding = Binding::platform("ListTenants", &[&message.filter, &deleted]);
        let cursor = Cursor::decode(&message.page_token, &binding, &mut violations);
        let filter = convert::tenant_filter(&message, &mut violations);
        settle(Some(()), violations)?;
        let page = self.tenants.list(filter, cursor).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::tenant_page(page, &binding)))
    }

    async fn update_tenant(
        &self,
        request: Request<pb::UpdateTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        let (ctx, message, violations) = open::<PlatformContext, _>(request)?;
        let anonymous = pb::UpdateTenantRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let validate_only = message.validate_only;
        let (target, patch) = convert::tenant_update(message, violations)?;
        self.change(&ctx, target, Change::Update(Box::new(patch)), key, validate_only).await
    }

    async fn delete_tenant(
        &self,
        request: Request<pb::DeleteTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        let (ctx, message, violations) = open::<PlatformContext, _>(request)?;
        let anonymous = pb::DeleteTenantRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let target = convert::tenant_target(&message.name, &message.etag, violations)?;
        self.change(&ctx, target, Change::Delete, key, message.validate_only).await
    }

    async fn undelete_tenant(
        &self,
        request: Request<pb::UndeleteTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        let (ctx, message, violations) = open::<PlatformContext, _>(request)?;
        let anonymous = pb::UndeleteTenantRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let target = convert::tenant_target(&message.name, &message.etag, violations)?;
        self.change(&ctx, target, Change::Undelete, key, message.validate_only).await
    }

    async fn purge_tenant(
        &self,
        request: Request<pb::PurgeTenantRequest>,
    ) -> Result<Response<pb::PurgeTenantResponse>, Status> {
        let (ctx, message, mut violations) = open::<PlatformContext, _>(request)?;
        let key = convert::tenant_key(&message.name, "name", &mut violations);
        let key = settle(key, violations)?;
        let uid = message.uid.parse().unwrap_or_default();
        let caller = ctx.subject().to_owned();
        let certificate = self.purges.request(key, uid, caller, message.validate_only).await;
        let certificate = certificate.map_err(ApiError::from)?;
        Ok(Response::new(pb::PurgeTenantResponse { certificate: Some(certificate.into()) }))
    }

    async fn suspend_tenant(
        &self,
        request: Request<pb::SuspendTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        let (ctx, message, violations) = open::<PlatformContext, _>(request)?;
        let anonymous = pb::SuspendTenantRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let target = convert::tenant_target(&message.name, &message.etag, violations)?;
        self.change(&ctx, target, Change::Suspend, key, message.validate_only).await
    }

    async fn resume_tenant(
        &self,
        request: Request<pb::ResumeTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        let (ctx, message, violations) = open::<PlatformContext, _>(request)?;
        let anonymous = pb::ResumeTenantRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let target = convert::tenant_target(&message.name, &message.etag, violations)?;
        self.change(&ctx, target, Change::Resume, key, message.validate_only).await
    }

    async fn get_tenant_activity(
        &self,
        request: Request<pb::GetTenantActivityRequest>,
    ) -> Result<Response<pb::TenantActivity>, Status> {
        let (_, message, mut violations) = open::<PlatformContext, _>(request)?;
        let key = activity::activity_key(&message.name, &mut violations);
        let key = settle(key, violations)?;
        let tenant = self.tenants.get(key).await.map_err(ApiError::from)?;
        let Some(id) = tenant.id else { return Err(ApiError::from(TenantError::NotFound).into()) };
        let activity = self.activities.get(id, tenant.cluster, tenant.database).await;
        let activity = activity.map_err(ApiError::from)?;
        Ok(Response::new(activity::activity(id, activity)))
    }
}

impl TenantApi {
    /// What all changes have in common.
    async fn change(
        &self,
        ctx: &PlatformContext,
        target: Target,
        change: Change,
        key: RequestKey,
        validate_only: bool,
    ) -> Result<Response<pb::Tenant>, Status> {
        if validate_only {
            let tenant = self.tenants.preview_change(target, change).await;
            return Ok(Response::new(tenant.map_err(ApiError::from)?.into()));
        }
        let caller = ctx.subject().to_owned();
        let tenant = self.tenants.change(target, change, caller, key).await;
        Ok(Response::new(tenant.map_err(ApiError::from)?))
    }
}
