//! Messaging, wired.

use std::error::Error;

use crm_clock::Clock;
use crm_proto::changes::v1::change_service_server::ChangeServiceServer;
use crm_proto::messaging::v1::conversation_service_server::ConversationServiceServer;
use crm_proto::messaging::v1::message_service_server::MessageServiceServer;
use crm_service::{DataApp, DataConfig, DataService, MAX_MESSAGE_BYTES, StackBuilder};
use crm_tenancy::{Migration, TenantSessions};

use crate::change::Changes;
use crate::conversation::Conversations;
use crate::grpc::{ChangeApi, ConversationApi, MessageApi};
use crate::message::Messages;

/// This service.
pub const SERVICE: DataService = DataService {
    name: "messaging",
    application: "crm-messaging",
    migrations: &[
        Migration {
            version: 1,
            description: "conversations and messages",
            sql: include_str!("../migrations/0001_messaging.sql"),
            oldest_service_version: 0,
        },
        Migration {
            version: 2,
            description: "names of conversations, and lists by state",
            sql: include_str!("../migrations/0002_conversations.sql"),
            oldest_service_version: 0,
        },
        Migration {
            version: 3,
            description: "every row is recorded",
            sql: include_str!("../migrations/0003_recorded.sql"),
            oldest_service_version: 0,
        },
    ],
    port: 50053,
};

/// Starts messaging.
///
/// # Errors
///
/// As [`DataService::start`].
pub async fn start(
    config: DataConfig,
    clock: Clock,
) -> Result<DataApp, Box<dyn Error + Send + Sync>> {
    let services = |sessions: &TenantSessions| {
        let changes = Changes::new(sessions.clone());
        let conversations = Conversations::new(sessions.clone(), clock.clone());
        let messages = Messages::new(sessions.clone(), clock.clone());
        StackBuilder::default()
            // Changes carry resources of other services.
            .describing(["crm.contacts.v1.Contact"])
            .service(
                ChangeServiceServer::new(ChangeApi { changes })
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .service(
                ConversationServiceServer::new(ConversationApi { conversations })
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .service(
                MessageServiceServer::new(MessageApi { messages })
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
    };
    SERVICE.start(config, clock.clone(), services).await
}
