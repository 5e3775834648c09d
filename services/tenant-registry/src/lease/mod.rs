//! Leases: which login a service uses in a tenant's database.

mod store;

use crm_clock::Clock;
use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

pub(crate) use store::LeaseRow;

use crate::database::{Database, owned};
use crate::seal::{MasterKey, SealError, new_secret, scram_verifier};

/// The first login of a service in a database. Rotation makes the next.
const FIRST_GENERATION: i32 = 1;

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("there is no such tenant")]
    NotFound,
    #[error("the tenant is not active")]
    Inactive,
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
            LeaseError::Inactive => {
                Self::new(ErrorReason::TenantInactive, "the tenant is not active")
            }
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
    master_key: MasterKey,
    clock: Clock,
}

impl Logins {
    pub(crate) fn new(database: Database, master_key: MasterKey, clock: Clock) -> Self {
        Self { database, master_key, clock }
    }

    /// A lease for a service on the database of an active tenant.
    pub(crate) async fn lease(
        &self,
        tenant_id: Uuid,
        service: String,
    ) -> Result<(LeaseRow, Login), LeaseError> {
        let this = self.clone();
        owned(async move {
            let row = store::lease(&this.database.registry, tenant_id, &service).await?;
            let row = row.ok_or(LeaseError::NotFound)?;
            if !row.is_active() {
                return Err(LeaseError::Inactive);
            }
            let login = this.ensure(tenant_id, &service).await?;
            Ok((row, login))
        })
        .await
    }

    /// The login of a service in a tenant's database, made where it is
    /// missing. It may run twice, also at once.
    pub(crate) async fn ensure(&self, tenant_id: Uuid, service: &str) -> Result<Login, LeaseError> {
        let pool = &self.database.registry;
        let row = match store::newest_login(pool, tenant_id, service).await? {
            Some(row) => row,
            None => {
                let purpose = purpose(tenant_id, service, FIRST_GENERATION);
                let sealed =
                    self.master_key.seal(&purpose, new_secret()?.expose_secret().as_bytes())?;
                // Of two at once, one is kept, and both go on with that one.
                store::insert_login(
                    pool,
                    tenant_id,
                    service,
                    FIRST_GENERATION,
                    &sealed,
                    self.clock.now(),
                )
                .await?;
                store::newest_login(pool, tenant_id, service).await?.ok_or(LeaseError::NotFound)?
            }
        };
        let secret =
            self.master_key.open_text(&purpose(tenant_id, service, row.generation), &row.secret)?;
        if !row.is_ready {
            let verifier = scram_verifier(&secret)?;
            let cluster = store::cluster(pool, tenant_id).await?.ok_or(LeaseError::NotFound)?;
            let cluster = self.database.cluster(&cluster).await?;
            cluster.ensure_login(tenant_id, service, row.generation, &verifier).await?;
            store::login_is_ready(pool, tenant_id, service, row.generation).await?;
        }
        let user = format!("t_{}_{service}_g{}", tenant_id.as_simple(), row.generation);
        Ok(Login { user, secret, generation: row.generation })
    }
}

/// What a login's secret is sealed for.
fn purpose(tenant_id: Uuid, service: &str, generation: i32) -> String {
    format!("login {tenant_id} {service} {generation}")
}
