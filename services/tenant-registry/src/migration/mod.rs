//! Migrations in the databases of tenants: showing them, retrying them, and
//! the wave that runs them.

mod error;
pub(crate) mod model;
mod store;
mod wave;

use std::sync::Arc;

use crm_clock::Clock;
use crm_proto::registry::v1 as pb;
use crm_service::page::{Cursor, Page};
use crm_service::repeat::RequestKey;
use crm_tenancy::StoreError;
use prost::Message as _;
use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) use error::MigrationError;
pub(crate) use model::{MigrationFilter, MigrationKey, ServiceMigrations, TenantMigration};
pub(crate) use wave::Wave;

use crate::database::{Database, owned};
use crate::requests::{self, Request};

/// The use cases of migrations.
#[derive(Clone, Debug)]
pub(crate) struct Migrations {
    database: Database,
    /// Told when there is something to do.
    due: Arc<Notify>,
    clock: Clock,
}

impl Migrations {
    pub(crate) fn new(database: Database, due: Arc<Notify>, clock: Clock) -> Self {
        Self { database, due, clock }
    }

    /// One page of the schemas of tenants.
    pub(crate) async fn list(
        &self,
        filter: MigrationFilter,
        cursor: Option<Cursor<MigrationKey>>,
    ) -> Result<Page<TenantMigration>, MigrationError> {
        let registry = self.database.registry.clone();
        owned(async move {
            let tenant_id = match &filter.tenant {
                Some(key) => Some(
                    store::tenant_id(&registry, key)
                        .await?
                        .ok_or(MigrationError::TenantNotFound)?,
                ),
                None => None,
            };
            let after = cursor.map(|cursor| cursor.after);
            let mut items = store::list(&registry, &filter, tenant_id, after.as_ref()).await?;
            let size = usize::try_from(filter.page_size).unwrap_or(usize::MAX);
            let more = items.len() > size;
            items.truncate(size);
            Ok(Page { items, revision: 0, more })
        })
        .await
    }

    /// How far the wave of each service is.
    pub(crate) async fn summarize(&self) -> Result<Vec<ServiceMigrations>, MigrationError> {
        let registry = self.database.registry.clone();
        owned(async move { Ok(store::summary(&registry).await?) }).await
    }

    /// Lets a migration that failed run again. A repeated request answers what
    /// the first did.
    pub(crate) async fn retry(
        &self,
        migration: MigrationKey,
        caller: String,
        key: RequestKey,
    ) -> Result<pb::RetryTenantMigrationResponse, MigrationError> {
        let this = self.clone();
        owned(async move {
            let outcome = this.retry_owned(&migration, &caller, &key).await;
            this.due.notify_one();
            outcome
        })
        .await
    }

    async fn retry_owned(
        &self,
        migration: &MigrationKey,
        caller: &str,
        key: &RequestKey,
    ) -> Result<pb::RetryTenantMigrationResponse, MigrationError> {
        let now = self.clock.now();
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        let request = Request { caller, method: "RetryTenantMigration", key };
        if let Some(known) = request.claim::<Uuid>(&mut tx, now).await? {
            return Ok(requests::decode(&known.response.unwrap_or_default())?);
        }
        if !store::retry(&mut tx, migration, now).await? {
            let known = store::get(&mut tx, migration).await?;
            return Err(known.map_or(MigrationError::NotFound, |_| MigrationError::NotFailed));
        }
        let retried = store::get(&mut tx, migration).await?.ok_or(MigrationError::NotFound)?;
        let response = pb::RetryTenantMigrationResponse { tenant_migration: Some(retried.into()) };
        let encoded = response.encode_to_vec();
        request.keep(&mut tx, &migration.tenant_id, Some(&encoded), now).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(response)
    }
}
