//! All SQL of accounts and keys.

use chrono::{DateTime, Utc};
use crm_auth::TenantClaims;
use crm_proto::registry::v1::tenant::State;
use crm_tenancy::StoreError;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::config::Account;

#[derive(Debug, sqlx::FromRow)]
pub(super) struct AccountRow {
    pub(super) name: String,
    pub(super) roles: Vec<String>,
    pub(super) secret_hash: Vec<u8>,
}

/// The signing keys, the oldest first.
pub(super) async fn keys(
    connection: &mut PgConnection,
) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let keys =
        sqlx::query_as("SELECT kid, private_key FROM signing_keys ORDER BY create_time, kid");
    Ok(keys.fetch_all(connection).await?)
}

pub(super) async fn insert_key(
    connection: &mut PgConnection,
    kid: &str,
    private_key: &[u8],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO signing_keys (kid, private_key, create_time) VALUES ($1, $2, $3)")
        .bind(kid)
        .bind(private_key)
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}

/// Makes an account, or changes it to what it is told to be.
pub(super) async fn put_account(
    connection: &mut PgConnection,
    account: &Account,
    secret_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO service_accounts (name, display_name, roles, secret_hash, update_time)
         VALUES ($1, $2, ARRAY[$3], $4, $5)
         ON CONFLICT (name) DO UPDATE
         SET display_name = excluded.display_name, roles = excluded.roles,
             secret_hash = excluded.secret_hash, update_time = excluded.update_time",
    )
    .bind(&account.name)
    .bind(&account.display_name)
    .bind(account.role)
    .bind(secret_hash)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn account(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<AccountRow>, StoreError> {
    let account =
        sqlx::query_as("SELECT name, roles, secret_hash FROM service_accounts WHERE name = $1");
    Ok(account.bind(name).fetch_optional(connection).await?)
}

/// What tokens of an active tenant must say.
pub(super) async fn tenant_claims(
    connection: &mut PgConnection,
    slug: &str,
) -> Result<Option<TenantClaims>, StoreError> {
    let row: Option<(Uuid, i32, i64)> = sqlx::query_as(
        "SELECT tenant_id, generation, access_version FROM tenants WHERE slug = $1 AND state = $2",
    )
    .bind(slug)
    .bind(State::Active as i16)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(tid, generation, ver)| TenantClaims {
        tid,
        generation: generation.unsigned_abs(),
        ver: ver.unsigned_abs(),
    }))
}
