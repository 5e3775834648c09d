//! What a suspension does to calls that run, in every replica, and without any
//! word of the registry.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![expect(clippy::print_stdout, reason = "a test may say what it measured")]

mod load;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::messaging::v1::ListConversationsRequest;
use crm_proto::messaging::v1::conversation_service_client::ConversationServiceClient;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_testing::{Client, DataReplica, Tenant, code_and_reason, reason, server};
use futures_util::future::join_all;
use sqlx::AssertSqlSafe;
use tonic::{Code, Status};

use crate::load::{Ended, Load};

/// How long a change may take to show on a machine that is busy. What it took
/// is printed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service and where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Contacts(SocketAddr),
    /// Contacts, with a call that needs nothing of the database.
    Preview(SocketAddr),
    Messaging(SocketAddr),
}

/// One call: a write in contacts, a read in messaging.
async fn call(tenant: &Tenant, at: At) -> Result<(), Status> {
    let admin = tenant.admin();
    match at {
        At::Contacts(address) | At::Preview(address) => {
            let contact = Contact {
                display_name: "Ada".to_owned(),
                phone: "12345".to_owned(),
                ..Contact::default()
            };
            let validate_only = matches!(at, At::Preview(_));
            let contact = Some(contact);
            let message = CreateContactRequest { contact, validate_only, ..Default::default() };
            let mut contacts = ContactServiceClient::new(admin.channel(address));
            contacts.create_contact(admin.request(message)).await?;
        }
        At::Messaging(address) => {
            let mut messaging = ConversationServiceClient::new(admin.channel(address));
            let message = ListConversationsRequest::default();
            messaging.list_conversations(admin.request(message)).await?;
        }
    }
    Ok(())
}

fn refused(reason: &str) -> Result<(), (Code, String)> {
    Err((Code::FailedPrecondition, reason.to_owned()))
}

/// Suspends, resumes, deletes or restores a tenant. Answers when that was
/// acknowledged.
async fn act(verb: &str, tenant: &Tenant) -> Instant {
    let operator = Client::operator(server());
    let mut tenants = TenantServiceClient::new(operator.channel(server().addresses.registry));
    let name = tenant.tenant.name.clone();
    match verb {
        "suspend" => {
            let message = pb::SuspendTenantRequest { name, ..Default::default() };
            tenants.suspend_tenant(operator.request(message)).await.unwrap();
        }
        "resume" => {
            let message = pb::ResumeTenantRequest { name, ..Default::default() };
            tenants.resume_tenant(operator.request(message)).await.unwrap();
        }
        "delete" => {
            let message = pb::DeleteTenantRequest { name, ..Default::default() };
            tenants.delete_tenant(operator.request(message)).await.unwrap();
        }
        _ => {
            let message = pb::UndeleteTenantRequest { name, ..Default::default() };
            tenants.undelete_tenant(operator.request(message)).await.unwrap();
        }
    }
    Instant::now()
}

/// Whether each login of the tenant may log in, and how many sessions it has.
async fn in_postgres(tenant: &Tenant) -> (Vec<bool>, i64) {
    let mut postgres = server().superuser("postgres").await;
    let hex = tenant.id.as_simple().to_string();
    let logins =
        sqlx::query_scalar("SELECT rolcanlogin FROM pg_roles WHERE rolname ~ ('^t_' || $1)");
    let logins = logins.bind(&hex).fetch_all(&mut postgres).await.unwrap();
    let sessions =
        sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE usename ~ ('^t_' || $1)");
    (logins, sessions.bind(&hex).fetch_one(&mut postgres).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_obeys_at_once_and_no_other_tenant_notices() {
    let (tenant, other) = tokio::join!(Tenant::create(), Tenant::create());
    let replica = server().replica().await;
    let places = [server().addresses, replica.addresses]
        .map(|at| [At::Contacts(at.contacts), At::Messaging(at.messaging)])
        .concat();
    let (load, undisturbed) = (Load::start(&tenant, &places), Load::start(&other, &places));
    let mut shut = Vec::new();
    load.until(&places, Instant::now(), &Ok(())).await;
    undisturbed.until(&places, Instant::now(), &Ok(())).await;
    let known = Instant::now();

    for (shutting, name, opening) in
        [("suspend", "TENANT_SUSPENDED", "resume"), ("delete", "TENANT_DELETED", "undelete")]
    {
        let from = act(shutting, &tenant).await;
        assert_eq!(in_postgres(&tenant).await, (vec![false, false], 0));
        let obeyed = load.until(&places, from, &refused(name)).await;
        let to = Instant::now();
        let resumed = act(opening, &tenant).await;
        let served = load.until(&places, resumed, &Ok(())).await;
        println!("{shutting}: obeyed after {obeyed:?}; {opening}: served after {served:?}");
        shut.push((from, to));
    }

    let (ended, others) = (load.stop().await, undisturbed.stop().await);
    for Ended { at, began, outcome, .. } in &ended {
        // What begins after the answer finds PostgreSQL shut.
        if shut.iter().any(|(from, to)| began >= from && began < to) {
            assert!(outcome.is_err(), "{at:?}");
        }
        if let Err((code, reason)) = outcome {
            let named = ["TENANT_SUSPENDED", "TENANT_DELETED"].contains(&reason.as_str());
            assert!(named || *code == Code::Unavailable, "{at:?}: {code:?} {reason}");
        }
    }
    let is_well = |ended: &Ended| ended.began < known || ended.outcome.is_ok();
    assert!(others.iter().all(is_well), "another tenant noticed");
    println!("{} calls, and {} of the other tenant", ended.len(), others.len());
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_call_anywhere_knows_of_every_change_of_state() {
    let tenant = Tenant::create().await;
    let replica = server().replica().await;
    let places = [server().addresses, replica.addresses]
        .map(|at| {
            [At::Contacts(at.contacts), At::Preview(at.contacts), At::Messaging(at.messaging)]
        })
        .concat();
    // Two at a time: each place has more than one session that may be dead.
    let expect = async |wanted: Result<(), (Code, String)>| {
        let calls = places.iter().chain(&places).map(|at| call(&tenant, *at));
        for outcome in join_all(calls).await {
            let outcome = outcome.map_err(|status| (status.code(), reason(&status)));
            assert_eq!(outcome, wanted);
        }
    };
    expect(Ok(())).await;

    for round in 0..6 {
        for (shutting, name, opening) in
            [("suspend", "TENANT_SUSPENDED", "resume"), ("delete", "TENANT_DELETED", "undelete")]
        {
            act(shutting, &tenant).await;
            // Every third time nobody calls meanwhile, and nobody notices.
            if round % 3 > 0 {
                expect(refused(name)).await;
            }
            act(opening, &tenant).await;
            expect(Ok(())).await;
        }
    }
    replica.stop().await;
    tenant.check_log().await;
}

#[tokio::test]
async fn the_fence_holds_without_the_registry_and_so_does_what_was_told() {
    let (tenant, other) = tokio::join!(Tenant::create(), Tenant::create());
    let replica = server().data_replica().await;
    let places = [At::Contacts(replica.contacts), At::Messaging(replica.messaging)];
    for at in places {
        call(&tenant, at).await.unwrap();
        call(&other, at).await.unwrap();
    }
    let expect = async |name: &str| {
        for at in places {
            let since = Instant::now();
            while code_and_reason(call(&tenant, at).await).1 != name {
                assert!(since.elapsed() < PATIENCE, "{at:?} never says {name}");
            }
        }
    };

    // Nobody tells this replica: PostgreSQL refuses.
    replica.cut();
    act("suspend", &tenant).await;
    for at in places {
        for _ in 0..20 {
            let outcome = code_and_reason(call(&tenant, at).await);
            assert_eq!(outcome, (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned()));
            call(&other, at).await.unwrap();
        }
    }
    assert_eq!(in_postgres(&tenant).await, (vec![false, false], 0));

    // Then it hears, and what it heard holds while the registry is away.
    replica.mend();
    expect("TENANT_SUSPENDED").await;
    cut_once_it_knows(&tenant, &replica, places).await;
    act("resume", &tenant).await;
    for at in places {
        assert!(call(&tenant, at).await.is_err(), "nobody told it");
        call(&other, at).await.unwrap();
    }
    replica.mend();
    for at in places {
        let since = Instant::now();
        while let Err(status) = call(&tenant, at).await {
            assert!(since.elapsed() < PATIENCE, "{status:?}");
            assert!([Code::FailedPrecondition, Code::Unavailable].contains(&status.code()));
        }
    }
    tenant.check_log().await;
    replica.stop().await;
}

/// Cuts the link when the replica knows the suspension by heart. Whether it
/// does shows without the link alone, which is mended for longer each time.
async fn cut_once_it_knows(tenant: &Tenant, replica: &DataReplica, places: [At; 2]) {
    let told = async |at| code_and_reason(call(tenant, at).await).1 == "TENANT_SUSPENDED";
    for pause in (0..11).map(|tries| Duration::from_millis(20 << tries)) {
        replica.cut();
        if told(places[0]).await && told(places[1]).await {
            return;
        }
        replica.mend();
        tokio::time::sleep(pause).await;
    }
    panic!("the word does not come");
}

#[tokio::test]
async fn a_call_that_is_cut_off_says_so_and_leaves_nothing() {
    let tenant = Tenant::create().await;
    let at = At::Contacts(server().addresses.contacts);
    call(&tenant, at).await.unwrap();
    // The call waits for this lock, in the middle of its write.
    let mut database = tenant.database().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE contacts.contacts").execute(&mut database).await.unwrap();
    let waiting = tokio::spawn({
        let tenant = tenant.clone();
        async move { call(&tenant, at).await }
    });
    let since = Instant::now();
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
                 WHERE usename ~ ('^t_' || $1) AND wait_event_type = 'Lock')";
    let mut postgres = server().superuser("postgres").await;
    while !sqlx::query_scalar::<_, bool>(waits)
        .bind(tenant.id.as_simple().to_string())
        .fetch_one(&mut postgres)
        .await
        .unwrap()
    {
        assert!(since.elapsed() < PATIENCE, "the call does not wait");
    }

    act("suspend", &tenant).await;

    let status = waiting.await.unwrap().unwrap_err();
    assert!(
        status.code() == Code::Unavailable || reason(&status) == "TENANT_SUSPENDED",
        "{status:?}"
    );
    sqlx::raw_sql("ROLLBACK").execute(&mut database).await.unwrap();
    act("resume", &tenant).await;
    let since = Instant::now();
    while call(&tenant, at).await.is_err() {
        assert!(since.elapsed() < PATIENCE, "it is not served again");
    }
    let written: i64 = sqlx::query_scalar("SELECT count(*) FROM contacts.contacts")
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert_eq!(written, 2);
    tenant.check_log().await;
}

#[tokio::test]
async fn no_lease_makes_a_login_that_a_suspension_misses() {
    let tenant = Tenant::create().await;
    let mut postgres = server().superuser("postgres").await;
    let mut registry = server().superuser("crm_registry").await;
    let acquire = async |service: &str| {
        let roles = vec!["roles/internal.service".to_owned()];
        let issued = server().identity.issue(format!("services/{service}"), roles, None).unwrap();
        let client = Client::new(issued.token);
        let mut leases = LeaseServiceClient::new(client.channel(server().addresses.internal));
        let message =
            pb::AcquireLeaseRequest { tenant: tenant.tenant.name.clone(), ..Default::default() };
        leases.acquire_lease(client.request(message)).await
    };

    for _ in 0..5 {
        // As if the services were new: no login has been made.
        for service in ["contacts", "messaging"] {
            let login = format!("t_{}_{service}_g1", tenant.id.as_simple());
            let database = &tenant.tenant.database;
            let drop =
                format!("REVOKE CONNECT ON DATABASE {database} FROM {login}; DROP ROLE {login}");
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut postgres).await.unwrap();
        }
        let forget = sqlx::query("DELETE FROM logins WHERE tenant_id = $1").bind(tenant.id);
        forget.execute(&mut registry).await.unwrap();

        let leases = (0..12).map(|turn| acquire(["contacts", "messaging"][turn % 2]));
        let (leases, _) = tokio::join!(join_all(leases), act("suspend", &tenant));

        for lease in leases {
            if let Err(status) = lease {
                assert_eq!(reason(&status), "TENANT_SUSPENDED", "{status:?}");
            }
        }
        let (logins, sessions) = in_postgres(&tenant).await;
        assert!(sessions == 0 && logins.iter().all(|is_open| !is_open), "{logins:?} {sessions}");
        let outcome = code_and_reason(acquire("contacts").await);
        assert_eq!(outcome, (Code::FailedPrecondition, "TENANT_SUSPENDED".to_owned()));
        act("resume", &tenant).await;
        acquire("contacts").await.unwrap();
        acquire("messaging").await.unwrap();
        assert_eq!(in_postgres(&tenant).await.0, [true, true]);
    }
}

#[tokio::test]
async fn what_a_dead_process_left_and_what_others_moved_is_settled() {
    let (left, moved) = tokio::join!(Tenant::create(), Tenant::create());
    let mut postgres = server().superuser("postgres").await;
    let mut registry = server().superuser("crm_registry").await;
    act("suspend", &moved).await;

    // A process that died after it wrote the state down, before the fence.
    let statement = "UPDATE tenants SET state = 3, is_settled = false, revision = revision + 1
                     WHERE tenant_id = $1";
    sqlx::query(statement).bind(left.id).execute(&mut registry).await.unwrap();
    // A hand that opened what should be shut.
    let login = format!("ALTER ROLE t_{}_contacts_g1 LOGIN", moved.id.as_simple());
    sqlx::raw_sql(AssertSqlSafe(login)).execute(&mut postgres).await.unwrap();

    let since = Instant::now();
    for tenant in [&left, &moved] {
        while in_postgres(tenant).await != (vec![false, false], 0) {
            assert!(since.elapsed() < PATIENCE * 2, "nobody settled it");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let outcome = call(tenant, At::Contacts(server().addresses.contacts)).await;
        let expected = (Code::FailedPrecondition, "TENANT_SUSPENDED".to_owned());
        assert_eq!(code_and_reason(outcome), expected);
        act("resume", tenant).await;
        assert_eq!(in_postgres(tenant).await.0, [true, true]);
    }
}
