//! What a message is, and its rules.

use chrono::{DateTime, Utc};
use crm_error::Violations;
pub(crate) use crm_proto::messaging::v1::message::SenderType;
use crm_service::text::is_blank;
use uuid::Uuid;

use super::error::MessageError;
use crate::conversation::{Conversation, State};

/// Input to send a message.
#[derive(Clone, Debug)]
pub(crate) struct NewMessage {
    pub(crate) conversation_id: Uuid,
    pub(crate) sender_type: SenderType,
    pub(crate) content: String,
}

/// A message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: Uuid,
    pub(crate) conversation_id: Uuid,
    pub(crate) sender_type: SenderType,
    /// The resource name of who said it. Of a contact it is known only in the
    /// conversation.
    pub(crate) sender_id: String,
    pub(crate) content: String,
    pub(crate) create_time: DateTime<Utc>,
    /// The tenant's revision; in a conversation, the order of messages.
    pub(crate) revision: i64,
}

impl NewMessage {
    /// Adds what the rules of a message find wrong; fields are those of the
    /// request.
    pub(crate) fn check(content: &str, violations: &mut Violations) {
        if is_blank(content) {
            violations.add("message.content", "NOT_BLANK", "It must not be blank.");
        }
    }
}

impl Message {
    /// A new message of a caller. The caller has checked the input.
    pub(crate) fn create(new: NewMessage, caller: &str, id: Uuid, now: DateTime<Utc>) -> Self {
        // Nobody speaks in another's name: the sender is the caller, or the
        // conversation's contact, whom [`Message::enter`] fills in.
        let sender_id = match new.sender_type {
            SenderType::Contact => String::new(),
            SenderType::Unspecified | SenderType::User | SenderType::System => caller.to_owned(),
        };
        Self {
            id,
            conversation_id: new.conversation_id,
            sender_type: new.sender_type,
            sender_id,
            content: new.content,
            create_time: now,
            revision: 0,
        }
    }

    /// Adds the message to its conversation, which it moves.
    ///
    /// # Errors
    ///
    /// When the conversation is deleted or closed.
    pub(crate) fn enter(&mut self, conversation: &mut Conversation) -> Result<(), MessageError> {
        if conversation.delete_time.is_some() {
            return Err(MessageError::ConversationDeleted(conversation.id));
        }
        if conversation.state == State::Closed {
            return Err(MessageError::ConversationClosed(conversation.id));
        }
        if self.sender_type == SenderType::Contact {
            self.sender_id = format!("contacts/{}", conversation.contact_id);
        }
        let last = conversation.last_message_time.max(Some(self.create_time));
        conversation.last_message_time = last;
        conversation.update_time = conversation.update_time.max(self.create_time);
        Ok(())
    }
}

/// A stored sender type.
pub(crate) fn sender_type(stored: i16) -> SenderType {
    SenderType::try_from(i32::from(stored)).unwrap_or_default()
}
