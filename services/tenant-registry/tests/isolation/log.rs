//! What a login may not do to the log of its tenant (ADR 4).

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_testing::{Tenant, server};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use crate::{lease, log_in};

/// PostgreSQL's words for a right that is not there, and for a constraint.
const REFUSED: &str = "42501";
const TORN: &str = "23514";
const REQUEST: &str = "00000000-0000-4000-8000-000000000001";
/// All that a tenant has.
const EVERYTHING: &str = "
    SELECT md5(string_agg(line, '' ORDER BY line))
    FROM (
        SELECT c::text FROM platform.changes AS c
        UNION ALL SELECT 'head ' || revision FROM platform.head
        UNION ALL SELECT r::text FROM platform.requests AS r
        UNION ALL SELECT c::text FROM contacts.contacts AS c
        UNION ALL SELECT c::text FROM messaging.contacts AS c
        UNION ALL SELECT c::text FROM messaging.conversations AS c
        UNION ALL SELECT m::text FROM messaging.messages AS m
    ) AS everything (line)";

/// What the login of contacts tries, each in a transaction. In all of them are
/// the revision of the head, the next one, the id of a contact that is there and
/// of one that is not; [`Target::script`] says what stands in brackets.
const BY_CONTACTS: [(&str, &str, &str); 33] = [
    // Revisions that are torn.
    ("a revision without a change", TORN, "[begin]"),
    ("two revisions, one recorded", REFUSED, "[begin]; [begin]; [end]"),
    ("two, the first recorded", REFUSED, "[begin]; [end]; [begin]"),
    (
        "two in savepoints",
        REFUSED,
        "SAVEPOINT a; [begin]; RELEASE a; SAVEPOINT b; [begin]; RELEASE b; [end]",
    ),
    (
        "one after another that is undone",
        TORN,
        "SAVEPOINT a; [begin]; [end]; ROLLBACK TO a; [begin]",
    ),
    ("a change that is undone", TORN, "[begin]; SAVEPOINT a; [end]; ROLLBACK TO a"),
    (
        "a change that is undone when it was looked at",
        TORN,
        "[begin]; SAVEPOINT a; [end]; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO a",
    ),
    ("one that is looked at too early", TORN, "SET CONSTRAINTS ALL IMMEDIATE; [begin]; [end]"),
    ("one that is cut in two", TORN, "[begin]; COMMIT AND CHAIN; [end]"),
    // Revisions of others.
    ("a past one", REFUSED, "[record 1 7 contacts/x 1 'a']"),
    ("the newest", REFUSED, "[record {head} 7 contacts/x 1 'a']"),
    ("a future one", REFUSED, "[begin]; [end]; [record {next}+1 0 contacts/x 1 'a']"),
    ("the newest after a repeat", REFUSED, "[repeat]; [record {head} 7 contacts/x 1 'a']"),
    ("its next ordinal", REFUSED, "[repeat]; [record {head} 1 contacts/x 1 'a']"),
    ("an effect in it", REFUSED, "[repeat]; [changed {head} {absent} NULL]"),
    ("a repeat, and a write without a change", TORN, "[repeat]; [begin]"),
    // Changes that are forged.
    ("another actor", REFUSED, "[begin]; [record {next} 0 contacts/x 1 'b']"),
    ("no actor", REFUSED, "[begin]; [record {next} 0 contacts/x 1 NULL]"),
    ("a gap before it", REFUSED, "[begin]; [record {next} 1 contacts/x 1 'a']"),
    ("a gap between", REFUSED, "[begin]; [end]; [record {next} 2 contacts/x 1 'a']"),
    ("another collection's name", REFUSED, "[begin]; [record {next} 0 conversations/x 1 'a']"),
    ("a name below it", REFUSED, "[begin]; [record {next} 0 contacts/x/messages/y 1 'a']"),
    ("another service's kind", REFUSED, "[begin]; [record {next} 0 conversations/x 2 'a']"),
    // Effects of what was not done.
    ("an effect without a cause", REFUSED, "[begin]; [changed {next} {absent} NULL]"),
    ("an effect of something else", REFUSED, "[begin]; [end]; [changed {next} {absent} NULL]"),
    ("a deletion without a cause", TORN, "[begin]; [end]; [changed {next} {there} now()]"),
    ("a deletion in a past revision", TORN, "[changed 1 {there} now()]"),
    // Rows that are not recorded.
    ("a row that is changed", TORN, "UPDATE contacts.contacts SET display_name = 'forged'"),
    (
        "a row that is changed, and another recorded",
        TORN,
        "[begin]; [end]; UPDATE contacts.contacts SET display_name = 'forged', revision = {next}",
    ),
    (
        "a row whose change is undone when it was looked at",
        TORN,
        "[begin]; UPDATE contacts.contacts SET revision = {next} WHERE contact_id = '{there}';
         SAVEPOINT a; [record {next} 0 contacts/{there} 1 'a'];
         SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO a; [end]",
    ),
    (
        "a row that is new",
        TORN,
        "INSERT INTO contacts.contacts
             (contact_id, display_name, phone, create_time, update_time, revision)
         VALUES ('{absent}', 'forged', '1', now(), now(), {head})",
    ),
    ("a row that goes", REFUSED, "DELETE FROM contacts.contacts"),
    ("a row with another id", REFUSED, "UPDATE contacts.contacts SET contact_id = '{absent}'"),
];
/// What the login of messaging tries.
const BY_MESSAGING: [(&str, &str, &str); 8] = [
    ("another service's kind", REFUSED, "[begin]; [record {next} 0 contacts/x 1 'a']"),
    (
        "a message as a conversation",
        REFUSED,
        "[begin]; [record {next} 0 conversations/x/messages/y 2 'a']",
    ),
    (
        "an effect",
        REFUSED,
        "SELECT platform.record_messaging_effect({head}, 'conversations/x', 2::smallint, 'a', '')",
    ),
    (
        "an effect, as its first versions recorded it",
        REFUSED,
        "SELECT platform.record_effect({head}, 'conversations/x', 2::smallint, 'a', 'a', '')",
    ),
    ("a row that is changed", TORN, "UPDATE messaging.conversations SET state = 4"),
    (
        "a row that is new",
        TORN,
        "INSERT INTO messaging.messages (
             message_id, conversation_id, sender_type, sender_id, content, create_time, revision
         )
         VALUES ('{absent}', '{there}', 1, 'a', 'forged', now(), {head})",
    ),
    ("a row that goes", REFUSED, "DELETE FROM messaging.conversations"),
    ("what was said", REFUSED, "UPDATE messaging.messages SET content = 'forged'"),
];

/// A tenant with a contact, and what statements are told of it.
struct Target {
    tenant: Tenant,
    there: String,
}

impl Target {
    async fn new() -> Self {
        let tenant = Tenant::create().await;
        let admin = tenant.admin();
        let mut contacts = ContactServiceClient::new(admin.channel(server().addresses.contacts));
        let contact = Contact {
            display_name: "First".to_owned(),
            phone: "12345".to_owned(),
            ..Contact::default()
        };
        let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
        let made = contacts.create_contact(admin.request(request)).await.unwrap().into_inner();
        let there = made.name.strip_prefix("contacts/").unwrap().to_owned();
        Self { tenant, there }
    }

    /// A script as it is run, in one transaction: [begin] and [end] are a whole
    /// write; [repeat] begins one with a request_id; [record] has a change
    /// recorded, and [changed] its effects, with what is given.
    fn script(&self, text: &str, head: i64) -> String {
        let mut text = text
            .replace("[end]", "[record {next} 0 contacts/x 1 'a']")
            .replace("{head}", &head.to_string())
            .replace("{next}", &(head + 1).to_string())
            .replace("{there}", &self.there)
            .replace("{absent}", "00000000-0000-4000-8000-00000000000a");
        while let Some((before, rest)) = text.split_once('[') {
            let (call, after) = rest.split_once(']').unwrap();
            let call = match call.split(' ').collect::<Vec<_>>()[..] {
                ["begin"] => "begin_write(NULL, 'm', 'a', '')".to_owned(),
                ["repeat"] => format!("begin_write('{REQUEST}', 'm', 'a', '')"),
                ["record", revision, ordinal, name, kind, actor] => format!(
                    "end_write({revision}, true, {ordinal}::smallint, '{name}', {kind}::smallint,
                         {actor}, '')"
                ),
                ["changed", revision, contact, delete_time] => format!(
                    "contact_changed({revision}, true, '{contact}', 'a', now(), {delete_time}, '',
                         '')"
                ),
                _ => unreachable!("{call}"),
            };
            let schema = if call.starts_with("contact") { "messaging" } else { "platform" };
            text = format!("{before}SELECT {schema}.{call}{after}");
        }
        format!("BEGIN; {text}; COMMIT")
    }

    async fn session(&self, service: &str) -> PgConnection {
        let lease = lease(&self.tenant, service).await;
        log_in(&lease, &self.tenant.tenant.database).await.unwrap()
    }
}

async fn head(session: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT platform.revision()").fetch_one(session).await.unwrap()
}

async fn run(session: &mut PgConnection, script: String) -> Result<(), String> {
    let outcome = session.execute(AssertSqlSafe(script)).await;
    session.execute("ROLLBACK").await.unwrap();
    let code = |error: sqlx::Error| match error.as_database_error().and_then(|e| e.code()) {
        Some(code) => code.into_owned(),
        None => format!("{error:?}"),
    };
    outcome.map(drop).map_err(code)
}

#[tokio::test]
async fn a_login_cannot_forge_or_tear_the_log() {
    let target = Target::new().await;
    let mut contacts = target.session("contacts").await;
    let mut messaging = target.session("messaging").await;
    let mut superuser = target.tenant.database().await;
    let everything = async |session: &mut PgConnection| -> String {
        sqlx::query_scalar(EVERYTHING).fetch_one(session).await.unwrap()
    };
    // What is whole is taken, in savepoints, too; and its request is known then.
    let first = head(&mut contacts).await;
    let whole = "SAVEPOINT a; [repeat]; SAVEPOINT b; [end]; RELEASE b; RELEASE a";
    run(&mut contacts, target.script(whole, first)).await.unwrap();
    let second = head(&mut contacts).await;
    assert_eq!(second, first + 1);

    let before = everything(&mut superuser).await;
    let mut broken = Vec::new();
    let logins = [(&mut contacts, &BY_CONTACTS[..]), (&mut messaging, &BY_MESSAGING[..])];
    for (session, tries) in logins {
        for (what, expected, text) in tries {
            let outcome = run(session, target.script(text, second)).await;
            let after = everything(&mut superuser).await;
            if outcome != Err((*expected).to_owned()) || after != before {
                broken.push(format!("{what}: {outcome:?}; left as it was: {}", after == before));
            }
        }
    }

    assert!(broken.is_empty(), "{broken:#?}");
    // A repeated request gives its revision back, and the next is the next.
    run(&mut contacts, target.script("[repeat]", second)).await.unwrap();
    assert_eq!(everything(&mut superuser).await, before);
    run(&mut contacts, target.script("[repeat]; [begin]; [end]", second)).await.unwrap();
    assert_eq!(head(&mut contacts).await, second + 1);
    target.tenant.check_log().await;
}

/// A function that an owner publishes may have a fault, too.
#[tokio::test]
async fn an_owner_records_effects_on_its_own_resources_alone() {
    let target = Target::new().await;
    let mut session = target.tenant.database().await;
    let head = head(&mut session).await;
    let written = "[begin];
        INSERT INTO platform.changes (revision, ordinal, kind, name, actor, after)
        VALUES ({next}, 0, 1, 'contacts/x', 'a', '')";
    // The owner, its function, the revision, name and kind, the cause.
    let tries = [
        ("messaging", "messaging_effect", "{next} conversations/x 2 contacts/x", Ok(())),
        ("messaging", "effect", "{next} conversations/x 2 contacts/x", Ok(())),
        ("contacts", "contacts_effect", "{next} contacts/y 1 contacts/x", Ok(())),
        ("messaging", "messaging_effect", "{next} contacts/y 1 contacts/x", Err(REFUSED)),
        ("messaging", "messaging_effect", "{next} contacts/y 2 contacts/x", Err(REFUSED)),
        ("messaging", "messaging_effect", "{head} conversations/x 2 contacts/x", Err(REFUSED)),
        ("messaging", "messaging_effect", "{next} conversations/x 2 contacts/y", Err(REFUSED)),
        ("messaging", "effect", "{next} contacts/y 1 contacts/x", Err(REFUSED)),
        ("messaging", "contacts_effect", "{next} contacts/y 1 contacts/x", Err(REFUSED)),
        ("contacts", "messaging_effect", "{next} conversations/x 2 contacts/x", Err(REFUSED)),
        ("contacts", "effect", "{next} conversations/x 2 contacts/x", Err(REFUSED)),
    ];
    for (owner, function, of, expected) in tries {
        let [revision, name, kind, cause] = of.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{of}");
        };
        let actor = if function == "effect" { "'b', " } else { "" };
        let text = format!(
            "{written}; SET LOCAL ROLE crm_{owner}_owner;
             SELECT platform.record_{function}(
                 {revision}, '{name}', {kind}::smallint, {actor}'{cause}', ''
             );
             ROLLBACK; BEGIN"
        );

        let outcome = run(&mut session, target.script(&text, head)).await;

        assert_eq!(outcome, expected.map_err(str::to_owned), "{owner}: {function} {of}");
    }
}
