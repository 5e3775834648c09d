//! What the registry is told at its start.

use std::time::Duration;

use chrono::TimeDelta;
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
    /// How deleted tenants are removed for good.
    pub purge: PurgeSettings,
}

/// How deleted tenants, and databases that nobody needs, are removed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PurgeSettings {
    /// How many databases are removed in a minute in each cluster, by all
    /// processes together. 0: none.
    pub per_minute: u32,
    /// Where more tenants than this are to be purged at once, none is.
    pub limit: usize,
    /// How long backups are kept that may have a purged tenant.
    pub backup_retention: TimeDelta,
}

impl Default for PurgeSettings {
    fn default() -> Self {
        Self { per_minute: 10, limit: 20, backup_retention: TimeDelta::days(30) }
    }
}

impl PurgeSettings {
    /// How far apart databases are removed. `None`: they are not.
    pub(crate) fn pace(&self) -> Option<Duration> {
        (self.per_minute > 0).then(|| Duration::from_secs(60) / self.per_minute)
    }
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
