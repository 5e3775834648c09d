//! Leases: which login a service uses in a tenant's database.

mod mend;
mod store;

use crm_clock::Clock;
use crm_error::{ApiError, ErrorReason};
use crm_proto::registry::v1::tenant::State;
use crm_tenancy::{SessionError, StoreError};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

pub(crate) use store::{FoundLogin, LeaseRow, found_logins};
use store::{LoginRow, Standing};

use crate::claim::{ClaimError, Claims, cluster_refused, unreconciled};
use crate::database::{Database, owned};
use crate::seal::{MasterKey, SealError, new_secret, scram_verifier};

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("there is no such tenant")]
    NotFound,
    #[error("the service has no schema in tenant databases")]
    UnknownService,
    #[error("the tenant is still being made")]
    Inactive,
    #[error("the tenant is suspended")]
    Suspended,
    #[error("the tenant is deleted")]
    Deleted,
    #[error("the cluster and the registry differ on tenants")]
    Unreconciled,
    #[error("the tenant's database could not be claimed")]
    Claim(#[from] ClaimError),
    #[error("the cluster refused")]
    Cluster(#[source] StoreError),
    #[error("a secret could not be sealed or opened")]
    Seal(#[from] SealError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<LeaseError> for ApiError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::NotFound => Self::not_found("tenant", ""),
            LeaseError::UnknownService => Self::not_found("service", ""),
            LeaseError::Inactive => {
                Self::new(ErrorReason::TenantInactive, "the tenant is still being made")
            }
            LeaseError::Suspended => {
                Self::new(ErrorReason::TenantSuspended, "the tenant is suspended")
            }
            LeaseError::Deleted => Self::new(ErrorReason::TenantDeleted, "the tenant is deleted"),
            LeaseError::Unreconciled => unreconciled(),
            LeaseError::Claim(error) => error.into(),
            LeaseError::Cluster(error) => cluster_refused(error),
            LeaseError::Seal(_) => Self::internal(error),
            LeaseError::Store(error) => error.into(),
            LeaseError::Task(error) => error.into(),
        }
    }
}

/// A login role and its password.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) secret: SecretString,
    pub(crate) generation: i32,
}

/// The logins of services in tenant databases.
#[derive(Clone, Debug)]
pub(crate) struct Logins {
    database: Database,
    claims: Claims,
    master_key: MasterKey,
    clock: Clock,
}

impl Logins {
    pub(crate) fn new(
        database: Database,
        claims: Claims,
        master_key: MasterKey,
        clock: Clock,
    ) -> Self {
        Self { database, claims, master_key, clock }
    }

    /// A lease for a service on the database of an active tenant; after a look
    /// at its login, if PostgreSQL refused that.
    pub(crate) async fn lease(
        &self,
        tenant_id: Uuid,
        service: String,
        login_refused: bool,
    ) -> Result<(LeaseRow, Login), LeaseError> {
        let this = self.clone();
        owned(async move {
            let row = store::lease(&this.database.registry, tenant_id, &service).await?;
            let row = row.ok_or(LeaseError::NotFound)?;
            if !row.service_is_known {
                return Err(LeaseError::UnknownService);
            }
            admit(&row.standing)?;
            if !row.is_claimed {
                let mut registry =
                    this.database.registry.acquire().await.map_err(StoreError::from)?;
                this.claims.ensure(&mut registry, tenant_id).await?;
            }
            if login_refused {
                this.mend(tenant_id, &service).await?;
            }
            let login = this.ensure(tenant_id, &service).await?;
            Ok((row, login))
        })
        .await
    }

    /// The login of a service in a tenant's database, made where it is
    /// missing. It may run twice, also at once.
    pub(crate) async fn ensure(&self, tenant_id: Uuid, service: &str) -> Result<Login, LeaseError> {
        let mut connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let row = match store::newest_login(&mut connection, tenant_id, service).await? {
            Some(row) if row.is_ready => row,
            Some(_) | None => self.make(&mut connection, tenant_id, service).await?,
        };
        let generation = row.generation;
        let secret = open_secret(&self.master_key, tenant_id, service, generation, &row.secret)?;
        Ok(Login { user: login_name(tenant_id, service, generation), secret, generation })
    }

    /// Makes the newest login of a service, or the first, or gives it another
    /// password. Whoever shuts the tenant's logins waits until this is done, and
    /// so finds this one, too.
    async fn make(
        &self,
        connection: &mut PgConnection,
        tenant_id: Uuid,
        service: &str,
    ) -> Result<LoginRow, LeaseError> {
        // Before the transaction, since it may need a connection of its own.
        let cluster = store::cluster(connection, tenant_id).await?.ok_or(LeaseError::NotFound)?;
        let cluster = self.database.cluster(&cluster).await?;
        if !cluster.is_reconciled() {
            return Err(LeaseError::Unreconciled);
        }
        let mut tx = connection.begin().await.map_err(StoreError::from)?;
        match store::hold(&mut tx, tenant_id).await? {
            Some(standing) if standing.state() != State::Provisioning => admit(&standing)?,
            Some(_) | None => {}
        }
        store::add_first_login(&mut tx, tenant_id, service, self.clock.now()).await?;
        let row = store::hold_newest_login(&mut tx, tenant_id, service).await?;
        let mut row = row.ok_or(LeaseError::NotFound)?;
        // Of several at once, one makes it, and all go on with that one.
        if !row.is_ready {
            let password = new_secret()?;
            let purpose = purpose(tenant_id, service, row.generation);
            row.secret = self.master_key.seal(&purpose, password.expose_secret().as_bytes())?;
            let verifier = scram_verifier(&password)?;
            let ensured = cluster.ensure_login(tenant_id, service, row.generation, &verifier);
            ensured.await.map_err(LeaseError::Cluster)?;
            store::login_is_ready(&mut tx, tenant_id, service, row.generation, &row.secret).await?;
        }
        tx.commit().await.map_err(StoreError::from)?;
        Ok(row)
    }
}

/// Refuses a tenant that may not be reached. One that is resumed is suspended
/// until PostgreSQL lets its logins in.
fn admit(standing: &Standing) -> Result<(), LeaseError> {
    match standing.state() {
        State::Active if standing.is_settled() => Ok(()),
        State::Active | State::Suspended => Err(LeaseError::Suspended),
        State::Deleted | State::Purging => Err(LeaseError::Deleted),
        State::Unspecified | State::Provisioning => Err(LeaseError::Inactive),
    }
}

/// The name of a login role, as `crm_cluster.ensure_login` makes it, too.
pub(crate) fn login_name(tenant_id: Uuid, service: &str, generation: i32) -> String {
    format!("t_{}_{service}_g{generation}", tenant_id.as_simple())
}

/// The password of a login, as the registry keeps it.
pub(crate) fn open_secret(
    master_key: &MasterKey,
    tenant_id: Uuid,
    service: &str,
    generation: i32,
    sealed: &[u8],
) -> Result<SecretString, SealError> {
    master_key.open_text(&purpose(tenant_id, service, generation), sealed)
}

/// What a login's secret is sealed for.
fn purpose(tenant_id: Uuid, service: &str, generation: i32) -> String {
    format!("login {tenant_id} {service} {generation}")
}
