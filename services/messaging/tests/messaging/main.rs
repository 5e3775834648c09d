//! ConversationService, MessageService and ChangeService, over the wire.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod calls;
mod changes;
mod conversations;
mod lists;
mod messages;
