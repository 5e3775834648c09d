//! Tenants: creating and reading them.

mod error;
pub(crate) mod model;
mod store;

use crm_clock::Clock;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant::State;
use crm_service::repeat::RequestKey;
use prost::Message as _;

pub(crate) use error::TenantError;
pub(crate) use model::{NewTenant, Tenant, TenantKey};

use crate::database::{Database, owned};
use crate::provisioning::{Placed, Provisioner};

/// How many names are tried for a slug that was not given.
const SLUG_ATTEMPTS: u32 = 9;

/// The use cases of tenants.
#[derive(Clone, Debug)]
pub(crate) struct Tenants {
    database: Database,
    provisioner: Provisioner,
    clock: Clock,
}

impl Tenants {
    pub(crate) fn new(database: Database, provisioner: Provisioner, clock: Clock) -> Self {
        Self { database, provisioner, clock }
    }

    /// Creates a tenant with a database of its own, and answers when it is
    /// ready. A repeated request takes up where the first was cut off.
    pub(crate) async fn create(
        &self,
        new: NewTenant,
        caller: String,
        key: RequestKey,
    ) -> Result<pb::Tenant, TenantError> {
        let this = self.clone();
        owned(async move { this.create_owned(new, &caller, &key).await }).await
    }

    async fn create_owned(
        &self,
        new: NewTenant,
        caller: &str,
        key: &RequestKey,
    ) -> Result<pb::Tenant, TenantError> {
        let planned = self.plan(new, caller, key).await?;
        if let Some(response) = planned.response {
            return pb::Tenant::decode(response.as_slice()).map_err(TenantError::Corrupt);
        }
        self.provisioner.finish(planned.tenant_id).await?;
        let mut connection = self.database.registry.acquire().await.map_err(store::failed)?;
        let tenant = store::get(&mut connection, &TenantKey::Id(planned.tenant_id)).await?;
        let tenant = pb::Tenant::from(tenant.ok_or(TenantError::NotFound)?);
        // The answer to a repeated request is the first one, whatever happens
        // to the tenant meanwhile.
        let encoded = tenant.encode_to_vec();
        let first = store::keep_response(&mut connection, planned.tenant_id, &encoded).await?;
        match first {
            Some(first) => pb::Tenant::decode(first.as_slice()).map_err(TenantError::Corrupt),
            None => Ok(tenant),
        }
    }

    /// Reserves slug, database and request_id in one transaction. With a spare
    /// the tenant is active when it commits.
    async fn plan(
        &self,
        new: NewTenant,
        caller: &str,
        key: &RequestKey,
    ) -> Result<store::Planned, TenantError> {
        let mut tx = self.database.registry.begin().await.map_err(store::failed)?;
        let now = self.clock.now();
        let request = key.id.map(|request_id| store::Request { caller, request_id });
        if let Some(request) = &request
            && let Some(known) = store::claim_request(&mut tx, request, now).await?
        {
            if known.hash != key.hash {
                return Err(TenantError::RequestIdReused);
            }
            return Ok(known.planned);
        }
        let Placed { tenant_id, is_ready } = self.provisioner.place(&mut tx).await?;
        if let Some(request) = &request {
            store::insert_request(&mut tx, request, &key.hash, tenant_id, now).await?;
        }
        let state = if is_ready { State::Active } else { State::Provisioning };
        let slugs = match &new.slug {
            Some(slug) => vec![slug.clone()],
            None => model::derived_slugs(&new.display_name, tenant_id, SLUG_ATTEMPTS),
        };
        for slug in slugs {
            if store::insert_tenant(&mut tx, tenant_id, &slug, &new, state, now).await? {
                let mut response = None;
                if is_ready {
                    let tenant = store::get(&mut tx, &TenantKey::Id(tenant_id)).await?;
                    let tenant = pb::Tenant::from(tenant.ok_or(TenantError::NotFound)?);
                    let encoded = tenant.encode_to_vec();
                    store::keep_response(&mut tx, tenant_id, &encoded).await?;
                    response = Some(encoded);
                }
                tx.commit().await.map_err(store::failed)?;
                self.provisioner.placed(is_ready);
                return Ok(store::Planned { tenant_id, response });
            }
        }
        Err(TenantError::SlugTaken)
    }

    /// What creating this tenant would give, without creating it.
    pub(crate) async fn preview(&self, new: NewTenant) -> Result<Tenant, TenantError> {
        let mut connection = self.database.registry.acquire().await.map_err(store::failed)?;
        let tenant_id = self.clock.new_id();
        let slugs = match &new.slug {
            Some(slug) => vec![slug.clone()],
            None => model::derived_slugs(&new.display_name, tenant_id, SLUG_ATTEMPTS),
        };
        for slug in slugs {
            if store::get(&mut connection, &TenantKey::Slug(slug.clone())).await?.is_none() {
                return Ok(Tenant::preview(new, slug, self.clock.now()));
            }
        }
        Err(TenantError::SlugTaken)
    }

    /// A tenant by its id or its slug.
    pub(crate) async fn get(&self, key: TenantKey) -> Result<Tenant, TenantError> {
        let database = self.database.clone();
        owned(async move {
            let mut connection = database.registry.acquire().await.map_err(store::failed)?;
            store::get(&mut connection, &key).await?.ok_or(TenantError::NotFound)
        })
        .await
    }
}
