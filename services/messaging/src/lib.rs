//! Messaging: the conversations of a tenant with its contacts; and the feed of
//! its changes.

pub mod app;
mod change;
mod conversation;
mod grpc;
mod message;
mod write;
