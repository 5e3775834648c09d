//! The program `messaging`, from outside.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod configuration;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::messaging::v1::message::SenderType;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::messaging::v1::{CreateMessageRequest, Message};
use crm_testing::{
    Channel, Client, Folder, OpenStreams, Process, Tenant, Traffic, Wire, ask_admin,
    code_and_reason, free_address, hand_on, health, program, server,
};
use secrecy::ExposeSecret as _;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

const BIN: &str = env!("CARGO_BIN_EXE_messaging");
/// How many callers there are: more than the process has sessions.
const CALLERS: usize = 48;

fn messaging(folder: &Folder, registry: SocketAddr) -> Command {
    let secret = folder.write("secret", server().secrets().messaging.expose_secret());
    program(
        BIN,
        &[
            ("CRM_MESSAGING_LISTEN", "127.0.0.1:0"),
            ("CRM_MESSAGING_ADMIN_LISTEN", "127.0.0.1:0"),
            ("CRM_MESSAGING_SECRET_FILE", &secret),
            ("CRM_MESSAGING_SESSION_BUDGET", "5"),
            ("CRM_REGISTRY_ENDPOINT", &format!("http://{registry}")),
        ],
    )
}

/// A conversation of the tenant: that of a contact.
async fn conversation(client: &Client) -> String {
    let contact = Contact {
        display_name: "Ada".to_owned(),
        email: "ada@example.com".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    let channel = client.channel(server().addresses.contacts);
    let made = ContactServiceClient::new(channel).create_contact(client.request(request)).await;
    made.unwrap().into_inner().initial_conversation
}

async fn say(client: Client, to: Channel, parent: String, number: u64) -> Result<(), Status> {
    let message = Message {
        sender_type: SenderType::User.into(),
        content: number.to_string(),
        ..Message::default()
    };
    let request = CreateMessageRequest { parent, message: Some(message), ..Default::default() };
    MessageServiceClient::new(to).create_message(client.request(request)).await.map(drop)
}

/// The numbers of the messages that are there.
async fn said(tenant: &Tenant) -> BTreeSet<u64> {
    let texts: Vec<String> = sqlx::query_scalar("SELECT content FROM messaging.messages")
        .fetch_all(&mut tenant.database().await)
        .await
        .unwrap();
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_the_registry_and_stops_without_losing_a_call() {
    let folder = Folder::default();
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let parent = conversation(&admin).await;
    let registry = free_address().await;
    let mut process = Process::start(messaging(&folder, registry), &folder);
    let address = process.address("messaging").await;
    let probes = process.address("admin").await;

    // Without the registry.
    assert_eq!(health(address).await, ServingStatus::NotServing);
    let early = say(admin.clone(), admin.channel(address), parent.clone(), 0).await;
    assert_eq!(code_and_reason(early), (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned()));
    let (status, waiting) = ask_admin(probes, "/readyz").await;
    assert!(status == 503 && waiting.contains("\"waits_for\":\"tenant-registry\""), "{waiting}");

    // With it.
    let _link = hand_on(registry, server().addresses.internal).await;
    process.wait_until(address, ServingStatus::Serving).await;
    assert_eq!(ask_admin(probes, "/readyz").await.0, 200);
    let wire = Wire::to(address).await;
    let streams = OpenStreams::open(wire.address).await;
    let channels: Vec<_> = (0..4).map(|_| admin.channel(address)).collect();
    let traffic = Traffic::start(CALLERS, move |number| {
        let channel = channels[number as usize % channels.len()].clone();
        say(admin.clone(), channel, parent.clone(), number)
    });
    traffic.flows(4 * CALLERS).await;

    process.stops_at("TERM").await;

    traffic.ended().await.check(&said(&tenant).await);
    for status in streams.ended().await {
        let expected = (Code::Unavailable, "OVERLOADED".to_owned());
        assert_eq!(code_and_reason::<()>(Err(status)), expected);
    }
    assert!(wire.says_not_serving_first());
    tenant.check_log().await;
}
