//! Messaging, wired: each paragraph is a part, in the order of need.

use std::error::Error;

use crm_auth::{Audience, Verifier};
use crm_clock::Clock;
use crm_proto::messaging::v1::conversation_service_server::ConversationServiceServer;
use crm_proto::messaging::v1::message_service_server::MessageServiceServer;
use crm_service::{Health, MAX_MESSAGE_BYTES, Stack, StackBuilder};
use crm_tenancy::{Migration, RegistryClient, RegistryEndpoints, Settings, TenantSessions};
use secrecy::SecretString;

use crate::conversation::Conversations;
use crate::grpc::{ConversationApi, MessageApi};
use crate::message::Messages;

/// The name of this service, in tokens and in databases.
pub const SERVICE: &str = "messaging";

/// Its schema in every tenant database. Append only.
const MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    description: "conversations and messages",
    sql: include_str!("../migrations/0001_messaging.sql"),
}];

/// What messaging is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the registry answers.
    pub registry: RegistryEndpoints,
    /// The secret of the account `services/messaging`.
    pub secret: SecretString,
    /// The most database sessions of this process.
    pub session_budget: usize,
}

/// Messaging, ready to be served.
#[derive(Debug)]
pub struct App {
    /// The services with all their layers.
    pub stack: Stack,
    /// Whether they can do their work.
    pub health: Health,
    /// Its sessions, to be drained at the end.
    pub sessions: TenantSessions,
}

impl App {
    /// Wires messaging; waits for the registry where it is not there yet.
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
            application: "crm-messaging",
            budget: config.session_budget,
            schema_version: MIGRATIONS.len() as u32,
        };
        let sessions = TenantSessions::new(settings, registry);

        let conversations = Conversations::new(sessions.clone());
        let messages = Messages::new(sessions.clone(), clock.clone());
        let (stack, health) = StackBuilder::default()
            .service(
                ConversationServiceServer::new(ConversationApi { conversations })
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .service(
                MessageServiceServer::new(MessageApi { messages })
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .build(SERVICE, verifier, clock)?;
        Ok(Self { stack, health, sessions })
    }
}
