//! PostgreSQL clusters: where tenants' databases live.

mod admin;
pub(crate) mod store;

pub(crate) use admin::{ClusterAdmin, quoted};
