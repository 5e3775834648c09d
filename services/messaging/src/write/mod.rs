//! Writes of conversations and messages.

mod store;

pub(crate) use store::write_once;
