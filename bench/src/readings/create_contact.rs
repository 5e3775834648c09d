//! P2: CreateContact on a warm tenant, beside the same statement.

use crm_clock::Clock;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::messaging::v1::Conversation;
use crm_proto::messaging::v1::conversation::State;
use prost::Message as _;
use prost_types::Timestamp;
use tonic::Status;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::client::{Bearer, Login, contact_clients};
use crate::measure::{Bench, Caller, Reading};
use crate::pgbench::Script;
use crate::report::Row;
use crate::{Failure, say};

const TENANT: &str = "bench-write";

/// Creates contacts.
#[derive(Clone)]
struct CreateContact {
    client: ContactServiceClient<Channel>,
    bearer: Bearer,
    /// Makes each call's request_id, if it has one.
    ids: Option<Clock>,
}

impl Caller for CreateContact {
    async fn call(&mut self) -> Result<(), Status> {
        let request_id = self.ids.as_ref().map(|ids| ids.new_id().to_string());
        let message = CreateContactRequest {
            contact: Some(ada()),
            request_id: request_id.unwrap_or_default(),
            validate_only: false,
        };
        self.client.create_contact(self.bearer.request(message)).await?;
        Ok(())
    }
}

/// A line for each number of calls in flight, without and with request_id.
pub(crate) async fn read(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let login = bench.tenant(TENANT).await?;
    let mut rows = Vec::new();
    for with_request_id in [false, true] {
        for &in_flight in &bench.options.in_flight {
            rows.push(compare(bench, &login, in_flight, with_request_id).await?);
        }
    }
    Ok(rows)
}

async fn compare(
    bench: &Bench,
    login: &Login,
    in_flight: u32,
    with_request_id: bool,
) -> Result<Row, Failure> {
    let clients = in_flight.min(login.session_cap);
    let with = if with_request_id { "with" } else { "without" };
    let what = format!("CreateContact {with} request_id, {in_flight} in flight");
    say(&what);
    let readings = bench
        .alternate(
            async || crm(bench, in_flight, with_request_id).await,
            async || peer(bench, login, clients, with_request_id).await,
        )
        .await?;
    Ok(Row::of_rates(format!("{what}; pgbench, {clients} clients"), &readings))
}

async fn crm(bench: &Bench, in_flight: u32, with_request_id: bool) -> Result<Reading, Failure> {
    let suite = &bench.suite;
    let bearer = suite.token(Some(TENANT)).await?;
    let clients = contact_clients(suite.contacts(), in_flight, bench.options.channels).await?;
    let ids = with_request_id.then(Clock::default);
    let callers = clients.into_iter().map(|client| CreateContact {
        client,
        bearer: bearer.clone(),
        ids: ids.clone(),
    });
    bench.load(callers.collect()).await
}

async fn peer(
    bench: &Bench,
    login: &Login,
    clients: u32,
    with_request_id: bool,
) -> Result<Reading, Failure> {
    let request_id = if with_request_id { "gen_random_uuid()" } else { "NULL" };
    let sql = include_str!("../../sql/create_contact.sql").replace("{request_id}", request_id);
    let script = Script {
        login,
        sql: &sql,
        variables: variables(),
        clients,
        seconds: bench.options.seconds,
    };
    bench.pgbench(&script).await
}

/// The contact that both sides create.
fn ada() -> Contact {
    Contact {
        display_name: "Ada Lovelace".to_owned(),
        email: "ada@example.com".to_owned(),
        phone: "+44 20 7946 0958".to_owned(),
        company: "Analytical Engines".to_owned(),
        position: "Programmer".to_owned(),
        source: "referral".to_owned(),
        ..Contact::default()
    }
}

/// What the service binds, but for ids and times. The recorded messages have
/// the right size; their ids are always the same.
fn variables() -> Vec<(&'static str, String)> {
    let now = Some(Timestamp { seconds: 1_700_000_000, nanos: 123_456_000 });
    let (name, conversation) =
        (format!("contacts/{}", Uuid::max()), format!("conversations/{}", Uuid::max()));
    let contact = ada();
    let after = Contact {
        name: name.clone(),
        initial_conversation: conversation.clone(),
        create_time: now,
        update_time: now,
        ..contact.clone()
    };
    let conversation = Conversation {
        name: conversation,
        contact: name,
        state: State::Active.into(),
        create_time: now,
        update_time: now,
        ..Conversation::default()
    };
    vec![
        ("actor", "serviceAccounts/00000000-0000-7000-8000-000000000001".to_owned()),
        ("hash", hex(&[0x5a; 32])),
        ("display_name", contact.display_name),
        ("email", contact.email),
        ("phone", contact.phone),
        ("company", contact.company),
        ("position", contact.position),
        ("source", contact.source),
        ("after", hex(&after.encode_to_vec())),
        ("conversation", hex(&conversation.encode_to_vec())),
    ]
}

/// Bytes as PostgreSQL reads them.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
