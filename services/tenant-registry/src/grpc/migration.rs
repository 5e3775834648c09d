//! The methods of `crm.registry.v1.MigrationService`.

use crm_auth::PlatformContext;
use crm_error::ApiError;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::migration_service_server::MigrationService;
use crm_service::open::{open, settle};
use crm_service::page::{Binding, Cursor};
use crm_service::repeat::RequestKey;
use tonic::{Request, Response, Status};

use super::convert;
use crate::migration::Migrations;

/// `crm.registry.v1.MigrationService`.
#[derive(Debug)]
pub(crate) struct MigrationApi {
    pub(crate) migrations: Migrations,
}

#[tonic::async_trait]
impl MigrationService for MigrationApi {
    async fn list_tenant_migrations(
        &self,
        request: Request<pb::ListTenantMigrationsRequest>,
    ) -> Result<Response<pb::ListTenantMigrationsResponse>, Status> {
        let (_, message, mut violations) = open::<PlatformContext, _>(request)?;
        let arguments = [message.parent.as_str(), &message.filter];
        let binding = Binding::platform("ListTenantMigrations", &arguments);
        let cursor = Cursor::decode(&message.page_token, &binding, &mut violations);
        let filter = convert::migration_filter(&message, &mut violations);
        settle(Some(()), violations)?;
        let page = self.migrations.list(filter, cursor).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::migration_page(page, &binding)))
    }

    async fn retry_tenant_migration(
        &self,
        request: Request<pb::RetryTenantMigrationRequest>,
    ) -> Result<Response<pb::RetryTenantMigrationResponse>, Status> {
        let (ctx, message, mut violations) = open::<PlatformContext, _>(request)?;
        let anonymous =
            pb::RetryTenantMigrationRequest { request_id: String::new(), ..message.clone() };
        let request = RequestKey::new(&message.request_id, &anonymous);
        let key = convert::migration_key(&message.name, &mut violations);
        let key = settle(key, violations)?;
        let retried = self.migrations.retry(key, ctx.subject().to_owned(), request).await;
        Ok(Response::new(retried.map_err(ApiError::from)?))
    }

    async fn summarize_migrations(
        &self,
        request: Request<pb::SummarizeMigrationsRequest>,
    ) -> Result<Response<pb::SummarizeMigrationsResponse>, Status> {
        let (_, _, violations) = open::<PlatformContext, _>(request)?;
        settle(Some(()), violations)?;
        let services = self.migrations.summarize().await.map_err(ApiError::from)?;
        let services = services.into_iter().map(pb::ServiceMigrations::from).collect();
        Ok(Response::new(pb::SummarizeMigrationsResponse { services }))
    }
}
