//! Between messages (of protobuf) and messaging's own types.

use crm_error::Violations;
use crm_proto::messaging::v1 as pb;
use crm_service::page::{self, Binding, Page, Position};
use crm_service::{names, timestamp};
use prost::Message as _;

use crate::conversation::{Conversation, ConversationFilter};
use crate::message::{Message, MessageError, NewMessage, Recorded};

/// The most conversations in a page with messages.
const MAX_FULL_PAGE: i64 = 25;
/// The most messages of one conversation there.
const MAX_MESSAGES: i64 = 100;

pub(super) fn filter(
    request: &pb::ListConversationsRequest,
    violations: &mut Violations,
) -> ConversationFilter {
    let contact_id = names::parse_field("contacts", &request.contact, "contact", violations);
    let page_size = page::size(request.page_size);
    match request.view() {
        pb::ConversationView::Full => ConversationFilter {
            contact_id,
            page_size: page_size.min(MAX_FULL_PAGE),
            messages: page::size(request.message_page_size).min(MAX_MESSAGES),
        },
        pb::ConversationView::Unspecified | pb::ConversationView::Basic => {
            ConversationFilter { contact_id, page_size, messages: 0 }
        }
    }
}

pub(super) fn new_message(
    request: pb::CreateMessageRequest,
    violations: &mut Violations,
) -> Option<NewMessage> {
    let id = names::parse_field("conversations", &request.parent, "parent", violations);
    let message = request.message?;
    NewMessage::check(&message.content, violations);
    Some(NewMessage {
        conversation_id: id?,
        sender_type: message.sender_type(),
        content: message.content,
    })
}

pub(super) fn conversation_page(
    page: Page<Conversation>,
    binding: &Binding,
) -> pb::ListConversationsResponse {
    let position = |last: &Conversation| Position { create_time: last.create_time, id: last.id };
    pb::ListConversationsResponse {
        next_page_token: page.next_token(binding, position),
        revision: page.revision,
        conversations: page.items.into_iter().map(Into::into).collect(),
    }
}

pub(super) fn message_page(page: Page<Message>, binding: &Binding) -> pb::ListMessagesResponse {
    pb::ListMessagesResponse {
        next_page_token: page.next_token(binding, |last| last.revision),
        revision: page.revision,
        messages: page.items.into_iter().map(Into::into).collect(),
    }
}

impl From<Conversation> for pb::Conversation {
    fn from(mut conversation: Conversation) -> Self {
        let revision = conversation.revision;
        let messages = std::mem::take(&mut conversation.messages);
        Self {
            etag: format!("\"{revision}\""),
            revision,
            messages: messages.into_iter().map(Into::into).collect(),
            ..recorded_conversation(conversation)
        }
    }
}

/// What the change log records of a conversation: all but revision and etag,
/// which the change itself carries, and messages, which are their own.
pub(crate) fn recorded_conversation(conversation: Conversation) -> pb::Conversation {
    pb::Conversation {
        name: format!("conversations/{}", conversation.id),
        contact: format!("contacts/{}", conversation.contact_id),
        state: conversation.state.into(),
        last_message_time: conversation.last_message_time.map(timestamp),
        create_time: Some(timestamp(conversation.create_time)),
        update_time: Some(timestamp(conversation.update_time)),
        delete_time: conversation.delete_time.map(timestamp),
        ..pb::Conversation::default()
    }
}

impl From<Message> for pb::Message {
    fn from(message: Message) -> Self {
        let revision = message.revision;
        with_revision(recorded_message(message), revision)
    }
}

/// What the change log records of a message.
pub(crate) fn recorded_message(message: Message) -> pb::Message {
    let name = format!("conversations/{}/messages/{}", message.conversation_id, message.id);
    pb::Message { name, ..preview(message) }
}

/// A message that has not been sent: it has no name.
pub(super) fn preview(message: Message) -> pb::Message {
    pb::Message {
        name: String::new(),
        sender_type: message.sender_type.into(),
        sender_id: message.sender_id,
        content: message.content,
        create_time: Some(timestamp(message.create_time)),
        etag: String::new(),
        revision: 0,
    }
}

/// The answer to a write, from what the change log recorded of it.
pub(super) fn from_recorded(recorded: &Recorded) -> Result<pb::Message, MessageError> {
    let message = pb::Message::decode(recorded.after.as_slice());
    let message = message.map_err(|error| MessageError::Corrupt(error.into()))?;
    Ok(with_revision(message, recorded.revision))
}

fn with_revision(message: pb::Message, revision: i64) -> pb::Message {
    pb::Message { etag: format!("\"{revision}\""), revision, ..message }
}
