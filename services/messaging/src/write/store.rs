//! How a write begins: with a revision of its own, or with what the same request
//! did before.

use crm_tenancy::{StoreError, TenantSession};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::PgConnection;

use super::{Recorded, Write};

/// How a write begins.
#[derive(Debug)]
enum Begun {
    /// It has this revision of its own.
    New(i64),
    /// The same request did this before.
    Repeated(Recorded),
}

/// Begins a write of a resource of this kind, or finds what the same request
/// did before.
async fn begin(
    connection: &mut PgConnection,
    write: &Write,
    kind: i16,
) -> Result<Begun, StoreError> {
    let (revision, is_new): (i64, bool) =
        sqlx::query_as("SELECT revision, is_new FROM platform.begin_write($1, $2, $3, $4)")
            .bind(write.key.id)
            .bind(write.method)
            .bind(&write.actor)
            .bind(&write.key.hash)
            .fetch_one(&mut *connection)
            .await?;
    if cfg!(bug_request_row_apart) {
        sqlx::raw_sql("COMMIT AND CHAIN").execute(&mut *connection).await?;
    }
    if is_new {
        return Ok(Begun::New(revision));
    }
    let after =
        sqlx::query_scalar("SELECT platform.end_write($1, false, 0::smallint, NULL, $2, $3, NULL)")
            .bind(revision)
            .bind(kind)
            .bind(&write.actor)
            .fetch_one(connection)
            .await?;
    Ok(Begun::Repeated(Recorded { after, revision }))
}

/// Runs the work of a write of a resource of this kind in its transaction, with
/// the write's revision and actor; or answers what the same request did before.
pub(crate) async fn write_once<E, W>(
    session: &mut TenantSession,
    write: Write,
    kind: i16,
    work: W,
) -> Result<Recorded, E>
where
    E: From<StoreError> + Send + 'static,
    W: for<'c> FnOnce(&'c mut PgConnection, i64, String) -> BoxFuture<'c, Result<Recorded, E>>
        + Send
        + 'static,
{
    let recorded = session
        .transaction(move |connection| {
            async move {
                match begin(connection, &write, kind).await? {
                    Begun::New(revision) => work(connection, revision, write.actor).await,
                    Begun::Repeated(recorded) => Ok(recorded),
                }
            }
            .boxed()
        })
        .await?;
    session.wrote(recorded.revision);
    Ok(recorded)
}
