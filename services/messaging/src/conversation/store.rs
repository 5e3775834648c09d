//! All SQL of conversations.
//!
//! A write is a transaction, as [`write_once`] has it: behind the lock on the
//! tenant's head all that it reads stands still, so that any number of callers
//! may write to one conversation or contact, and none has to try again.

use chrono::{DateTime, Utc};
use crm_service::page::{Cursor, MAX_PAGE_BYTES, Page, Position, storable};
use crm_tenancy::{StoreError, TenantSession};
use futures_util::FutureExt as _;
use prost::Message as _;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::error::ConversationError;
use super::model::{
    Conversation, ConversationFilter, ConversationPatch, MAX_CONVERSATIONS, Target, state,
};
use super::recorded::recorded_conversation;
use crate::message::Message;
use crate::write::{Recorded, Write, write_once};

/// Conversations in platform.resource_types.
const KIND: i16 = 2;

#[derive(FromRow)]
struct ConversationRow {
    contact_id: Uuid,
    display_name: Option<String>,
    state: i16,
    last_message_time: Option<DateTime<Utc>>,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    delete_time: Option<DateTime<Utc>>,
    revision: i64,
}

/// One line of a page: a conversation, with one of its messages or none. A
/// page without conversations is one line without either.
#[derive(FromRow)]
struct PageRow {
    revision: i64,
    contact_is_known: bool,
    conversation_id: Option<Uuid>,
    contact_id: Option<Uuid>,
    display_name: Option<String>,
    state: Option<i16>,
    last_message_time: Option<DateTime<Utc>>,
    create_time: Option<DateTime<Utc>>,
    update_time: Option<DateTime<Utc>>,
    delete_time: Option<DateTime<Utc>>,
    conversation_revision: Option<i64>,
    #[sqlx(flatten)]
    message: MessageColumns,
}

#[derive(FromRow)]
struct MessageColumns {
    message_id: Option<Uuid>,
    sender_type: Option<i16>,
    sender_id: Option<String>,
    content: Option<String>,
    message_time: Option<DateTime<Utc>>,
    message_revision: Option<i64>,
}

/// Inserts a conversation; or answers what the same request did before.
#[tracing::instrument(name = "db.conversation.insert", skip_all, fields(conversation.id = %conversation.id))]
pub(super) async fn insert(
    session: &mut TenantSession,
    conversation: Conversation,
    write: Write,
) -> Result<Recorded, ConversationError> {
    write_once(session, write, KIND, move |connection, revision, actor| {
        async move {
            check_contact(connection, conversation.contact_id).await?;
            save(connection, &conversation, revision, &actor).await
        }
        .boxed()
    })
    .await
}

/// Whether a contact can have another conversation.
///
/// # Errors
///
/// When it is not known, deleted, or has as many as it can.
pub(super) async fn check_contact(
    connection: &mut PgConnection,
    contact_id: Uuid,
) -> Result<(), ConversationError> {
    let contact: Option<(bool, i64)> = sqlx::query_as(
        r"
            SELECT k.delete_time IS NOT NULL
                 , (SELECT count(*) FROM messaging.conversations WHERE contact_id = $1)
            FROM messaging.contacts AS k
            WHERE k.contact_id = $1
        ",
    )
    .bind(contact_id)
    .fetch_optional(connection)
    .await
    .map_err(StoreError::from)?;
    match contact {
        None => Err(ConversationError::ContactNotFound(contact_id)),
        Some((true, _)) => Err(ConversationError::ContactDeleted(contact_id)),
        Some((_, count)) if count >= MAX_CONVERSATIONS => {
            Err(ConversationError::ContactFull(contact_id))
        }
        Some(_) => Ok(()),
    }
}

/// Changes a conversation; or answers what the same request did before.
#[tracing::instrument(name = "db.conversation.update", skip_all, fields(conversation.id = %target.id))]
pub(super) async fn update(
    session: &mut TenantSession,
    target: Target,
    patch: ConversationPatch,
    now: DateTime<Utc>,
    write: Write,
) -> Result<Recorded, ConversationError> {
    write_once(session, write, KIND, move |connection, revision, actor| {
        async move {
            let read = get(connection, target.id).await?;
            let mut conversation = read.ok_or(ConversationError::NotFound(target.id))?;
            conversation.apply(&target, patch, now)?;
            save(connection, &conversation, revision, &actor).await
        }
        .boxed()
    })
    .await
}

/// Saves a conversation, which is new or was read behind the head's lock, and
/// records it.
async fn save(
    connection: &mut PgConnection,
    conversation: &Conversation,
    revision: i64,
    actor: &str,
) -> Result<Recorded, ConversationError> {
    let after = sqlx::query_scalar(
        r"
            WITH saved AS (
                INSERT INTO messaging.conversations (
                    conversation_id, contact_id, display_name, state, create_time, update_time,
                    revision, recorded
                )
                VALUES ($1, $2, $3, $4, $5, $6, $7, $9)
                ON CONFLICT (conversation_id) DO UPDATE
                SET display_name = excluded.display_name, state = excluded.state,
                    update_time = excluded.update_time, revision = excluded.revision,
                    recorded = excluded.recorded
                RETURNING 'conversations/' || conversation_id AS name
            )
            SELECT platform.end_write($7, true, 0::smallint, saved.name, $10, $8, $9)
            FROM saved
        ",
    )
    .bind(conversation.id)
    .bind(conversation.contact_id)
    .bind(&conversation.display_name)
    .bind(conversation.state as i16)
    .bind(conversation.create_time)
    .bind(conversation.update_time)
    .bind(revision)
    .bind(actor)
    .bind(recorded_conversation(conversation.clone()).encode_to_vec())
    .bind(KIND)
    .fetch_one(connection)
    .await
    .map_err(StoreError::from)?;
    Ok(Recorded { after, revision })
}

/// A conversation without its messages, deleted or not.
pub(crate) async fn get(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<Conversation>, StoreError> {
    let row: Option<ConversationRow> = sqlx::query_as(
        r"
            SELECT contact_id
                 , display_name
                 , state
                 , last_message_time
                 , create_time
                 , update_time
                 , delete_time
                 , revision
            FROM messaging.conversations
            WHERE conversation_id = $1
        ",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Conversation {
        id,
        contact_id: row.contact_id,
        display_name: row.display_name,
        state: state(row.state),
        last_message_time: row.last_message_time,
        create_time: row.create_time,
        update_time: row.update_time,
        delete_time: row.delete_time,
        revision: row.revision,
        messages: Vec::new(),
    }))
}

/// One page, with its messages, and the revision of just these rows: one
/// statement.
#[tracing::instrument(name = "db.conversation.list", skip_all)]
pub(super) async fn list(
    session: &mut TenantSession,
    filter: &ConversationFilter,
    cursor: Option<Cursor<Position>>,
) -> Result<Page<Conversation>, ConversationError> {
    let mut query = page_query(filter, cursor.as_ref());
    let rows: Vec<PageRow> = session.rows(query.build_query_as()).await?;
    let head = rows.first();
    if let Some(contact_id) = filter.of_contact
        && head.is_some_and(|row| !row.contact_is_known)
    {
        return Err(ConversationError::ContactNotFound(contact_id));
    }
    let revision = cursor.map(|cursor| cursor.revision).or(head.map(|row| row.revision));
    Ok(assemble(rows, filter.page_size, revision.unwrap_or_default()))
}

fn page_query(
    filter: &ConversationFilter,
    cursor: Option<&Cursor<Position>>,
) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("WITH head AS (SELECT platform.revision() AS revision, ");
    match filter.of_contact {
        None => query.push("true"),
        Some(contact_id) => query
            .push("EXISTS (SELECT FROM messaging.contacts AS k WHERE k.contact_id = ")
            .push_bind(contact_id)
            .push(")"),
    };
    query.push(
        " AS contact_is_known), page AS (
            SELECT c.*
            FROM messaging.conversations AS c
            WHERE true",
    );
    push_conditions(&mut query, filter, cursor);
    query.push(" ORDER BY c.create_time DESC, c.conversation_id DESC LIMIT ");
    query.push_bind(filter.page_size + 1);
    query.push(
        ") SELECT head.revision, head.contact_is_known, page.conversation_id, page.contact_id,
            page.display_name, page.state, page.last_message_time, page.create_time,
            page.update_time, page.delete_time, page.revision AS conversation_revision,
            m.message_id, m.sender_type, m.sender_id, m.content, m.create_time AS message_time,
            m.revision AS message_revision
        FROM head
        LEFT JOIN page ON true
        LEFT JOIN LATERAL (
            SELECT l.*
            FROM (
                SELECT x.*, sum(octet_length(x.content)) OVER (ORDER BY x.revision DESC) AS bytes
                FROM messaging.messages AS x
                WHERE x.conversation_id = page.conversation_id AND page.delete_time IS NULL
                ORDER BY x.revision DESC
                LIMIT ",
    );
    query.push_bind(filter.messages);
    query.push(") AS l WHERE l.bytes - octet_length(l.content) < ").push_bind(MAX_PAGE_BYTES);
    query.push(
        ") AS m ON true
        ORDER BY page.create_time DESC, page.conversation_id DESC, m.revision",
    );
    query
}

/// Which conversations a page is of.
fn push_conditions(
    query: &mut QueryBuilder<Postgres>,
    filter: &ConversationFilter,
    cursor: Option<&Cursor<Position>>,
) {
    if !filter.show_deleted {
        query.push(" AND c.delete_time IS NULL");
    }
    if let Some(id) = filter.id {
        query.push(" AND c.conversation_id = ").push_bind(id);
    }
    for contact_id in [filter.of_contact, filter.contact_id].into_iter().flatten() {
        query.push(" AND c.contact_id = ").push_bind(contact_id);
    }
    if let Some(state) = filter.state {
        query.push(" AND c.state = ").push_bind(state as i16);
    }
    if let Some(Cursor { after, .. }) = cursor {
        query
            .push(" AND (c.create_time, c.conversation_id) < (")
            .push_bind(storable(after.create_time));
        query.push(", ").push_bind(after.id).push(")");
    }
}

/// Puts lines together. A page whose messages are large is cut short.
fn assemble(rows: Vec<PageRow>, page_size: i64, revision: i64) -> Page<Conversation> {
    let mut conversations: Vec<Conversation> = Vec::new();
    for row in rows {
        let Some(conversation) = conversation(&row) else { continue };
        if conversations.last().map(|last| last.id) != Some(conversation.id) {
            conversations.push(conversation);
        }
        if let (Some(last), Some(message)) = (conversations.last_mut(), message(row)) {
            last.messages.push(message);
        }
    }
    let asked = usize::try_from(page_size).unwrap_or(usize::MAX);
    let mut bytes = 0;
    let fits = conversations.iter().take(asked).take_while(|conversation| {
        let before = bytes;
        bytes += conversation.messages.iter().map(|m| m.content.len() as i64).sum::<i64>();
        before < MAX_PAGE_BYTES
    });
    let kept = fits.count();
    let more = conversations.len() > kept;
    conversations.truncate(kept);
    Page { items: conversations, revision, more }
}

fn conversation(row: &PageRow) -> Option<Conversation> {
    Some(Conversation {
        id: row.conversation_id?,
        contact_id: row.contact_id?,
        display_name: row.display_name.clone(),
        state: state(row.state?),
        last_message_time: row.last_message_time,
        create_time: row.create_time?,
        update_time: row.update_time?,
        delete_time: row.delete_time,
        revision: row.conversation_revision?,
        messages: Vec::new(),
    })
}

fn message(row: PageRow) -> Option<Message> {
    let columns = row.message;
    Some(Message {
        id: columns.message_id?,
        conversation_id: row.conversation_id?,
        sender_type: crate::message::sender_type(columns.sender_type?),
        sender_id: columns.sender_id?,
        content: columns.content?,
        create_time: columns.message_time?,
        revision: columns.message_revision?,
    })
}
