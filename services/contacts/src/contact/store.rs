//! All SQL of contacts.
//!
//! A write is one statement: it begins with `platform.begin_write`, and ends
//! with `platform.end_write` in the top-level select list, since PostgreSQL
//! never runs a SELECT in a WITH that nobody refers to.

use chrono::{DateTime, Utc};
use crm_service::page::{Cursor, MAX_PAGE_BYTES, Page, Position, storable};
use crm_tenancy::{StoreError, TenantSession};
use prost::Message as _;
use serde_json::Value;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use sqlx::types::Json;
use sqlx::{FromRow, Postgres, QueryBuilder};
use uuid::Uuid;

use super::error::ContactError;
use super::model::{Contact, ContactFilter, Recorded, Write};
use super::recorded::{deletion, initial_conversation, recorded_contact};

#[derive(FromRow)]
struct ContactRow {
    contact_id: Uuid,
    display_name: String,
    email: Option<String>,
    phone: Option<String>,
    company: Option<String>,
    position: Option<String>,
    source: Option<String>,
    metadata: Option<Json<Value>>,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    delete_time: Option<DateTime<Utc>>,
    revision: i64,
}

/// One line of a page. A page without contacts is one line without one.
#[derive(FromRow)]
struct PageRow {
    head_revision: i64,
    total: i64,
    contact_id: Option<Uuid>,
    display_name: Option<String>,
    email: Option<String>,
    phone: Option<String>,
    company: Option<String>,
    position: Option<String>,
    source: Option<String>,
    metadata: Option<Json<Value>>,
    create_time: Option<DateTime<Utc>>,
    update_time: Option<DateTime<Utc>>,
    delete_time: Option<DateTime<Utc>>,
    revision: Option<i64>,
}

/// A write, which answers its revision and what it recorded.
type WriteQuery<'q> = QueryAs<'q, Postgres, (i64, Vec<u8>), PgArguments>;

/// Inserts a contact with its initial conversation; or answers what the same
/// request did before.
#[tracing::instrument(name = "db.contact.insert", skip_all, fields(contact.id = %contact.id))]
pub(super) async fn insert(
    session: &mut TenantSession,
    contact: &Contact,
    actor: &str,
    write: &Write,
) -> Result<Recorded, ContactError> {
    let query = sqlx::query_as(
        r"
            WITH w AS MATERIALIZED (
                SELECT revision, is_new FROM platform.begin_write($1, $15, $2, $3)
            ), inserted AS (
                INSERT INTO contacts.contacts (
                    contact_id, display_name, email, phone, company, position, source, metadata,
                    create_time, update_time, revision
                )
                SELECT $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, w.revision
                FROM w
                WHERE w.is_new
                RETURNING contact_id
            )
            SELECT w.revision
                 , platform.end_write(
                       w.revision, w.is_new, 0::smallint,
                       'contacts/' || inserted.contact_id, 1::smallint, $2, $13
                   )
                 , messaging.contact_changed(w.revision, w.is_new, $4, $2, $12, NULL, $14, '')
            FROM w
            LEFT JOIN inserted ON true
        ",
    );
    let conversation = initial_conversation(contact).encode_to_vec();
    let (revision, after) = bind_write(query, contact, conversation, actor, write)
        .fetch_one(session.connection())
        .await
        .map_err(StoreError::from)?;
    session.wrote(revision);
    Ok(Recorded { after, revision })
}

/// Saves what a contact has become, if it still has the revision that was read; or
/// answers what the same request did before. Its conversations go and come
/// with its delete_time.
#[tracing::instrument(name = "db.contact.update", skip_all, fields(contact.id = %contact.id))]
pub(super) async fn update(
    session: &mut TenantSession,
    contact: &Contact,
    actor: &str,
    write: &Write,
) -> Result<Recorded, ContactError> {
    let query = sqlx::query_as(
        r"
            WITH w AS MATERIALIZED (
                SELECT revision, is_new FROM platform.begin_write($1, $15, $2, $3)
            ), updated AS (
                UPDATE contacts.contacts AS c
                SET display_name = $5, email = $6, phone = $7, company = $8, position = $9,
                    source = $10, metadata = $11, update_time = $12, delete_time = $16,
                    revision = w.revision
                FROM w
                WHERE w.is_new AND c.contact_id = $4 AND c.revision = $17
                RETURNING c.contact_id
            )
            SELECT w.revision
                 , platform.end_write(
                       w.revision, w.is_new, 0::smallint,
                       'contacts/' || updated.contact_id, 1::smallint, $2, $13
                   )
                 , messaging.contact_changed(
                       w.revision, w.is_new, $4, $2, $12, $16, NULL, $14
                   )
            FROM w
            LEFT JOIN updated ON true
        ",
    );
    let conversation = deletion(contact).encode_to_vec();
    let (revision, after) = bind_write(query, contact, conversation, actor, write)
        .bind(contact.delete_time)
        .bind(contact.revision)
        .fetch_one(session.connection())
        .await
        .map_err(StoreError::from)?;
    session.wrote(revision);
    Ok(Recorded { after, revision })
}

/// Binds what every write has, $1 to $15: the contact, and what its change says
/// of a conversation.
fn bind_write<'q>(
    query: WriteQuery<'q>,
    contact: &'q Contact,
    conversation: Vec<u8>,
    actor: &'q str,
    write: &'q Write,
) -> WriteQuery<'q> {
    query
        .bind(write.key.id)
        .bind(actor)
        .bind(&write.key.hash)
        .bind(contact.id)
        .bind(&contact.display_name)
        .bind(&contact.email)
        .bind(&contact.phone)
        .bind(&contact.company)
        .bind(&contact.position)
        .bind(&contact.source)
        .bind(contact.metadata.as_ref().map(Json))
        .bind(contact.update_time)
        .bind(recorded_contact(contact.clone()).encode_to_vec())
        .bind(conversation)
        .bind(write.method)
}

/// What the same request did before, if it did.
#[tracing::instrument(name = "db.contact.find_write", skip_all)]
pub(super) async fn find_write(
    session: &mut TenantSession,
    actor: &str,
    write: &Write,
) -> Result<Option<Recorded>, ContactError> {
    if write.key.id.is_none() {
        return Ok(None);
    }
    let (revision, after): (Option<i64>, Option<Vec<u8>>) =
        sqlx::query_as("SELECT revision, after FROM platform.find_write($1, $2, $3, $4)")
            .bind(write.key.id)
            .bind(write.method)
            .bind(actor)
            .bind(&write.key.hash)
            .fetch_one(session.connection())
            .await
            .map_err(StoreError::from)?;
    Ok(revision.zip(after).map(|(revision, after)| Recorded { after, revision }))
}

/// One page, the newest first, and the revision of just these rows: one
/// statement.
#[tracing::instrument(name = "db.contact.list", skip_all)]
pub(super) async fn list(
    session: &mut TenantSession,
    filter: &ContactFilter,
    cursor: Option<Cursor<Position>>,
) -> Result<Page<Contact>, ContactError> {
    let mut query = page_query(filter, cursor.as_ref());
    let rows: Vec<PageRow> = session.rows(query.build_query_as()).await?;
    let head = rows.first().map(|row| (row.head_revision, row.total));
    let (revision, total) = head.unwrap_or_default();
    let asked = usize::try_from(filter.page_size).unwrap_or(usize::MAX);
    let contacts: Vec<_> = rows.into_iter().filter_map(contact).take(asked).collect();
    let more = total > i64::try_from(contacts.len()).unwrap_or(i64::MAX);
    let revision = cursor.map_or(revision, |cursor| cursor.revision);
    Ok(Page { items: contacts, revision, more })
}

fn page_query(filter: &ContactFilter, cursor: Option<&Cursor<Position>>) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new(
        "WITH page AS (
            SELECT c.*
                 , sum(coalesce(octet_length(c.metadata::text), 0)) OVER newest AS bytes
            FROM (
                SELECT *
                FROM contacts.contacts
                WHERE true",
    );
    if !filter.show_deleted {
        query.push(" AND delete_time IS NULL");
    }
    if let Some(email) = &filter.email {
        query
            .push(r#" AND lower(email COLLATE "und-x-icu") COLLATE "C" = lower("#)
            .push_bind(email.clone())
            .push(r#" COLLATE "und-x-icu") COLLATE "C""#);
    }
    if let Some(phone) = &filter.phone {
        query.push(" AND translate(phone, ' ()-./', '') = ").push_bind(phone.clone());
    }
    for part in &filter.metadata {
        query.push(" AND metadata @> ").push_bind(Json(part.clone()));
    }
    if let Some(Cursor { after, .. }) = cursor {
        query.push(" AND (create_time, contact_id) < (").push_bind(storable(after.create_time));
        query.push(", ").push_bind(after.id).push(")");
    }
    query.push(" ORDER BY create_time DESC, contact_id DESC LIMIT ");
    query.push_bind(filter.page_size + 1);
    query.push(
        ") AS c
            WINDOW newest AS (ORDER BY c.create_time DESC, c.contact_id DESC)
        )
        SELECT head.head_revision, (SELECT count(*) FROM page) AS total, kept.*
        FROM (SELECT platform.revision() AS head_revision) AS head
        LEFT JOIN (
            SELECT * FROM page
            WHERE bytes - coalesce(octet_length(metadata::text), 0) < ",
    );
    query.push_bind(MAX_PAGE_BYTES);
    query.push(") AS kept ON true ORDER BY kept.create_time DESC, kept.contact_id DESC");
    query
}

fn contact(row: PageRow) -> Option<Contact> {
    Some(Contact {
        id: row.contact_id?,
        display_name: row.display_name?,
        email: row.email,
        phone: row.phone,
        company: row.company,
        position: row.position,
        source: row.source,
        metadata: row.metadata.map(|metadata| metadata.0),
        create_time: row.create_time?,
        update_time: row.update_time?,
        delete_time: row.delete_time,
        revision: row.revision?,
    })
}

/// A contact, deleted or not.
#[tracing::instrument(name = "db.contact.get", skip_all, fields(contact.id = %id))]
pub(super) async fn get(
    session: &mut TenantSession,
    id: Uuid,
) -> Result<Option<Contact>, ContactError> {
    let row: Option<ContactRow> = sqlx::query_as(
        r"
            SELECT contact_id
                 , display_name
                 , email
                 , phone
                 , company
                 , position
                 , source
                 , metadata
                 , create_time
                 , update_time
                 , delete_time
                 , revision
            FROM contacts.contacts
            WHERE contact_id = $1
        ",
    )
    .bind(id)
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::from)?;
    Ok(row.map(Contact::from))
}

impl From<ContactRow> for Contact {
    fn from(row: ContactRow) -> Self {
        Self {
            id: row.contact_id,
            display_name: row.display_name,
            email: row.email,
            phone: row.phone,
            company: row.company,
            position: row.position,
            source: row.source,
            metadata: row.metadata.map(|metadata| metadata.0),
            create_time: row.create_time,
            update_time: row.update_time,
            delete_time: row.delete_time,
            revision: row.revision,
        }
    }
}
