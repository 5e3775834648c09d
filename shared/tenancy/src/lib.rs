//! The only way to a tenant's database.
//!
//! A use case calls [`TenantSessions::run`] with the caller's
//! [`TenantContext`](crm_auth::TenantContext), which only the auth layer can
//! make: there is no function from text to a session. The work runs to its
//! end in a task of its own, whether or not the client is still there.
//!
//! To use it in a new service: connect a [`RegistryClient`] with the service's
//! credentials, register the schema, and make [`TenantSessions`] of it.

mod activity;
mod checkout;
mod cluster;
mod error;
mod fair;
mod lease;
mod pages;
mod pool;
mod registry;
mod report;
mod sessions;
mod share;
mod trace;
mod watch;

pub use checkout::TenantSession;
pub use cluster::ASK_AFTER;
pub use error::{DatabaseError, SessionError, StoreError};
pub use lease::REFUSAL_HOLDS;
pub use registry::{Migration, RegistryClient, RegistryEndpoints};
pub use sessions::{Settings, TenantSessions};
