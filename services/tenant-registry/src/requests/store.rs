//! All SQL of requests.

use chrono::{DateTime, TimeDelta, Utc};
use crm_tenancy::StoreError;
use sqlx::{Decode, Encode, PgConnection, Postgres, Type};
use uuid::Uuid;

use super::Request;

/// How long a request_id is remembered.
const LIFETIME: TimeDelta = TimeDelta::hours(24);

/// What requests are for. Each kind has a table of its own.
pub(crate) trait Subject:
    Clone
    + Send
    + Sync
    + Unpin
    + Type<Postgres>
    + for<'q> Encode<'q, Postgres>
    + for<'r> Decode<'r, Postgres>
    + 'static
{
    const FORGET: &'static str;
    const FIND: &'static str;
    const INSERT: &'static str;
    const KEEP_RESPONSE: &'static str;
}

/// A tenant.
impl Subject for Uuid {
    const FORGET: &'static str = "DELETE FROM requests WHERE expire_time <= $1";
    const FIND: &'static str = "SELECT hash, tenant_id, response
         FROM requests
         WHERE caller = $1 AND method = $2 AND request_id = $3";
    const INSERT: &'static str = "INSERT INTO requests
             (caller, method, request_id, hash, tenant_id, response, expire_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7)";
    const KEEP_RESPONSE: &'static str = "UPDATE requests
         SET response = coalesce(response, $4)
         WHERE caller = $1 AND method = $2 AND request_id = $3
         RETURNING response";
}

/// A cluster.
impl Subject for String {
    const FORGET: &'static str = "DELETE FROM cluster_requests WHERE expire_time <= $1";
    const FIND: &'static str = "SELECT hash, cluster, response
         FROM cluster_requests
         WHERE caller = $1 AND method = $2 AND request_id = $3";
    const INSERT: &'static str = "INSERT INTO cluster_requests
             (caller, method, request_id, hash, cluster, response, expire_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7)";
    const KEEP_RESPONSE: &'static str = "UPDATE cluster_requests
         SET response = coalesce(response, $4)
         WHERE caller = $1 AND method = $2 AND request_id = $3
         RETURNING response";
}

/// What a request_id was used for: the hash of the request, what it is for,
/// and its answer.
pub(super) async fn claim<S: Subject>(
    connection: &mut PgConnection,
    request: &Request<'_>,
    request_id: Uuid,
    now: DateTime<Utc>,
) -> Result<Option<(Vec<u8>, S, Option<Vec<u8>>)>, StoreError> {
    let Request { caller, method, .. } = request;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(format!("{method} {caller} {request_id}"))
        .execute(&mut *connection)
        .await?;
    sqlx::query(S::FORGET).bind(now).execute(&mut *connection).await?;
    let known = sqlx::query_as(S::FIND).bind(caller).bind(method).bind(request_id);
    Ok(known.fetch_optional(connection).await?)
}

pub(super) async fn insert<S: Subject>(
    connection: &mut PgConnection,
    request: &Request<'_>,
    request_id: Uuid,
    subject: &S,
    response: Option<&[u8]>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(S::INSERT)
        .bind(request.caller)
        .bind(request.method)
        .bind(request_id)
        .bind(&request.key.hash)
        .bind(subject.clone())
        .bind(response)
        .bind(now + LIFETIME)
        .execute(connection)
        .await?;
    Ok(())
}

/// Answers the first answer that was kept, if the request is still known.
pub(super) async fn keep_response<S: Subject>(
    connection: &mut PgConnection,
    request: &Request<'_>,
    request_id: Uuid,
    response: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let kept = sqlx::query_scalar(S::KEEP_RESPONSE)
        .bind(request.caller)
        .bind(request.method)
        .bind(request_id)
        .bind(response);
    Ok(kept.fetch_optional(connection).await?)
}
