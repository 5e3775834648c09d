//! What the registry is told at its start.

use crm_auth::{INTERNAL_SERVICE, PLATFORM_OPERATOR};
use secrecy::SecretString;

use crate::seal::MasterKey;

/// The account of whoever holds the registry's configuration.
pub const OPERATOR: &str = "serviceAccounts/00000000-0000-7000-8000-000000000001";

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
    /// Whether it is reached by TLS, with a certificate that fits the host.
    pub verify_tls: bool,
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

impl Account {
    /// The operator's.
    pub fn operator(secret: SecretString) -> Self {
        Self {
            name: OPERATOR.to_owned(),
            display_name: "operator".to_owned(),
            role: PLATFORM_OPERATOR,
            secret,
        }
    }

    /// That of a service of this suite.
    pub fn service(name: &str, secret: SecretString) -> Self {
        Self {
            name: format!("services/{name}"),
            display_name: name.to_owned(),
            role: INTERNAL_SERVICE,
            secret,
        }
    }
}
