//! All SQL of leases and logins.

use chrono::{DateTime, Utc};
use crm_proto::registry::v1::tenant::State;
use crm_tenancy::StoreError;
use secrecy::SecretString;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::seal::is_verifier_of;

/// The first login of a service in a database. Rotation makes the next.
pub(super) const FIRST_GENERATION: i32 = 1;

/// Where a tenant's database is, and what tokens must say.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct LeaseRow {
    pub(crate) host: String,
    pub(crate) port: i32,
    pub(crate) tls_mode: i16,
    pub(crate) database: String,
    #[sqlx(flatten)]
    pub(super) standing: Standing,
    pub(crate) tenant_generation: i32,
    pub(crate) access_version: i64,
    pub(crate) claim_id: Uuid,
    /// Whether its cluster is known to have the claim.
    pub(super) is_claimed: bool,
    pub(super) service_is_known: bool,
    pub(crate) schema_version: i32,
    pub(crate) oldest_service_version: i32,
}

/// Whether a tenant may be reached.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Standing {
    state: i16,
    is_settled: bool,
}

impl Standing {
    pub(super) fn state(&self) -> State {
        State::try_from(i32::from(self.state)).unwrap_or_default()
    }

    /// Whether PostgreSQL enforces the state.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }
}

#[derive(Debug, sqlx::FromRow)]
pub(super) struct LoginRow {
    pub(super) generation: i32,
    pub(super) secret: Vec<u8>,
    pub(super) is_ready: bool,
    /// When it was last mended.
    pub(super) mend_time: Option<DateTime<Utc>>,
}

/// What PostgreSQL has of a login, as far as that may be known.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct FoundLogin {
    pub(crate) login: String,
    salt: Option<String>,
    verifier_digest: Option<Vec<u8>>,
    /// The settings that its sessions begin with.
    pub(crate) settings: Vec<String>,
}

impl FoundLogin {
    /// Whether this is its password.
    pub(crate) fn has_password(&self, password: &SecretString) -> bool {
        match (&self.salt, &self.verifier_digest) {
            (Some(salt), Some(digest)) => is_verifier_of(password, salt, digest),
            (None, _) | (_, None) => false,
        }
    }
}

/// The logins that are in a cluster: those of one tenant, or all.
pub(crate) async fn found_logins(
    cluster: &PgPool,
    only: Option<Uuid>,
) -> Result<Vec<FoundLogin>, StoreError> {
    let logins =
        sqlx::query_as("SELECT login, salt, verifier_digest, settings FROM crm_cluster.logins($1)");
    Ok(logins.bind(only).fetch_all(cluster).await?)
}

pub(super) async fn lease(
    pool: &PgPool,
    tenant_id: Uuid,
    service: &str,
) -> Result<Option<LeaseRow>, StoreError> {
    let row = sqlx::query_as(
        "SELECT c.host, c.port, c.tls_mode, d.name AS database, t.state, t.is_settled,
             t.generation AS tenant_generation, t.access_version, t.claim_id, t.is_claimed,
             EXISTS (SELECT FROM services WHERE service = $2) AS service_is_known,
             coalesce(v.version, 0) AS schema_version,
             coalesce((
                 SELECT max(m.oldest_service_version)
                 FROM migrations AS m
                 WHERE m.service = v.service AND m.version <= v.version
             ), 0) AS oldest_service_version
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         JOIN clusters AS c ON c.cluster = d.cluster
         LEFT JOIN schema_versions AS v ON v.database_id = d.database_id AND v.service = $2
         WHERE t.tenant_id = $1",
    );
    Ok(row.bind(tenant_id).bind(service).fetch_optional(pool).await?)
}

/// Keeps a tenant's state as it is until the transaction ends. `None`: there is
/// no tenant yet.
pub(super) async fn hold(
    connection: &mut PgConnection,
    tenant_id: Uuid,
) -> Result<Option<Standing>, StoreError> {
    let row =
        sqlx::query_as("SELECT state, is_settled FROM tenants WHERE tenant_id = $1 FOR SHARE");
    Ok(row.bind(tenant_id).fetch_optional(connection).await?)
}

pub(super) async fn newest_login(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    service: &str,
) -> Result<Option<LoginRow>, StoreError> {
    let row = sqlx::query_as(
        "SELECT generation, secret, is_ready, mend_time
         FROM logins
         WHERE tenant_id = $1 AND service = $2
         ORDER BY generation DESC
         LIMIT 1",
    );
    Ok(row.bind(tenant_id).bind(service).fetch_optional(connection).await?)
}

/// The newest login, for one at a time who makes it.
pub(super) async fn hold_newest_login(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    service: &str,
) -> Result<Option<LoginRow>, StoreError> {
    let row = sqlx::query_as(
        "SELECT generation, secret, is_ready, mend_time
         FROM logins
         WHERE tenant_id = $1 AND service = $2
         ORDER BY generation DESC
         LIMIT 1
         FOR UPDATE",
    );
    Ok(row.bind(tenant_id).bind(service).fetch_optional(connection).await?)
}

/// Adds the first login of a service, if there is none. Its secret comes when it
/// is made.
pub(super) async fn add_first_login(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    service: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO logins (tenant_id, service, generation, secret, create_time)
         SELECT $1, $2, $3, '', $4
         WHERE NOT EXISTS (SELECT FROM logins WHERE tenant_id = $1 AND service = $2)
         ON CONFLICT DO NOTHING",
    )
    .bind(tenant_id)
    .bind(service)
    .bind(FIRST_GENERATION)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn login_is_ready(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    service: &str,
    generation: i32,
    secret: &[u8],
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE logins SET is_ready = true, secret = $4
         WHERE tenant_id = $1 AND service = $2 AND generation = $3",
    )
    .bind(tenant_id)
    .bind(service)
    .bind(generation)
    .bind(secret)
    .execute(connection)
    .await?;
    Ok(())
}

/// Has a login made anew that was changed.
pub(super) async fn unready_login(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    service: &str,
    generation: i32,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE logins SET is_ready = false, mend_time = $4
         WHERE tenant_id = $1 AND service = $2 AND generation = $3",
    )
    .bind(tenant_id)
    .bind(service)
    .bind(generation)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// The cluster that holds a database.
pub(super) async fn cluster(
    connection: &mut PgConnection,
    database_id: Uuid,
) -> Result<Option<String>, StoreError> {
    let cluster = sqlx::query_scalar("SELECT cluster FROM databases WHERE database_id = $1");
    Ok(cluster.bind(database_id).fetch_optional(connection).await?)
}
