//! Contacts, wired: each paragraph is a part, in the order of need.

use std::error::Error;

use crm_auth::{Audience, Verifier};
use crm_clock::Clock;
use crm_proto::contacts::v1::contact_service_server::ContactServiceServer;
use crm_service::{Health, MAX_MESSAGE_BYTES, Stack, StackBuilder};
use crm_tenancy::{Migration, RegistryClient, RegistryEndpoints, Settings, TenantSessions};
use secrecy::SecretString;

use crate::contact::Contacts;
use crate::grpc::ContactApi;

/// The name of this service, in tokens and in databases.
pub const SERVICE: &str = "contacts";

/// Its schema in every tenant database. Append only.
const MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    description: "contacts",
    sql: include_str!("../migrations/0001_contacts.sql"),
}];

/// What contacts is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the registry answers.
    pub registry: RegistryEndpoints,
    /// The secret of the account `services/contacts`.
    pub secret: SecretString,
    /// The most database sessions of this process.
    pub session_budget: usize,
}

/// Contacts, ready to be served.
#[derive(Debug)]
pub struct App {
    /// The service with all its layers.
    pub stack: Stack,
    /// Whether it can do its work.
    pub health: Health,
    /// Its sessions, to be drained at the end.
    pub sessions: TenantSessions,
}

impl App {
    /// Wires contacts; waits for the registry where it is not there yet.
    ///
    /// # Errors
    ///
    /// When the registry refuses the service's schema or credentials.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, Box<dyn Error + Send + Sync>> {
        // The registry: our schema, the keys to trust, and leases.
        let registry =
            RegistryClient::new(SERVICE, config.secret, &config.registry, clock.clone())?;
        registry.register_schema(&MIGRATIONS).await?;
        let verifier = Verifier::new(Audience::Public, clock.clone());
        registry.follow_keys(verifier.clone()).await?;

        // The way to tenants' databases.
        let settings = Settings {
            application: "crm-contacts",
            budget: config.session_budget,
            schema_version: MIGRATIONS.len() as u32,
        };
        let sessions = TenantSessions::new(settings, registry);

        let contacts = Contacts::new(sessions.clone(), clock.clone());
        let (stack, health) = StackBuilder::default()
            .service(
                ContactServiceServer::new(ContactApi { contacts })
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .build(SERVICE, verifier, clock)?;
        Ok(Self { stack, health, sessions })
    }
}
