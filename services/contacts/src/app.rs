//! Contacts, wired.

use std::error::Error;

use crm_clock::Clock;
use crm_proto::contacts::v1::contact_service_server::ContactServiceServer;
use crm_service::{DataApp, DataConfig, DataService, MAX_MESSAGE_BYTES, StackBuilder};
use crm_tenancy::{Migration, TenantSessions};

use crate::contact::Contacts;
use crate::grpc::ContactApi;

/// This service.
pub const SERVICE: DataService = DataService {
    name: "contacts",
    application: "crm-contacts",
    migrations: &[
        Migration {
            version: 1,
            description: "contacts",
            sql: include_str!("../migrations/0001_contacts.sql"),
            oldest_service_version: 0,
        },
        Migration {
            version: 2,
            description: "filters by phone and metadata",
            sql: include_str!("../migrations/0002_filters.sql"),
            oldest_service_version: 0,
        },
        Migration {
            version: 3,
            description: "every row is recorded",
            sql: include_str!("../migrations/0003_recorded.sql"),
            oldest_service_version: 0,
        },
        Migration {
            version: 4,
            description: "addresses of any letters",
            sql: include_str!("../migrations/0004_email_key.sql"),
            oldest_service_version: 0,
        },
    ],
    port: 50052,
};

/// Starts contacts.
///
/// # Errors
///
/// As [`DataService::start`].
pub async fn start(
    config: DataConfig,
    clock: Clock,
) -> Result<DataApp, Box<dyn Error + Send + Sync>> {
    start_version(SERVICE, config, clock).await
}

/// As [`start`], with another schema than this version's.
///
/// # Errors
///
/// As [`DataService::start`].
pub async fn start_version(
    service: DataService,
    config: DataConfig,
    clock: Clock,
) -> Result<DataApp, Box<dyn Error + Send + Sync>> {
    let services = |sessions: &TenantSessions| {
        let contacts = Contacts::new(sessions.clone(), clock.clone());
        StackBuilder::default().service(
            ContactServiceServer::new(ContactApi { contacts })
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
    };
    service.start(config, clock.clone(), services).await
}
