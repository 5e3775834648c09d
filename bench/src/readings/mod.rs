//! What is measured: a file for each reading.

pub(crate) mod cold_tenant;
pub(crate) mod create_contact;
pub(crate) mod create_tenant;
pub(crate) mod get_contact;
pub(crate) mod many_tenants;
pub(crate) mod noisy_neighbour;
