//! All SQL of contacts.
//!
//! A write is one statement: it begins with `platform.begin_write`, and ends
//! with `platform.end_write` in the top-level select list, since PostgreSQL
//! never runs a SELECT in a WITH that nobody refers to.

use chrono::{DateTime, Utc};
use crm_service::repeat::RequestKey;
use crm_tenancy::{StoreError, TenantSession};
use prost::Message as _;
use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::error::ContactError;
use super::model::{Contact, Recorded};
use crate::grpc::convert::{initial_conversation, recorded_message};

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

/// Inserts a contact with its initial conversation; or answers what the same
/// request did before.
#[tracing::instrument(name = "db.contact.insert", skip_all, fields(contact.id = %contact.id))]
pub(super) async fn insert(
    session: &mut TenantSession,
    contact: &Contact,
    actor: &str,
    key: &RequestKey,
) -> Result<Recorded, ContactError> {
    let (revision, after): (i64, Vec<u8>) = sqlx::query_as(
        r"
            WITH w AS MATERIALIZED (
                SELECT revision, is_new FROM platform.begin_write($1, 'CreateContact', $2, $3)
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
                 , messaging.contact_changed(w.revision, w.is_new, $4, $2, $12, $14)
            FROM w
            LEFT JOIN inserted ON true
        ",
    )
    .bind(key.id)
    .bind(actor)
    .bind(&key.hash)
    .bind(contact.id)
    .bind(&contact.display_name)
    .bind(&contact.email)
    .bind(&contact.phone)
    .bind(&contact.company)
    .bind(&contact.position)
    .bind(&contact.source)
    .bind(contact.metadata.as_ref().map(Json))
    .bind(contact.create_time)
    .bind(recorded_message(contact.clone()).encode_to_vec())
    .bind(initial_conversation(contact).encode_to_vec())
    .fetch_one(session.connection())
    .await
    .map_err(StoreError::from)?;
    Ok(Recorded { after, revision })
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
