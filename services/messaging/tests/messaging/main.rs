//! ConversationService and MessageService, over the wire.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod calls;
mod conversations;
mod lists;
mod messages;
