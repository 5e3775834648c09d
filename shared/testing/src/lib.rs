//! What tests need: the real suite on a real PostgreSQL, a tenant for each
//! test, and clients.
//!
//! One PostgreSQL serves the whole run: the first test program starts it, and
//! a keeper stops it when the last is gone. Each test program serves the suite
//! on free ports; each test makes a tenant, and so has a database of its own.

mod chance;
mod channel;
mod check;
mod client;
mod configuration;
mod link;
mod log;
mod neighbour;
mod postgres;
mod postgres_link;
mod process;
mod raw;
mod server;
mod tenant;
mod traffic;
mod watch;
mod wire;

pub use chance::Chance;
pub use channel::Channel;
pub use check::faults_of_log;
pub use client::{Client, code_and_reason, field_faults, reason};
pub use configuration::Configuration;
pub use link::{DataReplica, free_address, hand_on};
pub use log::security_events;
pub use neighbour::Planted;
pub use postgres::OtherCluster;
pub use postgres_link::{PostgresLink, Side, Statement, Verdict};
pub use process::{Folder, Process, ask_admin, health, program};
pub use raw::Raw;
pub use server::{
    Replica, Server, own_purging_server, own_server, serve_alone, serve_durably, server,
};
pub use tenant::Tenant;
pub use traffic::{Outcomes, Traffic};
pub use watch::{Watched, canary, read_log, registry_canary, watched};
pub use wire::{OpenStreams, Wire};

/// The migrations of contacts, in order: for tests that register others beside
/// them.
pub fn contacts_migrations() -> Vec<&'static str> {
    crm_contacts::app::SERVICE.migrations.iter().map(|migration| migration.sql).collect()
}
