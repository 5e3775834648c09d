//! Calls that are repeated until they are answered, while the program is
//! killed again and again.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![expect(clippy::print_stdout, reason = "a test may say what it measured")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_testing::{Channel, Client, Folder, Process, Raw, Tenant, program, reason, server};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use prost::Message as _;
use prost::bytes::Bytes;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Status};

const REQUESTS: usize = 1000;
/// How often each is sent, one that is refused not counted.
const TIMES: usize = 3;
/// How many are under way at once.
const AT_ONCE: usize = 16;
const KILLS: usize = 4;
/// When a refused call is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(20);
/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all senders share.
struct Sending {
    admin: Client,
    /// The program as it runs now.
    contacts: watch::Receiver<Channel>,
    answered: AtomicUsize,
    refused: AtomicUsize,
}

impl Sending {
    /// Sends a request until it is answered.
    async fn send(&self, message: &CreateContactRequest) -> Bytes {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.try_send(message).await {
                Ok(answer) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    return answer;
                }
                Err(status) => self.refuse(&status),
            }
            assert!(Instant::now() < until, "a request that is never answered");
            sleep(REPEAT_AFTER).await;
        }
    }

    /// Sends it once: the answer, as the bytes that it is.
    async fn try_send(&self, message: &CreateContactRequest) -> Result<Bytes, Status> {
        const METHOD: &str = "/crm.contacts.v1.ContactService/CreateContact";
        let mut grpc = Grpc::new(self.contacts.borrow().clone());
        grpc.ready().await.unwrap();
        let request = self.admin.request(message.encode_to_vec().into());
        let answer = grpc.unary(request, PathAndQuery::from_static(METHOD), Raw).await?;
        Ok(answer.into_inner())
    }

    /// Notes a refusal. Where the program itself refuses, it says what it may
    /// say; otherwise there was none.
    fn refuse(&self, status: &Status) {
        if !status.details().is_empty() {
            let expected =
                [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded, Code::ResourceExhausted];
            assert!(expected.contains(&status.code()), "{status:?}");
            reason(status);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends a request three times, at once or one after the other.
    async fn send_all(&self, number: usize) -> Vec<Bytes> {
        let message = request(number);
        if number.is_multiple_of(2) {
            return join_all((0..TIMES).map(|_| self.send(&message))).await;
        }
        let mut answers = Vec::new();
        for _ in 0..TIMES {
            answers.push(self.send(&message).await);
        }
        answers
    }

    /// Waits until one of these has grown to so many.
    async fn wait_for(&self, count: &AtomicUsize, wanted: usize) {
        let until = Instant::now() + PATIENCE;
        while count.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < until, "no answers any more");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A request of its own for each number, with metadata whose order could vary.
fn request(number: usize) -> CreateContactRequest {
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let metadata = ["born", "city", "engine", "language", "teacher"];
    let fields = metadata.iter().map(|key| ((*key).to_owned(), value(key))).collect();
    let contact = Contact {
        display_name: format!("Ada {number}"),
        email: format!("ada.{number}@example.com"),
        metadata: Some(Struct { fields }),
        ..Contact::default()
    };
    let request_id = server().clock.new_id().to_string();
    CreateContactRequest { contact: Some(contact), request_id, ..CreateContactRequest::default() }
}

/// The program, and a channel to it.
async fn start(folder: &Folder, admin: &Client) -> (Process, Channel) {
    let secret = folder.write("secret", server().secrets().contacts.expose_secret());
    let registry = format!("http://{}", server().addresses.internal);
    let settings = [
        ("CRM_CONTACTS_LISTEN", "127.0.0.1:0"),
        ("CRM_CONTACTS_ADMIN_LISTEN", "127.0.0.1:0"),
        ("CRM_CONTACTS_SECRET_FILE", secret.as_str()),
        ("CRM_CONTACTS_SESSION_BUDGET", "10"),
        ("CRM_REGISTRY_ENDPOINT", registry.as_str()),
    ];
    let mut process = Process::start(program(env!("CARGO_BIN_EXE_contacts"), &settings), folder);
    let channel = admin.channel(process.address("contacts").await);
    (process, channel)
}

/// Kills the program while calls are under way, and starts another, so many
/// times. Answers the last one, and how many calls each kill had refused before
/// the next program listened.
async fn kill_and_start(
    sending: &Sending,
    mut process: Process,
    sender: watch::Sender<Channel>,
    folder: &Folder,
) -> (Process, Vec<usize>) {
    let mut refused = Vec::new();
    for kill in 1..=KILLS {
        let wanted = kill * REQUESTS * TIMES / (KILLS + 1);
        sending.wait_for(&sending.answered, wanted).await;
        let before = sending.refused.load(Ordering::Relaxed);
        process.kill();
        sending.wait_for(&sending.refused, before + 1).await;
        let (next, channel) = start(folder, &sending.admin).await;
        process = next;
        sender.send_replace(channel);
        refused.push(sending.refused.load(Ordering::Relaxed) - before);
    }
    (process, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_sent_thrice_across_kills_makes_one_contact_and_has_one_answer() {
    let folder = Folder::default();
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let (process, channel) = start(&folder, &admin).await;
    let (sender, contacts) = watch::channel(channel);
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let sending = Sending { admin: admin.clone(), contacts, answered, refused };

    let began = Instant::now();
    let sent = stream::iter(0..REQUESTS).map(|number| sending.send_all(number));
    let sent = sent.buffered(AT_ONCE).collect::<Vec<_>>();
    let killing = kill_and_start(&sending, process, sender, &folder);
    let (answers, (process, refused_by_kill)) = tokio::join!(sent, killing);

    let took = began.elapsed();
    let mut database = tenant.database().await;
    let (rows, creates): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM contacts.contacts)
              , (SELECT count(*) FROM platform.changes WHERE name LIKE 'contacts/%')",
    )
    .fetch_one(&mut database)
    .await
    .unwrap();
    println!(
        "killed {KILLS} times in {took:.1?}: {REQUESTS} requests, {} answers, {} refusals \
         ({refused_by_kill:?} until it listened again); {rows} rows, {creates} creates",
        sending.answered.load(Ordering::Relaxed),
        sending.refused.load(Ordering::Relaxed),
    );
    let mut names = HashSet::new();
    for (number, answers) in answers.iter().enumerate() {
        assert_eq!(answers.len(), TIMES);
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{number}: {answers:?}");
        let contact = Contact::decode(answers[0].clone()).unwrap();
        assert_eq!(contact.display_name, format!("Ada {number}"));
        names.insert(contact.name);
    }
    let wanted = i64::try_from(REQUESTS).unwrap();
    assert_eq!((names.len(), rows, creates), (REQUESTS, wanted, wanted));
    assert!(process.terminate().await.success());
    tenant.check_log().await;
}
