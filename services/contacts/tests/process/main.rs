//! The program `contacts`, from outside.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod configuration;
mod stop;

use std::process::Command;

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, GetContactRequest};
use crm_testing::{
    Folder, Process, Tenant, ask_admin, code_and_reason, free_address, hand_on, health, program,
    server,
};
use secrecy::ExposeSecret as _;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

const BIN: &str = env!("CARGO_BIN_EXE_contacts");

fn contacts(folder: &Folder, registry: &str) -> Command {
    let secret = folder.write("secret", server().secrets().contacts.expose_secret());
    program(
        BIN,
        &[
            ("CRM_CONTACTS_LISTEN", "127.0.0.1:0"),
            ("CRM_CONTACTS_ADMIN_LISTEN", "127.0.0.1:0"),
            ("CRM_CONTACTS_SECRET_FILE", &secret),
            ("CRM_CONTACTS_SESSION_BUDGET", "5"),
            ("CRM_REGISTRY_ENDPOINT", registry),
        ],
    )
}

#[tokio::test]
async fn it_waits_for_the_registry_and_then_serves_without_it() {
    let folder = Folder::default();
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let registry = free_address().await;

    let mut process = Process::start(contacts(&folder, &format!("http://{registry}")), &folder);
    let address = process.address("contacts").await;
    assert_eq!(health(address).await, ServingStatus::NotServing);
    let mut client = ContactServiceClient::new(admin.channel(address));
    let early = client.get_contact(admin.request(GetContactRequest::default())).await;
    assert_eq!(code_and_reason(early), (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned()));

    let probes = process.address("admin").await;
    let waiting =
        "{\"not_serving\":[\"contacts\"],\"ready\":false,\"waits_for\":\"tenant-registry\"}\n"
            .to_owned();
    assert_eq!(ask_admin(probes, "/readyz").await, (503, waiting));
    assert_eq!(ask_admin(probes, "/livez").await.0, 200);

    let link = hand_on(registry, server().addresses.internal).await;
    process.wait_until(address, ServingStatus::Serving).await;
    assert!(process.log().contains("waiting for the tenant-registry"));
    let contact = Contact {
        display_name: "Ada".to_owned(),
        email: "ada@example.com".to_owned(),
        ..Contact::default()
    };
    let request =
        CreateContactRequest { contact: Some(contact), ..CreateContactRequest::default() };
    let made = client.create_contact(admin.request(request)).await.unwrap().into_inner();

    // The registry goes: what this process knows is enough.
    drop(link);
    while TcpStream::connect(registry).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let request = GetContactRequest { name: made.name.clone() };
    let read = client.get_contact(admin.request(request)).await.unwrap().into_inner();
    assert_eq!(read, made);
    assert_eq!(health(address).await, ServingStatus::Serving);

    let serving = "{\"not_serving\":[],\"ready\":true}\n".to_owned();
    assert_eq!(ask_admin(probes, "/readyz").await, (200, serving));
    let (_, metrics) = ask_admin(probes, "/metrics").await;
    let created = "crm.contacts.v1.ContactService/CreateContact\",code=\"OK\"} 1";
    assert!(metrics.contains(created), "{metrics}");

    assert!(process.terminate().await.success());
    tenant.check_log().await;
}

#[tokio::test]
async fn a_signal_ends_the_wait() {
    let folder = Folder::default();
    let registry = free_address().await;
    let mut process = Process::start(contacts(&folder, &format!("http://{registry}")), &folder);
    process.address("contacts").await;

    assert!(process.terminate().await.success());
}

#[tokio::test]
async fn a_secret_that_is_not_the_account_s_ends_it() {
    let folder = Folder::default();
    let wrong = folder.write("wrong", "not the secret");
    let mut command = contacts(&folder, &format!("http://{}", server().addresses.internal));
    command.env("CRM_CONTACTS_SECRET_FILE", wrong);

    let mut process = Process::start(command, &folder);

    assert_eq!(process.ended().await.code(), Some(1));
    assert!(!process.log().contains("not the secret"));
}

#[test]
fn a_registry_elsewhere_needs_certificates_and_https() {
    let folder = Folder::default();
    for (endpoint, named) in [
        ("https://registry:50071", "CRM_CONTACTS_TLS_CERT_FILE"),
        ("http://registry:50071", "beyond this machine it is https"),
        ("registry:50071", "CRM_REGISTRY_ENDPOINT (--registry-endpoint)"),
        ("ftp://registry", "CRM_REGISTRY_ENDPOINT (--registry-endpoint)"),
    ] {
        let output = contacts(&folder, endpoint).output().unwrap();

        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{words}");
        assert!(words.contains(named), "{words}");
    }
}
