//! The program `contacts`, from outside.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod configuration;
mod stop;

use std::process::Command;
use std::time::{Duration, Instant};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, GetContactRequest};
use crm_testing::{
    Folder, Process, Tenant, ask_admin, code_and_reason, free_address, hand_on, health, own_server,
    program, server,
};
use secrecy::ExposeSecret as _;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

const BIN: &str = env!("CARGO_BIN_EXE_contacts");
/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Waits until a process has said this so often.
async fn until_said(process: &Process, words: &str, times: usize) {
    let until = Instant::now() + PATIENCE;
    while process.log().matches(words).count() < times {
        assert!(Instant::now() < until, "{words}: {}", process.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn it_says_once_that_others_have_the_room_of_its_sessions() {
    let server = own_server(0);
    let folder = Folder::default();
    let mut command = contacts(&folder, &format!("http://{}", server.addresses.internal));
    let secret = folder.write("own", server.secrets().contacts.expose_secret());
    command.env("CRM_CONTACTS_SECRET_FILE", secret).env("CRM_LOG", "info,crm_tenancy=debug");
    let mut process = Process::start(command, &folder);
    let address = process.address("contacts").await;
    process.wait_until(address, ServingStatus::Serving).await;

    // As if it had been silent for long, and another had come.
    let mut database = server.superuser("crm_registry").await;
    let came = "UPDATE instances SET report_time = '-infinity' WHERE session_budget = 5;
        INSERT INTO instances (service, instance, session_budget, report_number, report_time)
        VALUES ('contacts', 'greedy', 5000, 1, 'infinity')";
    sqlx::raw_sql(came).execute(&mut database).await.unwrap();
    until_said(&process, "the report of activity is sent again later", 2).await;
    let went = "DELETE FROM instances WHERE instance = 'greedy'";
    sqlx::raw_sql(went).execute(&mut database).await.unwrap();
    until_said(&process, "the sessions of this process have room again", 1).await;

    let log = process.log();
    let lost: Vec<_> = log.lines().filter(|line| line.contains("have lost their room")).collect();
    assert_eq!(lost.len(), 1, "{log}");
    assert!(lost[0].contains("\"level\":\"WARN\"") && lost[0].contains("max_connections"), "{log}");
    assert!(process.terminate().await.success());
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
