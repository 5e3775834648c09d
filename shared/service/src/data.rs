//! What contacts, messaging and every later data service have in common: how
//! they join the suite.

use std::error::Error;

use crm_auth::{Audience, Verifier};
use crm_clock::Clock;
use crm_tenancy::{Migration, RegistryClient, RegistryEndpoints, Settings, TenantSessions};
use secrecy::SecretString;

use crate::health::Health;
use crate::stack::{Stack, StackBuilder};

/// A service that owns a schema in every tenant database.
#[derive(Clone, Copy, Debug)]
pub struct DataService {
    /// Its name, in tokens and in databases.
    pub name: &'static str,
    /// Its name in the database's list of sessions.
    pub application: &'static str,
    /// Its schema. Append only.
    pub migrations: &'static [Migration],
    /// Where it listens by default.
    pub port: u16,
}

/// What a data service is told at its start.
#[derive(Clone, Debug)]
pub struct DataConfig {
    /// Where the registry answers.
    pub registry: RegistryEndpoints,
    /// The secret of the account `services/{name}`.
    pub secret: SecretString,
    /// Where this process listens, such as `127.0.0.1:50052`.
    pub instance: String,
    /// The most database sessions of this process in one cluster.
    pub session_budget: usize,
}

/// A data service, ready to be served.
#[derive(Debug)]
pub struct DataApp {
    /// The service with all its layers.
    pub stack: Stack,
    /// Whether it can do its work.
    pub health: Health,
    /// Its sessions, to be drained at the end.
    pub sessions: TenantSessions,
}

impl DataService {
    /// Joins the suite, and serves what `services` makes of the way to
    /// tenants' databases. It waits for a registry that is not there yet.
    ///
    /// # Errors
    ///
    /// When the registry refuses the schema or the credentials, or a method
    /// has no rule.
    pub async fn start(
        &self,
        config: DataConfig,
        clock: Clock,
        services: impl FnOnce(&TenantSessions) -> StackBuilder,
    ) -> Result<DataApp, Box<dyn Error + Send + Sync>> {
        // The registry: our schema, the keys to trust, and leases.
        let registry =
            RegistryClient::new(self.name, config.secret, &config.registry, clock.clone())?;
        registry.register_schema(self.migrations).await?;
        let verifier = Verifier::new(Audience::Public, clock.clone());
        registry.follow_keys(verifier.clone()).await?;

        // The way to tenants' databases.
        let settings = Settings {
            service: self.name,
            instance: config.instance,
            application: self.application,
            budget: config.session_budget,
            schema_version: u32::try_from(self.migrations.len())?,
        };
        let sessions = TenantSessions::new(settings, registry);
        sessions.join().await?;

        let (stack, health) = services(&sessions).build(self.name, verifier, clock)?;
        Ok(DataApp { stack, health, sessions })
    }
}
