//! All SQL of changes. The log is the platform's; messaging reads it here and
//! nowhere else.

use chrono::{DateTime, Utc};
use crm_service::page::MAX_PAGE_BYTES;
use crm_tenancy::{StoreError, TenantSession};
use sqlx::FromRow;

use super::error::ChangeError;
use super::model::{Change, ChangeFilter, ChangePage, ResourceType};

/// How many revisions one page looks at: a filter that fits few changes must
/// not read the whole log at once.
const MAX_REVISIONS: i64 = 10_000;

/// One line of a page. A page without changes is one line without one.
#[derive(FromRow)]
struct PageRow {
    head_revision: i64,
    /// The page's last revision, where more that fits follows.
    cut_after: Option<i64>,
    revision: Option<i64>,
    ordinal: Option<i16>,
    kind: Option<i16>,
    name: Option<String>,
    actor: Option<String>,
    cause: Option<String>,
    after: Option<Vec<u8>>,
    create_time: Option<DateTime<Utc>>,
}

/// The changes after a revision, and the newest revision that they saw: one
/// statement. A page ends where it has enough changes or bytes, and always
/// with the end of a revision.
#[tracing::instrument(name = "db.change.list", skip_all)]
pub(super) async fn list(
    session: &mut TenantSession,
    filter: &ChangeFilter,
) -> Result<ChangePage, ChangeError> {
    let until = filter.after_revision.saturating_add(MAX_REVISIONS);
    let rows = page(session, filter, until).await?;
    let head = rows.first().map(|row| (row.head_revision, row.cut_after));
    let (revision, cut_after) = head.unwrap_or_default();
    if filter.after_revision > revision {
        return Err(ChangeError::FutureRevision(revision));
    }
    let changes: Result<_, _> = rows.into_iter().filter_map(change).collect();
    let next_after_revision = cut_after.unwrap_or(until.min(revision));
    Ok(ChangePage { changes: changes?, next_after_revision, revision })
}

/// The lines of the page that looks no further than this revision.
async fn page(
    session: &mut TenantSession,
    filter: &ChangeFilter,
    until: i64,
) -> Result<Vec<PageRow>, StoreError> {
    let query = sqlx::query_as(
        r"
            WITH found AS (
                SELECT c.revision
                     , octet_length(c.after) AS bytes
                FROM platform.changes AS c
                WHERE c.revision > $1
                    AND c.revision <= $2
                    AND ($3::smallint IS NULL OR c.kind = $3)
                ORDER BY c.revision, c.ordinal
                LIMIT $4 + 1
            ), revisions AS (
                SELECT revision
                     , row_number() OVER oldest AS number
                     , sum(count(*)) OVER oldest AS changes
                     , sum(sum(bytes)) OVER oldest - sum(bytes) AS bytes_before
                FROM found
                GROUP BY revision
                WINDOW oldest AS (ORDER BY revision)
            ), page AS (
                SELECT max(revision) FILTER (
                           WHERE number = 1 OR (changes <= $4 AND bytes_before < $5)
                       ) AS last
                     , max(revision) AS newest
                     , max(changes) > $4 AS is_full
                FROM revisions
            )
            SELECT head.revision AS head_revision
                 , CASE WHEN is_full OR newest > last THEN last END AS cut_after
                 , c.revision
                 , c.ordinal
                 , c.kind
                 , c.name
                 , c.actor
                 , c.cause
                 , c.after
                 , c.create_time
            FROM (SELECT platform.revision() AS revision) AS head
            CROSS JOIN page
            LEFT JOIN platform.changes AS c
                ON c.revision > $1
                AND c.revision <= page.last
                AND ($3::smallint IS NULL OR c.kind = $3)
            ORDER BY c.revision, c.ordinal
        ",
    )
    .bind(filter.after_revision)
    .bind(until)
    .bind(filter.resource_type.map(ResourceType::kind))
    .bind(filter.page_size)
    .bind(MAX_PAGE_BYTES);
    session.rows(query).await
}

fn change(row: PageRow) -> Option<Result<Change, ChangeError>> {
    let kind = row.kind?;
    let Some(resource_type) = ResourceType::of_kind(kind) else {
        return Some(Err(ChangeError::UnknownKind(kind)));
    };
    Some(Ok(Change {
        revision: row.revision?,
        ordinal: row.ordinal?,
        resource_type,
        name: row.name?,
        actor: row.actor?,
        cause: row.cause,
        create_time: row.create_time?,
        after: row.after?,
    }))
}
