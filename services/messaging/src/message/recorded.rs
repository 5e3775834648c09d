//! What the change log keeps of a message.

use crm_proto::messaging::v1 as pb;
use crm_service::timestamp;

use super::model::Message;

/// The public message, but for revision and etag, which the change itself
/// carries.
pub(crate) fn recorded_message(message: Message) -> pb::Message {
    pb::Message {
        name: format!("conversations/{}/messages/{}", message.conversation_id, message.id),
        sender_type: message.sender_type.into(),
        sender_id: message.sender_id,
        content: message.content,
        create_time: Some(timestamp(message.create_time)),
        etag: String::new(),
        revision: 0,
    }
}
