//! All SQL of messages.

use chrono::{DateTime, Utc};
use crm_service::page::{Cursor, MAX_PAGE_BYTES, Page};
use crm_tenancy::{StoreError, TenantSession};
use futures_util::FutureExt as _;
use prost::Message as _;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::error::MessageError;
use super::model::{Message, sender_type};
use super::recorded::recorded_message;
use crate::conversation::{self, Conversation, recorded_conversation};
use crate::write::{Recorded, Write, write_once};

/// Messages in platform.resource_types.
const KIND: i16 = 3;

#[derive(FromRow)]
struct MessageRow {
    conversation_is_deleted: bool,
    sender_type: i16,
    sender_id: String,
    content: String,
    create_time: DateTime<Utc>,
    revision: i64,
}

/// One line of a page. A page without messages is one line without one.
#[derive(FromRow)]
struct PageRow {
    head_revision: i64,
    conversation_is_known: bool,
    conversation_is_deleted: bool,
    total: i64,
    message_id: Option<Uuid>,
    sender_type: Option<i16>,
    sender_id: Option<String>,
    content: Option<String>,
    create_time: Option<DateTime<Utc>>,
    revision: Option<i64>,
}

/// Inserts a message and moves its conversation; or answers what the same
/// request did before.
///
/// A transaction, not a statement: what is recorded of the conversation
/// depends on what stands there, and only behind the head's lock does that
/// stand still. So any number of senders may write to one conversation.
#[tracing::instrument(name = "db.message.insert", skip_all, fields(message.id = %message.id))]
pub(super) async fn insert(
    session: &mut TenantSession,
    mut message: Message,
    write: Write,
) -> Result<Recorded, MessageError> {
    write_once(session, write, KIND, move |connection, revision, actor| {
        async move {
            let conversation = enter(connection, &mut message).await?;
            record(connection, &message, conversation, revision, &actor).await
        }
        .boxed()
    })
    .await
}

/// What inserting a message would give.
#[tracing::instrument(name = "db.message.preview", skip_all, fields(message.id = %message.id))]
pub(super) async fn preview(
    session: &mut TenantSession,
    mut message: Message,
) -> Result<Message, MessageError> {
    enter(session.connection(), &mut message).await?;
    Ok(message)
}

/// Reads the conversation of a message, and adds the message to it.
async fn enter(
    connection: &mut PgConnection,
    message: &mut Message,
) -> Result<Conversation, MessageError> {
    let read = conversation::get(connection, message.conversation_id).await?;
    let mut conversation =
        read.ok_or(MessageError::ConversationNotFound(message.conversation_id))?;
    message.enter(&mut conversation)?;
    Ok(conversation)
}

async fn record(
    connection: &mut PgConnection,
    message: &Message,
    conversation: Conversation,
    revision: i64,
    actor: &str,
) -> Result<Recorded, MessageError> {
    let after: Vec<u8> = sqlx::query_scalar(
        r"
            WITH inserted AS (
                INSERT INTO messaging.messages (
                    message_id, conversation_id, sender_type, sender_id, content, create_time,
                    revision
                )
                VALUES ($1, $2, $3, $4, $5, $6, $7)
                RETURNING 'conversations/' || $2 || '/messages/' || message_id AS name
            ), moved AS (
                UPDATE messaging.conversations
                SET last_message_time = $8, update_time = $9, revision = $7, recorded = $12
                WHERE conversation_id = $2
                RETURNING 'conversations/' || conversation_id AS name
            )
            SELECT platform.end_write($7, true, 0::smallint, inserted.name, $13, $10, $11)
                 , platform.end_write($7, true, 1::smallint, moved.name, 2::smallint, $10, $12)
            FROM inserted, moved
        ",
    )
    .bind(message.id)
    .bind(message.conversation_id)
    .bind(message.sender_type as i16)
    .bind(&message.sender_id)
    .bind(&message.content)
    .bind(message.create_time)
    .bind(revision)
    .bind(conversation.last_message_time)
    .bind(conversation.update_time)
    .bind(actor)
    .bind(recorded_message(message.clone()).encode_to_vec())
    .bind(recorded_conversation(conversation).encode_to_vec())
    .bind(KIND)
    .fetch_one(connection)
    .await
    .map_err(StoreError::from)?;
    Ok(Recorded { after, revision })
}

/// A message, unless its conversation is deleted.
#[tracing::instrument(name = "db.message.get", skip_all, fields(message.id = %id))]
pub(super) async fn get(
    session: &mut TenantSession,
    conversation_id: Uuid,
    id: Uuid,
) -> Result<Message, MessageError> {
    let row: Option<MessageRow> = sqlx::query_as(
        r"
            SELECT c.delete_time IS NOT NULL AS conversation_is_deleted
                 , m.sender_type
                 , m.sender_id
                 , m.content
                 , m.create_time
                 , m.revision
            FROM messaging.messages AS m
            JOIN messaging.conversations AS c USING (conversation_id)
            WHERE conversation_id = $1 AND m.message_id = $2
        ",
    )
    .bind(conversation_id)
    .bind(id)
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::from)?;
    let row = row.ok_or(MessageError::NotFound { conversation_id, id })?;
    if row.conversation_is_deleted {
        return Err(MessageError::ConversationDeleted(conversation_id));
    }
    Ok(Message {
        id,
        conversation_id,
        sender_type: sender_type(row.sender_type),
        sender_id: row.sender_id,
        content: row.content,
        create_time: row.create_time,
        revision: row.revision,
    })
}

/// One page, and the revision of just these rows: one statement.
#[tracing::instrument(name = "db.message.list", skip_all, fields(conversation.id = %conversation_id))]
pub(super) async fn list(
    session: &mut TenantSession,
    conversation_id: Uuid,
    page_size: i64,
    cursor: Option<Cursor<i64>>,
) -> Result<Page<Message>, MessageError> {
    let after = cursor.as_ref().map_or(0, |cursor| cursor.after);
    let query = sqlx::query_as(
        r"
            WITH head AS (
                SELECT platform.revision() AS head_revision
                     , c.conversation_id IS NOT NULL AS conversation_is_known
                     , c.delete_time IS NOT NULL AS conversation_is_deleted
                FROM (VALUES (true)) AS one
                LEFT JOIN messaging.conversations AS c ON c.conversation_id = $1
            ), page AS (
                SELECT m.*
                     , sum(octet_length(m.content)) OVER (ORDER BY m.revision) AS bytes
                FROM messaging.messages AS m
                WHERE m.conversation_id = $1 AND m.revision > $2
                ORDER BY m.revision
                LIMIT $3
            )
            SELECT head.*
                 , (SELECT count(*) FROM page) AS total
                 , kept.message_id
                 , kept.sender_type
                 , kept.sender_id
                 , kept.content
                 , kept.create_time
                 , kept.revision
            FROM head
            LEFT JOIN (SELECT * FROM page WHERE bytes - octet_length(content) < $4) AS kept ON true
            ORDER BY kept.revision
        ",
    )
    .bind(conversation_id)
    .bind(after)
    .bind(page_size + 1)
    .bind(MAX_PAGE_BYTES);
    let rows: Vec<PageRow> = session.rows(query).await?;
    let Some(head) = rows.first().filter(|row| row.conversation_is_known) else {
        return Err(MessageError::ConversationNotFound(conversation_id));
    };
    if head.conversation_is_deleted {
        return Err(MessageError::ConversationDeleted(conversation_id));
    }
    let (revision, total) = (head.head_revision, head.total);
    let revision = cursor.map_or(revision, |cursor| cursor.revision);
    let asked = usize::try_from(page_size).unwrap_or(usize::MAX);
    let messages: Vec<_> =
        rows.into_iter().filter_map(|row| message(row, conversation_id)).take(asked).collect();
    let more = total > messages.len() as i64;
    Ok(Page { items: messages, revision, more })
}

fn message(row: PageRow, conversation_id: Uuid) -> Option<Message> {
    Some(Message {
        id: row.message_id?,
        conversation_id,
        sender_type: sender_type(row.sender_type?),
        sender_id: row.sender_id?,
        content: row.content?,
        create_time: row.create_time?,
        revision: row.revision?,
    })
}
