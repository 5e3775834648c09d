//! A wave of migrations. What a killed wave leaves is tested with `crm`, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::{Migration, RegisterSchemaRequest, Tenant};
use crm_testing::{Client, Side, Verdict};
use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, Connection as _};
use tonic::Status;

use crate::installation::{Installation, LOOK_EVERY, PATIENCE};
use crate::points::{cut_everything_twice, is_registrys};

const TENANTS: usize = 12;

/// Registers one more migration of contacts, which shows how often it ran.
async fn register(installation: &Installation, table: &str) -> Result<(), Status> {
    let mut registry = installation.registry().await;
    let known = "SELECT sql FROM migrations WHERE service = 'contacts' ORDER BY version";
    let mut set: Vec<String> = sqlx::query_scalar(known).fetch_all(&mut registry).await.unwrap();
    registry.close().await.unwrap();
    set.push(format!(
        "CREATE TABLE IF NOT EXISTS contacts.{table} (mark integer);
         INSERT INTO contacts.{table} VALUES (1)"
    ));
    let migrations = (1..).zip(set).map(|(version, sql)| Migration {
        version,
        description: "a test's".to_owned(),
        sql,
        oldest_service_version: 0,
    });
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = installation.identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    let service = Client::new(issued.token);
    let mut leases = LeaseServiceClient::new(service.channel(installation.internal));
    let request = RegisterSchemaRequest { migrations: migrations.collect() };
    leases.register_schema(service.request(request)).await.map(drop)
}

/// The text of what a wave begins with: it takes the lock of a database.
const CLAIM: &str = "pg_try_advisory_lock(hashtextextended('crm migration '";

/// Kills the process when its wave comes to a statement with these words.
fn kill_at(installation: &Installation, words: &'static str, side: Side) -> Arc<AtomicBool> {
    let came = Arc::new(AtomicBool::new(false));
    let (shared, pid, mut begun) = (came.clone(), installation.process.id(), false);
    installation.link.judge(move |statement| {
        begun |= statement.text.contains(CLAIM);
        if !begun || !is_registrys(statement) || !statement.text.contains(words) {
            return Verdict::Pass;
        }
        if shared.swap(true, Ordering::Relaxed) {
            return Verdict::Pass;
        }
        Verdict::Kill(side, pid)
    });
    came
}

/// Waits until every tenant has the newest schema.
async fn raised(installation: &Installation) {
    let (mut start, mut left) = (Instant::now(), i64::MAX);
    let mut registry = installation.registry().await;
    loop {
        let behind = "SELECT count(*) FROM database_migrations WHERE state <> 1";
        let behind: i64 = sqlx::query_scalar(behind).fetch_one(&mut registry).await.unwrap();
        if behind == 0 {
            return;
        }
        if behind < left {
            (start, left) = (Instant::now(), behind);
        }
        assert!(start.elapsed() < PATIENCE, "{behind} tenants are behind");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Every tenant has the migration once, works, and is as the registry says.
async fn ran_once(installation: &Installation, tenants: &[Tenant], table: &str) {
    for tenant in tenants {
        let mut database = installation.database(&tenant.database).await;
        let marks = format!("SELECT count(*) FROM contacts.{table}");
        let marks = sqlx::query_scalar(AssertSqlSafe(marks));
        let marks: i64 = marks.fetch_one(&mut database).await.unwrap();
        database.close().await.unwrap();
        assert_eq!(marks, 1, "{}", tenant.name);
        installation.works(tenant).await;
    }
    installation.all_is_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wave_ends_and_runs_nothing_twice_whatever_statement_is_cut_off() {
    let mut installation = Installation::start(0).await;
    let made =
        (0..TENANTS).map(|_| async { installation.create(&installation.request()).await.unwrap() });
    let tenants = join_all(made).await;

    // What the registry and its migrators do, once the new template is there.
    installation.link.judge(|statement| {
        let holds_up = statement.text.contains(CLAIM);
        if holds_up { Verdict::Cut(Side::Before) } else { Verdict::Pass }
    });
    register(&installation, "cut").await.unwrap();
    let cuts = cut_everything_twice(&installation.link);
    raised(&installation).await;
    installation.link.pass();
    ran_once(&installation, &tenants, "cut").await;
    let cuts = cuts.lock().unwrap().clone();
    let after: Vec<_> = cuts.iter().filter(|cut| cut.1 == Side::After).map(|cut| &cut.0).collect();
    for step in
        ["crm migration", "WITH due AS ( ", "GRANT", "schema_migrations (", "REVOKE", "greatest"]
    {
        let was_cut = after.iter().any(|statement| statement.text.contains(step));
        assert!(was_cut, "{step} was not cut: {after:#?}");
    }

    let mut kills = 0;
    for step in ["WITH due AS ( ", "GRANT CONNECT", "schema_migrations (", "greatest"] {
        for side in [Side::Before, Side::After] {
            kills += 1;
            let table = format!("killed_{kills}");
            let came = kill_at(&installation, step, side);
            // The wave may begin, and the process end, before the answer.
            let _answer = register(&installation, &table).await;
            let start = Instant::now();
            while !came.load(Ordering::Relaxed) {
                assert!(start.elapsed() < PATIENCE, "{step} did not come");
                tokio::time::sleep(LOOK_EVERY).await;
            }
            installation.restart().await;
            raised(&installation).await;
            ran_once(&installation, &tenants, &table).await;
        }
    }
    println!("waves: {} cuts in {TENANTS} databases, {kills} kills", cuts.len());
    installation.stop().await;
}
