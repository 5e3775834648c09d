//! What a conversation is.

use chrono::{DateTime, Utc};
use crm_proto::messaging::v1::conversation::State;
use uuid::Uuid;

use crate::message::Message;

/// A conversation.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    pub(crate) id: Uuid,
    pub(crate) contact_id: Uuid,
    pub(crate) state: State,
    pub(crate) last_message_time: Option<DateTime<Utc>>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
    pub(crate) delete_time: Option<DateTime<Utc>>,
    /// The tenant's revision at which it was last changed.
    pub(crate) revision: i64,
    /// Its latest messages, where they were asked for.
    pub(crate) messages: Vec<Message>,
}

/// Which conversations are listed, and how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConversationFilter {
    pub(crate) contact_id: Option<Uuid>,
    pub(crate) page_size: i64,
    /// How many messages of each; 0 for none.
    pub(crate) messages: i64,
}
