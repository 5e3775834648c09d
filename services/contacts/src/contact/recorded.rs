//! What the change log keeps of a contact, and of its conversations with it.

use crm_proto::contacts::v1 as pb;
use crm_proto::messaging::v1 as messaging_pb;
use crm_service::timestamp;

use super::metadata::write_metadata;
use super::model::Contact;

/// The public message, but for revision and etag, which the change itself
/// carries.
pub(crate) fn recorded_contact(contact: Contact) -> pb::Contact {
    pb::Contact {
        name: format!("contacts/{}", contact.id),
        display_name: contact.display_name,
        email: contact.email.unwrap_or_default(),
        phone: contact.phone.unwrap_or_default(),
        company: contact.company.unwrap_or_default(),
        position: contact.position.unwrap_or_default(),
        source: contact.source.unwrap_or_default(),
        metadata: contact.metadata.and_then(write_metadata),
        // The conversation that is made with a contact has the contact's id.
        initial_conversation: format!("conversations/{}", contact.id),
        create_time: Some(timestamp(contact.create_time)),
        update_time: Some(timestamp(contact.update_time)),
        delete_time: contact.delete_time.map(timestamp),
        etag: String::new(),
        revision: 0,
    }
}

/// The conversation that is made with a contact.
pub(super) fn initial_conversation(contact: &Contact) -> messaging_pb::Conversation {
    messaging_pb::Conversation {
        name: format!("conversations/{}", contact.id),
        contact: format!("contacts/{}", contact.id),
        state: messaging_pb::conversation::State::Active.into(),
        create_time: Some(timestamp(contact.create_time)),
        update_time: Some(timestamp(contact.update_time)),
        ..messaging_pb::Conversation::default()
    }
}

/// What the deletion of a contact adds to what the log records of its
/// conversations.
pub(super) fn deletion(contact: &Contact) -> messaging_pb::Conversation {
    messaging_pb::Conversation {
        delete_time: contact.delete_time.map(timestamp),
        ..messaging_pb::Conversation::default()
    }
}
