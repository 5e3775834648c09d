//! How it ends while it is called.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, ListContactsRequest};
use crm_proto::messaging::v1::message::SenderType;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::messaging::v1::{CreateMessageRequest, ListMessagesRequest, Message};
use crm_testing::{Channel, Client, OpenStreams, Traffic, Wire, ask_admin};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::PATIENCE;
use crate::installation::{Installation, text};

/// How long a process that is asked to stop may take.
pub(crate) const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// How long where calls hang: 8 seconds, and what a busy machine adds.
const HANGING_STOPS_WITHIN: Duration = Duration::from_secs(20);
/// How long one that is asked twice may take.
const ABORTS_WITHIN: Duration = Duration::from_secs(3);
/// How often a test looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What comes sooner after a signal is the same signal.
const SAME_SIGNAL: Duration = Duration::from_millis(600);
/// How many callers each way has.
pub(crate) const CALLERS: usize = 16;

impl Installation {
    /// The administrator of its tenant.
    pub(crate) fn admin(&self) -> Client {
        let token = self.output(&["token", "--tenant", "demo"]);
        Client::new(text(&token.stdout).trim())
    }

    pub(crate) fn channel(&self, client: &Client, port: u16) -> Channel {
        client.channel(([127, 0, 0, 1], port).into())
    }

    /// A superuser's connection to a database.
    pub(crate) async fn superuser(&self, database: &str) -> PgConnection {
        let password = self.folder.join("data/secrets/postgres.password");
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port_base + 20)
            .username("postgres")
            .password(fs::read_to_string(password).unwrap().trim())
            .database(database);
        PgConnection::connect_with(&options).await.unwrap()
    }
}

pub(crate) async fn create(
    client: Client,
    channel: Channel,
    display_name: String,
) -> Result<Contact, Status> {
    let email = "ada@example.com".to_owned();
    let contact = Contact { display_name, email, ..Contact::default() };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    let made = ContactServiceClient::new(channel).create_contact(client.request(request)).await?;
    Ok(made.into_inner())
}

async fn say(client: Client, to: Channel, parent: String, number: u64) -> Result<(), Status> {
    let sender_type = SenderType::User.into();
    let message = Message { sender_type, content: number.to_string(), ..Message::default() };
    let request = CreateMessageRequest { parent, message: Some(message), ..Default::default() };
    MessageServiceClient::new(to).create_message(client.request(request)).await.map(drop)
}

/// The numbers of the contacts whose names begin so.
pub(crate) async fn created(client: &Client, channel: Channel, prefix: &str) -> BTreeSet<u64> {
    let mut contacts = ContactServiceClient::new(channel);
    let mut request = ListContactsRequest { page_size: 1000, ..Default::default() };
    let mut numbers = BTreeSet::new();
    loop {
        let page = contacts.list_contacts(client.request(request.clone())).await.unwrap();
        let page = page.into_inner();
        let names = page.contacts.iter().filter_map(|who| who.display_name.strip_prefix(prefix));
        numbers.extend(names.map(|number| number.parse::<u64>().unwrap()));
        if page.next_page_token.is_empty() {
            return numbers;
        }
        request.page_token = page.next_page_token;
    }
}

/// The numbers of a conversation's messages.
async fn said(client: &Client, channel: Channel, parent: &str) -> BTreeSet<u64> {
    let mut messages = MessageServiceClient::new(channel);
    let parent = parent.to_owned();
    let mut request = ListMessagesRequest { parent, page_size: 1000, ..Default::default() };
    let mut numbers = BTreeSet::new();
    loop {
        let page = messages.list_messages(client.request(request.clone())).await.unwrap();
        let page = page.into_inner();
        numbers.extend(page.messages.iter().map(|said| said.content.parse::<u64>().unwrap()));
        if page.next_page_token.is_empty() {
            return numbers;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_loses_no_call_that_was_accepted() {
    let installation = Installation::new("traffic");
    let mut running = installation.start();
    running.wait_until_it_serves();
    let admin = installation.admin();
    let [contacts, messaging, edge] =
        [installation.port_base + 2, installation.port_base + 3, installation.edge_port]
            .map(|port| installation.channel(&admin, port));
    let made = create(admin.clone(), contacts.clone(), "first".to_owned()).await.unwrap();
    let parent = made.initial_conversation;
    let mut open = Vec::new();
    for offset in [1, 2, 3, 21, 30] {
        let wire = Wire::to(([127, 0, 0, 1], installation.port_base + offset).into()).await;
        open.push((OpenStreams::open(wire.address).await, wire));
    }
    let creating = |way: Channel, prefix: &'static str| {
        let admin = admin.clone();
        Traffic::start(CALLERS, move |number| {
            let made = create(admin.clone(), way.clone(), format!("{prefix}{number}"));
            async { made.await.map(drop) }
        })
    };
    let direct = creating(contacts, "direct-");
    let by_edge = creating(edge, "edge-");
    let (client, conversation) = (admin.clone(), parent.clone());
    let saying = Traffic::start(CALLERS, move |number| {
        say(client.clone(), messaging.clone(), conversation.clone(), number)
    });
    for traffic in [&direct, &by_edge, &saying] {
        traffic.flows(4 * CALLERS).await;
    }

    running.signal("TERM");
    assert!(running.wait(STOPS_WITHIN).success());

    for (streams, wire) in open {
        for status in streams.ended().await {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        }
        assert!(wire.says_not_serving_first());
    }
    let [direct, by_edge, saying] =
        [direct.ended().await, by_edge.ended().await, saying.ended().await];
    let mut again = installation.start();
    again.wait_until_it_serves();
    let contacts = installation.channel(&admin, installation.port_base + 2);
    direct.check(&created(&admin, contacts.clone(), "direct-").await);
    by_edge.check(&created(&admin, contacts, "edge-").await);
    let messaging = installation.channel(&admin, installation.port_base + 3);
    saying.check(&said(&admin, messaging, &parent).await);
    again.signal("TERM");
    assert!(again.wait(PATIENCE).success());
}

/// Calls that hang, since every log is locked until the transactions end.
async fn hanging_calls(
    installation: &Installation,
) -> (Vec<PgConnection>, JoinSet<Result<Contact, Status>>) {
    let mut superuser = installation.superuser("postgres").await;
    let query = "SELECT datname FROM pg_database WHERE datname LIKE 'tenant\\_%' AND datallowconn";
    let databases: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut superuser).await.unwrap();
    let mut locks = Vec::new();
    for database in databases {
        let mut lock = installation.superuser(&database).await;
        sqlx::raw_sql("BEGIN; LOCK TABLE platform.head").execute(&mut lock).await.unwrap();
        locks.push(lock);
    }
    let admin = installation.admin();
    let channel = installation.channel(&admin, installation.port_base + 2);
    let mut calls = JoinSet::new();
    for number in 0..CALLERS {
        calls.spawn(create(admin.clone(), channel.clone(), number.to_string()));
    }
    let until = Instant::now() + PATIENCE;
    let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    while 0 == sqlx::query_scalar::<_, i64>(query).fetch_one(&mut superuser).await.unwrap() {
        assert!(Instant::now() < until, "nothing hangs");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    (locks, calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_calls_that_hang_and_yet_not_for_long() {
    let installation = Installation::new("hanging");
    let mut running = installation.start();
    running.wait_until_it_serves();
    let (_locks, calls) = hanging_calls(&installation).await;

    running.signal("INT");
    assert!(running.wait(HANGING_STOPS_WITHIN).success());

    for outcome in calls.join_all().await {
        let code = outcome.unwrap_err().code();
        assert!(matches!(code, Code::DeadlineExceeded | Code::ResourceExhausted), "{code:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_aborts_though_calls_hang() {
    let installation = Installation::new("abort-hanging");
    let mut running = installation.start();
    running.wait_until_it_serves();
    let (_locks, _calls) = hanging_calls(&installation).await;

    running.signal("TERM");
    let admin = ([127, 0, 0, 1], installation.port_base + 10).into();
    while ask_admin(admin, "/readyz").await.0 != 503 {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // Sooner it would count as the same signal.
    tokio::time::sleep(SAME_SIGNAL).await;
    running.signal("INT");

    assert_eq!(running.wait(ABORTS_WITHIN).code(), Some(143));
}
