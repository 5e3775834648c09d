//! What becomes of callers when what stands behind their sessions fails.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use crm_proto::contacts::v1 as pb;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{
    GetTenantActivityRequest, ResumeTenantRequest, SuspendTenantRequest,
};
use crm_testing::{Chance, Client, Tenant, code_and_reason, serve_alone, server};
use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::Mutex;
use tonic::{Code, Status};

/// These tests disturb the suite that both use: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// How many calls each writer makes.
const CALLS: usize = 40;
/// How many sessions one process may have with a tenant.
const SESSION_CAP: i64 = 10;
/// How long what was disturbed may take to be well again on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn list(client: &Client, address: SocketAddr) -> Result<usize, Status> {
    let mut contacts = ContactServiceClient::new(client.channel(address));
    let request = client.request(pb::ListContactsRequest::default());
    Ok(contacts.list_contacts(request).await?.into_inner().contacts.len())
}

#[tokio::test]
async fn a_registry_that_hangs_costs_a_second_and_only_who_needs_it() {
    let _turn = TURN.lock().await;
    let server = serve_alone();
    let known = Tenant::create().await;
    let others = join_all((0..8).map(|_| Tenant::create())).await;
    let replica = server.data_replica().await;
    list(&known.admin(), replica.contacts).await.unwrap();
    // The service's own token is about to expire, and has to be renewed.
    server.clock.advance(TimeDelta::minutes(14));
    replica.hang();

    let began = Instant::now();
    let asked = others.iter().map(|tenant| async {
        let outcome = list(&tenant.admin(), replica.contacts).await;
        (outcome, began.elapsed())
    });
    let answers = join_all(asked).await;

    for (outcome, after) in answers {
        assert_eq!(
            code_and_reason(outcome),
            (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned())
        );
        // One second, and not one for each that waits, on a busy machine.
        assert!(after < Duration::from_secs(8), "{after:?}");
    }
    assert_eq!(list(&known.admin(), replica.contacts).await.unwrap(), 0);
    replica.mend();
    // The connections that hung have ended; what is asked meanwhile may fail.
    for tenant in &others {
        while let Err(status) = list(&tenant.admin(), replica.contacts).await {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(began.elapsed() < Duration::from_secs(60));
        }
    }
    replica.stop().await;
}

/// Writes contacts, with a patience that is often too short where there is
/// chance. Answers how many were acknowledged.
async fn write_many(tenant: Tenant, calls: usize, mut chance: Option<Chance>) -> usize {
    let admin = tenant.admin();
    let mut contacts = ContactServiceClient::new(admin.channel(server().addresses.contacts));
    let mut acknowledged = 0;
    for _ in 0..calls {
        let contact = pb::Contact {
            display_name: "Ada".to_owned(),
            phone: "12345".to_owned(),
            ..pb::Contact::default()
        };
        let message = pb::CreateContactRequest { contact: Some(contact), ..Default::default() };
        let mut request = admin.request(message);
        if let Some(chance) = &mut chance
            && chance.below(3) == 0
        {
            request.set_timeout(Duration::from_millis(chance.below(30)));
        }
        match contacts.create_contact(request).await {
            Ok(_) => acknowledged += 1,
            Err(status) => {
                let expected = [
                    Code::Unavailable,
                    Code::ResourceExhausted,
                    Code::DeadlineExceeded,
                    Code::Cancelled,
                    Code::FailedPrecondition,
                ];
                assert!(expected.contains(&status.code()), "{status:?}");
            }
        }
    }
    acknowledged
}

async fn disturb(tenants: &[Tenant], mut chance: Chance) {
    let operator = Client::operator(server());
    let mut registry = TenantServiceClient::new(operator.channel(server().addresses.registry));
    let mut superuser = server().superuser("postgres").await;
    let end_sessions = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE usename LIKE 't\\_%' AND ($1 IS NULL OR datname = $1)";
    loop {
        let tenant = &tenants[chance.below(tenants.len() as u64) as usize];
        let name = tenant.tenant.name.clone();
        match chance.below(4) {
            0 => {
                let suspend = SuspendTenantRequest { name: name.clone(), ..Default::default() };
                registry.suspend_tenant(operator.request(suspend)).await.unwrap();
                let resume = ResumeTenantRequest { name, ..Default::default() };
                registry.resume_tenant(operator.request(resume)).await.unwrap();
            }
            1 => {
                // Its database lets nobody in for a while.
                let database = &tenant.tenant.database;
                for limit in [0, -1] {
                    let statement = format!("ALTER DATABASE {database} CONNECTION LIMIT {limit}");
                    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut superuser).await.unwrap();
                    let ended = sqlx::query(end_sessions).bind(database);
                    ended.execute(&mut superuser).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(chance.below(200))).await;
                }
            }
            2 => {
                let ended = sqlx::query(end_sessions).bind(&tenant.tenant.database);
                ended.execute(&mut superuser).await.unwrap();
            }
            _ => {
                let ended = sqlx::query(end_sessions).bind(None::<String>);
                ended.execute(&mut superuser).await.unwrap();
            }
        }
        tokio::time::sleep(Duration::from_millis(chance.below(300))).await;
    }
}

/// How many sessions contacts has, at most, while this goes on.
async fn most_sessions(most: &AtomicI64) {
    let mut superuser = server().superuser("postgres").await;
    loop {
        let count = "SELECT count(*) FROM pg_stat_activity
            WHERE usename LIKE 't\\_%\\_contacts\\_%' AND state IS NOT NULL";
        let count: i64 = sqlx::query_scalar(count).fetch_one(&mut superuser).await.unwrap();
        most.fetch_max(count, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether no session of a tenant is in use, and no call waits, by what contacts
/// reported since.
async fn is_at_rest(tenant: &Tenant, since: DateTime<Utc>) -> bool {
    let operator = Client::operator(server());
    let mut registry = TenantServiceClient::new(operator.channel(server().addresses.registry));
    let name = format!("{}/activity", tenant.tenant.name);
    let request = operator.request(GetTenantActivityRequest { name });
    let activity = registry.get_tenant_activity(request).await.unwrap().into_inner();
    let process = activity.processes.iter().find(|process| {
        process.instance == server().addresses.contacts.to_string()
            && process.report_time.unwrap().seconds > since.timestamp()
    });
    process.is_some_and(|process| process.sessions_in_use + process.calls_waiting == 0)
}

#[tokio::test]
async fn whatever_fails_every_session_comes_back_and_no_acknowledged_write_is_lost() {
    let _turn = TURN.lock().await;
    let server = serve_alone();
    // More than there are sessions for.
    let tenants = join_all((0..26).map(|_| Tenant::create())).await;
    let most = AtomicI64::new(0);
    let mut chance = Chance::new(1);

    let mut another = || Chance::new(chance.below(u64::from(u32::MAX)));
    let disturbance = disturb(&tenants, another());
    let writers = tenants.iter().flat_map(|tenant| {
        [another(), another()].map(|chance| write_many(tenant.clone(), CALLS, Some(chance)))
    });
    let acknowledged = tokio::select! {
        acknowledged = join_all(writers.map(tokio::spawn)) => acknowledged,
        () = disturbance => unreachable!("it has no end"),
        () = most_sessions(&most) => unreachable!("it has no end"),
    };

    let ended = server.clock.now();
    assert!(most.into_inner() <= 20, "more sessions than the budget");
    // The last thing that was done may not have been undone.
    let mut superuser = server.superuser("postgres").await;
    let operator = Client::operator(server);
    let mut registry = TenantServiceClient::new(operator.channel(server.addresses.registry));
    for tenant in &tenants {
        let statement = format!("ALTER DATABASE {} CONNECTION LIMIT -1", tenant.tenant.database);
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut superuser).await.unwrap();
        let resume = ResumeTenantRequest { name: tenant.tenant.name.clone(), ..Default::default() };
        // One that is active is refused.
        let _resumed = registry.resume_tenant(operator.request(resume)).await;
    }
    let acknowledged: Vec<usize> = acknowledged.into_iter().map(Result::unwrap).collect();
    assert!(acknowledged.iter().sum::<usize>() > 0);
    for (tenant, acknowledged) in tenants.iter().zip(acknowledged.chunks(2)) {
        let until = Instant::now() + PATIENCE;
        while let Err(status) = list(&tenant.admin(), server.addresses.contacts).await {
            assert!(Instant::now() < until, "{status:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut database = tenant.database().await;
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM contacts.contacts")
            .fetch_one(&mut database)
            .await
            .unwrap();
        assert!(there >= acknowledged.iter().sum::<usize>() as i64);
        tenant.check_log().await;
    }
    for tenant in &tenants {
        let until = Instant::now() + PATIENCE;
        while !is_at_rest(tenant, ended).await {
            assert!(Instant::now() < until, "{} holds sessions for ever", tenant.id);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// How many sessions with a database are being opened right now: until they
/// are, they hold a lock on it.
async fn opening(superuser: &mut PgConnection, database: &str) -> i64 {
    let count = "SELECT count(DISTINCT l.pid) FROM pg_locks AS l
        JOIN pg_database AS d ON d.oid = l.objid
        WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND d.datname = $1";
    sqlx::query_scalar(count).bind(database).fetch_one(superuser).await.unwrap()
}

/// Makes calls that are all under way at once, since each waits for the
/// tenant's head, and so opens as many sessions as the tenant may have.
async fn open_sessions(tenant: &Tenant, superuser: &mut PgConnection) {
    let mut database = tenant.database().await;
    let mut held = database.begin().await.unwrap();
    let lock = "SELECT FROM platform.head FOR UPDATE";
    sqlx::query(lock).execute(&mut *held).await.unwrap();
    let calls = (0..SESSION_CAP).map(|_| tokio::spawn(write_many(tenant.clone(), 1, None)));
    let calls: Vec<_> = calls.collect();
    let count = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = $1 AND usename LIKE '%\\_contacts\\_%' AND wait_event_type = 'Lock'";
    let until = Instant::now() + PATIENCE;
    let mut waiting: i64 = 0;
    while waiting < SESSION_CAP {
        assert!(Instant::now() < until, "{waiting} sessions");
        let count = sqlx::query_scalar(count).bind(&tenant.tenant.database);
        waiting = count.fetch_one(&mut *superuser).await.unwrap();
    }
    held.rollback().await.unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap(), 1);
    }
}

/// Waits until a tenant's sessions have been idle for so long that they are
/// asked whether they are still there.
async fn wait_until_doubted(tenant: &Tenant, superuser: &mut PgConnection) {
    let doubted = "SELECT bool_and(clock_timestamp() - state_change > '2 s')
        FROM pg_stat_activity WHERE datname = $1 AND usename LIKE '%\\_contacts\\_%'";
    let until = Instant::now() + PATIENCE;
    loop {
        let doubted = sqlx::query_scalar(doubted).bind(&tenant.tenant.database);
        if doubted.fetch_one(&mut *superuser).await.unwrap() {
            return;
        }
        assert!(Instant::now() < until, "its sessions are never idle");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs a statement that changes a setting, and has it read.
async fn set(superuser: &mut PgConnection, statement: &'static str) {
    sqlx::raw_sql(statement).execute(&mut *superuser).await.unwrap();
    sqlx::raw_sql("SELECT pg_reload_conf()").execute(superuser).await.unwrap();
}

#[tokio::test]
async fn sessions_that_broke_together_are_opened_again_one_at_a_time() {
    let _turn = TURN.lock().await;
    let server = serve_alone();
    let tenant = Tenant::create().await;
    let database = &tenant.tenant.database;
    let mut superuser = server.superuser("postgres").await;
    open_sessions(&tenant, &mut superuser).await;
    wait_until_doubted(&tenant, &mut superuser).await;
    // So long that it is seen; the pause is after the password was taken.
    set(&mut superuser, "ALTER SYSTEM SET post_auth_delay = 1").await;
    let end_sessions = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE usename LIKE 't\\_%\\_contacts\\_%' AND datname = $1";
    sqlx::query(end_sessions).bind(database).execute(&mut superuser).await.unwrap();

    let calls = (0..SESSION_CAP).map(|_| {
        let admin = tenant.admin();
        async move {
            let until = Instant::now() + PATIENCE;
            // Whoever finds the first broken one is refused, and who waits too
            // long for the others.
            while let Err(status) = list(&admin, server.addresses.contacts).await {
                let expected = [Code::Unavailable, Code::ResourceExhausted];
                assert!(expected.contains(&status.code()), "{status:?}");
                assert!(Instant::now() < until, "{status:?}");
            }
        }
    });
    let most = AtomicI64::new(0);
    let looking = async {
        let mut other = server.superuser("postgres").await;
        loop {
            most.fetch_max(opening(&mut other, database).await, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _answered = join_all(calls) => {}
        () = looking => unreachable!("it has no end"),
    }

    set(&mut superuser, "ALTER SYSTEM RESET post_auth_delay").await;
    assert_eq!(most.into_inner(), 1);
    tenant.check_log().await;
}
