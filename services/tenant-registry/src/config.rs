//! What the registry is told at its start.

use secrecy::SecretString;

use crate::seal::MasterKey;

/// The configuration of the registry.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster that holds the registry's own database, and tenants'.
    pub cluster: ClusterAddress,
    /// The password of the role `crm_registry`.
    pub password: SecretString,
    /// Seals the secrets in the registry's database.
    pub master_key: MasterKey,
    /// The accounts that exist from the start.
    pub accounts: Vec<Account>,
    /// How many sessions one process of a service may hold for one tenant.
    pub session_cap: u32,
    /// How many spare databases the first cluster keeps, until an operator
    /// says otherwise.
    pub spares: u32,
}

/// Where a PostgreSQL cluster answers.
#[derive(Clone, Debug)]
pub struct ClusterAddress {
    /// Its id, as in `clusters/{cluster}`.
    pub id: String,
    /// Its host name or address.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
}

/// A service account and its secret.
#[derive(Clone, Debug)]
pub struct Account {
    /// `serviceAccounts/{uuid}` or `services/{service}`.
    pub name: String,
    /// What people call it.
    pub display_name: String,
    /// What it may do.
    pub role: &'static str,
    /// 256 random bits, as text.
    pub secret: SecretString,
}
