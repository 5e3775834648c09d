//! What the change log keeps of a conversation.

use crm_proto::messaging::v1 as pb;
use crm_service::timestamp;

use super::model::Conversation;

/// The public message, but for revision and etag, which the change itself
/// carries, and messages, which are their own.
pub(crate) fn recorded_conversation(conversation: Conversation) -> pb::Conversation {
    pb::Conversation {
        name: format!("conversations/{}", conversation.id),
        contact: format!("contacts/{}", conversation.contact_id),
        display_name: conversation.display_name.unwrap_or_default(),
        state: conversation.state.into(),
        last_message_time: conversation.last_message_time.map(timestamp),
        create_time: Some(timestamp(conversation.create_time)),
        update_time: Some(timestamp(conversation.update_time)),
        delete_time: conversation.delete_time.map(timestamp),
        ..pb::Conversation::default()
    }
}
