//! Two versions of contacts side by side, while tenants go from one schema to
//! the next.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crm_contacts::app::{SERVICE, start_version};
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_service::{Admission, DataConfig, DataService, Role, serve};
use crm_tenancy::{Migration, RegistryEndpoints};
use crm_testing::{Tenant, code_and_reason, serve_alone, server};
use sqlx::Connection as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// How long a wave may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Contacts with more migrations than it has.
async fn start_next_version(more: &[Migration]) -> SocketAddr {
    let migrations = [SERVICE.migrations, more].concat();
    let service = DataService { migrations: migrations.leak(), ..SERVICE };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = DataConfig {
        registry: RegistryEndpoints {
            public: format!("http://{}", server().addresses.registry),
            internal: format!("http://{}", server().addresses.internal),
            tls: None,
        },
        secret: server().secrets().contacts.clone(),
        instance: address.to_string(),
        session_budget: 5,
    };
    let app = start_version(service, config, server().clock.clone()).await.unwrap();
    tokio::spawn(serve(
        listener,
        app.stack,
        Role::Service,
        Admission::default(),
        CancellationToken::new(),
    ));
    address
}

/// The migrations of the next version, and of the one after, which contracts.
fn next_migrations() -> [Migration; 2] {
    let next = u32::try_from(SERVICE.migrations.len()).unwrap() + 1;
    let expanding = Migration {
        version: next,
        description: "nicknames",
        sql: "ALTER TABLE contacts.contacts ADD nickname text",
        oldest_service_version: 0,
    };
    let contracting = Migration {
        version: next + 1,
        description: "no index that only the first version used",
        sql: "DROP INDEX contacts.contacts_phone_idx",
        oldest_service_version: next,
    };
    [expanding, contracting]
}

async fn create_contact(tenant: &Tenant, at: SocketAddr) -> Result<Contact, Status> {
    let admin = tenant.admin();
    let mut contacts = ContactServiceClient::new(admin.channel(at));
    let contact = Contact {
        display_name: "Someone".to_owned(),
        phone: "12345".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    Ok(contacts.create_contact(admin.request(request)).await?.into_inner())
}

#[tokio::test]
async fn a_version_and_the_next_serve_old_and_new_tenants() {
    let before = serve_alone().addresses.contacts;
    let (old, busy) = tokio::join!(Tenant::create(), Tenant::create());
    for tenant in [&old, &busy] {
        create_contact(tenant, before).await.unwrap();
    }
    // A reader keeps the wave from this tenant, and nobody else.
    let mut database = busy.database().await;
    let mut reader = database.begin().await.unwrap();
    let lock = "LOCK TABLE contacts.contacts IN ACCESS SHARE MODE";
    sqlx::raw_sql(lock).execute(&mut *reader).await.unwrap();

    let next = start_next_version(&next_migrations()[..1]).await;
    let new = Tenant::create().await;
    let refused = create_contact(&busy, next).await;
    create_contact(&busy, before).await.unwrap();
    for address in [before, next] {
        create_contact(&new, address).await.unwrap();
    }

    // The next version asks the registry again, long before its lease is old.
    let status = refused.clone().unwrap_err();
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    let unsupported = (Code::Unavailable, "SCHEMA_VERSION_UNSUPPORTED".to_owned());
    assert_eq!(code_and_reason(refused), unsupported);
    reader.rollback().await.unwrap();
    for tenant in [&busy, &old] {
        let start = Instant::now();
        while let Err(status) = create_contact(tenant, next).await {
            assert_eq!(code_and_reason::<()>(Err(status)), unsupported);
            assert!(start.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        create_contact(tenant, before).await.unwrap();
        tenant.check_log().await;
    }

    // A schema that says so is too new for the version before, and not for the
    // next.
    start_next_version(&next_migrations()).await;
    let newest = Tenant::create().await;
    create_contact(&newest, next).await.unwrap();
    assert_eq!(code_and_reason(create_contact(&newest, before).await), unsupported);
}
