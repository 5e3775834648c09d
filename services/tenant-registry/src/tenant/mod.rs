//! Tenants: creating, reading and changing them.

mod error;
pub(crate) mod model;
pub(crate) mod slug;
mod store;

use chrono::{DateTime, Utc};
use crm_clock::Clock;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant::State;
use crm_service::page::{Cursor, Page, Position};
use crm_service::repeat::RequestKey;
use crm_tenancy::{REFUSAL_HOLDS, StoreError};
use prost::Message as _;
use sqlx::PgConnection;
use uuid::Uuid;

pub(crate) use error::TenantError;
pub(crate) use model::GRACE;
pub(crate) use model::{
    Change, Field, NewTenant, Target, Tenant, TenantFilter, TenantKey, TenantPatch,
};

use crate::claim::{Claims, NewClaim};
use crate::database::{Database, owned};
use crate::fence::{FenceError, Fences};
use crate::provisioning::{Placed, Provisioner};
use crate::requests::{self, Known, Request};
use store::Ids;

/// How many names are tried for a slug that was not given.
const SLUG_ATTEMPTS: u32 = 9;

/// The tenant that a request is for, and the answer, once there is one.
#[derive(Debug)]
struct Planned {
    tenant_id: Uuid,
    response: Option<Vec<u8>>,
}

/// The use cases of tenants.
#[derive(Clone, Debug)]
pub(crate) struct Tenants {
    database: Database,
    provisioner: Provisioner,
    claims: Claims,
    fences: Fences,
    clock: Clock,
}

impl Tenants {
    pub(crate) fn new(
        database: Database,
        provisioner: Provisioner,
        claims: Claims,
        fences: Fences,
        clock: Clock,
    ) -> Self {
        Self { database, provisioner, claims, fences, clock }
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
        let request = Request { caller, method: "CreateTenant", key };
        let planned = loop {
            if let Some(planned) = self.plan(&new, &request).await? {
                break planned;
            }
        };
        if let Some(response) = planned.response {
            self.claims.confirm(planned.tenant_id).await?;
            return Ok(requests::decode(&response)?);
        }
        self.provisioner.finish(planned.tenant_id).await?;
        let mut connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let tenant = store::get(&mut connection, &TenantKey::Id(planned.tenant_id)).await?;
        let tenant = pb::Tenant::from(tenant.ok_or(TenantError::NotFound)?);
        // The answer to a repeated request is the first one, whatever happens
        // to the tenant meanwhile.
        let encoded = tenant.encode_to_vec();
        match request.keep_response::<Uuid>(&mut connection, &encoded).await? {
            Some(first) => Ok(requests::decode(&first)?),
            None => Ok(tenant),
        }
    }

    /// Reserves slug, database and request_id in one transaction. With a spare
    /// the tenant is active when it commits. `None`: the spare turned out to be
    /// another tenant's.
    async fn plan(
        &self,
        new: &NewTenant,
        request: &Request<'_>,
    ) -> Result<Option<Planned>, TenantError> {
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        let now = self.clock.now();
        if let Some(Known { subject: tenant_id, response }) = request.claim(&mut tx, now).await? {
            return Ok(Some(Planned { tenant_id, response }));
        }
        let placed = self.provisioner.place(&mut tx).await?;
        let tenant_id = placed.tenant_id;
        request.keep(&mut tx, &tenant_id, None, now).await?;
        let ids = Ids { claim_id: self.clock.new_id(), state_id: self.clock.new_id() };
        let slug = self.take_slug(&mut tx, new, &placed, ids).await?;
        let mut response = None;
        if placed.is_ready {
            let tenant = store::get(&mut tx, &TenantKey::Id(tenant_id)).await?;
            let tenant = pb::Tenant::from(tenant.ok_or(TenantError::NotFound)?);
            let encoded = tenant.encode_to_vec();
            request.keep_response::<Uuid>(&mut tx, &encoded).await?;
            response = Some(encoded);
            // Last, so that nothing but the commit can fail after it.
            let Ids { claim_id, state_id } = ids;
            let claim = NewClaim { tenant_id, claim_id, state_id, slug: &slug };
            if !self.claims.claim(&placed.cluster, claim).await? {
                tx.rollback().await.map_err(StoreError::from)?;
                self.claims.spoil(tenant_id).await?;
                return Ok(None);
            }
        }
        tx.commit().await.map_err(StoreError::from)?;
        self.provisioner.placed(placed.is_ready);
        Ok(Some(Planned { tenant_id, response }))
    }

    /// Writes the tenant down under its slug, or the first that is free of
    /// those that its display name gives.
    async fn take_slug(
        &self,
        tx: &mut PgConnection,
        new: &NewTenant,
        placed: &Placed,
        ids: Ids,
    ) -> Result<String, TenantError> {
        let Placed { tenant_id, is_ready, .. } = *placed;
        let state = if is_ready { State::Active } else { State::Provisioning };
        let slugs = match &new.slug {
            Some(slug) => vec![slug.clone()],
            None => slug::derived_slugs(&new.display_name, tenant_id, SLUG_ATTEMPTS),
        };
        let now = self.clock.now();
        for slug in slugs {
            if store::insert_tenant(tx, tenant_id, &slug, new, ids, state, now).await? {
                return Ok(slug);
            }
        }
        Err(TenantError::SlugTaken)
    }

    /// What creating this tenant would give, without creating it.
    pub(crate) async fn preview(&self, new: NewTenant) -> Result<Tenant, TenantError> {
        let mut connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let tenant_id = self.clock.new_id();
        let slugs = match &new.slug {
            Some(slug) => vec![slug.clone()],
            None => slug::derived_slugs(&new.display_name, tenant_id, SLUG_ATTEMPTS),
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
            let mut connection = database.registry.acquire().await.map_err(StoreError::from)?;
            store::get(&mut connection, &key).await?.ok_or(TenantError::NotFound)
        })
        .await
    }

    /// One page of all tenants.
    pub(crate) async fn list(
        &self,
        filter: TenantFilter,
        cursor: Option<Cursor<Position>>,
    ) -> Result<Page<Tenant>, TenantError> {
        let database = self.database.clone();
        owned(async move {
            let mut connection = database.registry.acquire().await.map_err(StoreError::from)?;
            Ok(store::list(&mut connection, &filter, cursor).await?)
        })
        .await
    }

    /// Changes a tenant, and answers what it became once PostgreSQL enforces
    /// it.
    pub(crate) async fn change(
        &self,
        target: Target,
        change: Change,
        caller: String,
        key: RequestKey,
    ) -> Result<pb::Tenant, TenantError> {
        let this = self.clone();
        owned(async move {
            let written = this.write(&target, &change, &caller, &key).await;
            let unsettled = match &written {
                // Another call was first; what it wanted must hold by now, too.
                Err(TenantError::Suspended(id) | TenantError::NotSuspended(id)) => Some(*id),
                Err(TenantError::Deleted(id) | TenantError::NotDeleted(id)) => Some(*id),
                Ok(planned) => Some(planned.tenant_id),
                Err(_) => None,
            };
            if let Some(tenant_id) = unsettled.filter(|_| change.moves_the_fence()) {
                this.fences.settle(tenant_id).await?;
            }
            if change.opens() {
                // By then no service goes by what it was told before.
                tokio::time::sleep(REFUSAL_HOLDS).await;
            }
            Ok(requests::decode(&written?.response.unwrap_or_default())?)
        })
        .await
    }

    /// Writes a change down, with its request and the answer to it, in one
    /// transaction.
    async fn write(
        &self,
        target: &Target,
        change: &Change,
        caller: &str,
        key: &RequestKey,
    ) -> Result<Planned, TenantError> {
        let now = self.clock.now();
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        let request = Request { caller, method: change.method(), key };
        if let Some(Known { subject: tenant_id, response }) = request.claim(&mut tx, now).await? {
            return Ok(Planned { tenant_id, response });
        }
        let (tenant_id, mut tenant) =
            changed(store::lock(&mut tx, &target.key).await?, target, change, now)?;
        if change.opens() && !self.database.cluster(&tenant.cluster).await?.is_reconciled() {
            return Err(FenceError::Unreconciled.into());
        }
        let new_state_id = change.moves_the_fence().then(|| self.clock.new_id());
        tenant.revision = store::update(&mut tx, tenant_id, &tenant, new_state_id).await?;
        let response = pb::Tenant::from(tenant).encode_to_vec();
        request.keep(&mut tx, &tenant_id, Some(&response), now).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(Planned { tenant_id, response: Some(response) })
    }

    /// What a change would give, without changing anything.
    pub(crate) async fn preview_change(
        &self,
        target: Target,
        change: Change,
    ) -> Result<Tenant, TenantError> {
        let database = self.database.clone();
        let now = self.clock.now();
        owned(async move {
            let mut connection = database.registry.acquire().await.map_err(StoreError::from)?;
            let tenant = store::get(&mut connection, &target.key).await?;
            Ok(changed(tenant, &target, &change, now)?.1)
        })
        .await
    }
}

/// The id of a tenant, if there is one.
pub(crate) async fn id(database: &Database, key: &TenantKey) -> Result<Option<Uuid>, StoreError> {
    let mut connection = database.registry.acquire().await?;
    Ok(store::get(&mut connection, key).await?.and_then(|tenant| tenant.id))
}

/// Applies a change to what was read. Who asks for what no tenant can become is
/// told that first.
fn changed(
    tenant: Option<Tenant>,
    target: &Target,
    change: &Change,
    now: DateTime<Utc>,
) -> Result<(Uuid, Tenant), TenantError> {
    let outcome = applied(tenant, target, change, now);
    let is_of_the_tenant = matches!(
        outcome,
        Err(TenantError::NotFound | TenantError::Changed(_) | TenantError::Deleted(_))
    );
    match change {
        Change::Update(patch) if is_of_the_tenant => {
            let faults = patch.faults();
            if faults.is_empty() { outcome } else { Err(TenantError::Invalid(faults)) }
        }
        Change::Update(_)
        | Change::Delete
        | Change::Undelete
        | Change::Suspend
        | Change::Resume => outcome,
    }
}

fn applied(
    tenant: Option<Tenant>,
    target: &Target,
    change: &Change,
    now: DateTime<Utc>,
) -> Result<(Uuid, Tenant), TenantError> {
    let mut tenant = tenant.ok_or(TenantError::NotFound)?;
    let id = tenant.id.ok_or(TenantError::NotFound)?;
    if target.revision.is_some_and(|revision| revision != tenant.revision) {
        return Err(TenantError::Changed(id));
    }
    tenant.apply(change, now)?;
    Ok((id, tenant))
}
