//! All SQL of conversations.

use chrono::{DateTime, Utc};
use crm_proto::messaging::v1::conversation::State;
use crm_service::page::{Cursor, MAX_PAGE_BYTES, Page, Position, storable};
use crm_tenancy::{StoreError, TenantSession};
use sqlx::{FromRow, Postgres, QueryBuilder};
use uuid::Uuid;

use super::error::ConversationError;
use super::model::{Conversation, ConversationFilter};
use crate::message::Message;

/// One line of a page: a conversation, with one of its messages or none. A
/// page without conversations is one line without either.
#[derive(FromRow)]
struct PageRow {
    revision: i64,
    contact_is_known: bool,
    conversation_id: Option<Uuid>,
    contact_id: Option<Uuid>,
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

/// One page, with its messages, and the revision of just these rows: one
/// statement.
#[tracing::instrument(name = "db.conversation.list", skip_all)]
pub(super) async fn list(
    session: &mut TenantSession,
    filter: &ConversationFilter,
    cursor: Option<Cursor<Position>>,
) -> Result<Page<Conversation>, ConversationError> {
    let mut query = page_query(filter, cursor.as_ref());
    let rows: Vec<PageRow> =
        query.build_query_as().fetch_all(session.connection()).await.map_err(StoreError::from)?;
    let head = rows.first();
    if let Some(contact_id) = filter.contact_id
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
    match filter.contact_id {
        None => query.push("true"),
        Some(contact_id) => query
            .push("EXISTS (SELECT FROM messaging.contacts AS k WHERE k.contact_id = ")
            .push_bind(contact_id)
            .push(")"),
    };
    query.push(
        " AS contact_is_known), page AS (
            SELECT c.conversation_id, c.contact_id, c.state, c.last_message_time, c.create_time,
                c.update_time, c.delete_time, c.revision
            FROM messaging.conversations AS c
            WHERE c.delete_time IS NULL",
    );
    if let Some(contact_id) = filter.contact_id {
        query.push(" AND c.contact_id = ").push_bind(contact_id);
    }
    if let Some(Cursor { after, .. }) = cursor {
        query
            .push(" AND (c.create_time, c.conversation_id) < (")
            .push_bind(storable(after.create_time));
        query.push(", ").push_bind(after.id).push(")");
    }
    query.push(" ORDER BY c.create_time DESC, c.conversation_id DESC LIMIT ");
    query.push_bind(filter.page_size + 1);
    query.push(
        ") SELECT head.revision, head.contact_is_known, page.conversation_id, page.contact_id,
            page.state, page.last_message_time, page.create_time, page.update_time,
            page.delete_time, page.revision AS conversation_revision,
            m.message_id, m.sender_type, m.sender_id, m.content, m.create_time AS message_time,
            m.revision AS message_revision
        FROM head
        LEFT JOIN page ON true
        LEFT JOIN LATERAL (
            SELECT l.*
            FROM (
                SELECT x.*, sum(octet_length(x.content)) OVER (ORDER BY x.revision DESC) AS bytes
                FROM messaging.messages AS x
                WHERE x.conversation_id = page.conversation_id
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
        state: State::try_from(i32::from(row.state?)).unwrap_or_default(),
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
