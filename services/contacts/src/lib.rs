//! Contacts: the people whom a tenant deals with.

pub mod app;
mod contact;
mod grpc;
