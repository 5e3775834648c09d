//! Messaging: the conversations of a tenant with its contacts.

pub mod app;
mod conversation;
mod grpc;
mod message;
