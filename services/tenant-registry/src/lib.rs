//! The control plane: tenants and their databases, logins, schemas, tokens.

mod activity;
pub mod app;
pub mod cli;
pub mod config;

mod claim;
mod cluster;
pub mod consistency;
mod database;
mod events;
mod fence;
mod grpc;
pub mod identity;
mod lease;
mod migration;
mod provisioning;
mod purge;
mod requests;
mod schema;
mod seal;
mod tenant;

pub use activity::RESERVED_CONNECTIONS;
pub use app::App;
pub use config::{Account, ClusterAddress, Config, OPERATOR, PurgeSettings};
pub use seal::{MasterKey, SealError, new_secret, scram_verifier};
