//! Databases that wait for their tenants.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use crm_proto::registry::v1::cluster_service_client::ClusterServiceClient;
use crm_proto::registry::v1::finding::Kind;
use crm_proto::registry::v1::migration_service_client::MigrationServiceClient;
use crm_proto::registry::v1::tenant::State;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{
    CheckClustersRequest, CreateTenantRequest, GetTenantRequest, SummarizeMigrationsRequest,
    Tenant as TenantMessage,
};
use crm_testing::{Client, Server, code_and_reason, own_server, reason};
use futures_util::future::join_all;
use prost::Message as _;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::{Mutex, MutexGuard};
use tonic::{Code, Status};
use uuid::Uuid;

const SPARES: usize = 4;

/// The suite with spares, for one test at a time, when its spares are there.
async fn suite() -> (&'static Server, MutexGuard<'static, ()>) {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let server = SERVER.get_or_init(|| own_server(SPARES as u32));
    full(server).await;
    (server, turn)
}

async fn registry(server: &Server) -> PgConnection {
    server.superuser("crm_registry").await
}

async fn spares(server: &Server) -> HashSet<Uuid> {
    let ids = sqlx::query_scalar(
        "SELECT database_id
         FROM databases
         WHERE purpose = 'spare' AND step = 'ready' AND is_current(database_id)",
    );
    let ids: Vec<Uuid> = ids.fetch_all(&mut registry(server).await).await.unwrap();
    ids.into_iter().collect()
}

/// Waits until the spares are at their target, and answers them.
async fn full(server: &Server) -> HashSet<Uuid> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let found = spares(server).await;
        assert!(found.len() <= SPARES, "more spares than asked for: {found:?}");
        if found.len() == SPARES {
            return found;
        }
        assert!(Instant::now() < until, "the spares are not refilled: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn slugged(server: &Server, prefix: &str) -> CreateTenantRequest {
    CreateTenantRequest {
        tenant: Some(TenantMessage {
            display_name: "Some tenant".to_owned(),
            slug: format!("{prefix}-{}", server.clock.new_id().as_simple()),
            ..TenantMessage::default()
        }),
        ..CreateTenantRequest::default()
    }
}

async fn create(server: &Server, request: CreateTenantRequest) -> Result<TenantMessage, Status> {
    let operator = Client::operator(server);
    let mut client = TenantServiceClient::new(operator.channel(server.addresses.registry));
    Ok(client.create_tenant(operator.request(request)).await?.into_inner())
}

async fn get(server: &Server, name: &str) -> Result<TenantMessage, Status> {
    let operator = Client::operator(server);
    let mut client = TenantServiceClient::new(operator.channel(server.addresses.registry));
    let request = GetTenantRequest { name: name.to_owned() };
    Ok(client.get_tenant(operator.request(request)).await?.into_inner())
}

fn id(tenant: &TenantMessage) -> Uuid {
    tenant.name.strip_prefix("tenants/").unwrap().parse().unwrap()
}

/// Every tenant's database has its tenant, and the other way round.
async fn check_tenants(server: &Server) {
    let astray: i64 = sqlx::query_scalar(
        "SELECT count(*)
         FROM (SELECT * FROM databases WHERE purpose = 'tenant') AS d
         FULL JOIN tenants AS t ON t.tenant_id = d.database_id
         WHERE t.tenant_id IS NULL OR d.database_id IS NULL OR (t.state = 2) <> (d.step = 'ready')",
    )
    .fetch_one(&mut registry(server).await)
    .await
    .unwrap();
    assert_eq!(astray, 0, "tenants without a database, or databases without a tenant");
}

#[tokio::test]
async fn a_tenant_takes_a_spare_which_is_replaced() {
    let (server, _turn) = suite().await;
    let before = spares(server).await;

    let tenant = create(server, slugged(server, "spare")).await.unwrap();

    assert_eq!(tenant.state(), State::Active);
    assert!(before.contains(&id(&tenant)), "it was made inline");
    assert_eq!(get(server, &tenant.name).await.unwrap(), tenant);
    let after = full(server).await;
    assert!(!after.contains(&id(&tenant)));
    check_tenants(server).await;
}

#[tokio::test]
async fn a_slug_has_one_winner_and_losers_give_their_spares_back() {
    let (server, _turn) = suite().await;
    let before = spares(server).await;
    let request = slugged(server, "race");

    let outcomes = join_all((0..50).map(|_| create(server, request.clone()))).await;

    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 49));
    for outcome in lost {
        assert_eq!(code_and_reason(outcome), (Code::AlreadyExists, "SLUG_TAKEN".to_owned()));
    }
    let winner = won.into_iter().next().unwrap().unwrap();
    assert_eq!(get(server, &winner.name).await.unwrap(), winner);
    let after = full(server).await;
    let kept = before.iter().filter(|spare| after.contains(spare)).count();
    assert!(kept >= SPARES - 1, "spares were lost: {before:?} {after:?}");
    check_tenants(server).await;
}

#[tokio::test]
async fn twenty_at_once_share_four_spares() {
    let (server, _turn) = suite().await;
    let before = spares(server).await;

    let outcomes = join_all((0..20).map(|_| create(server, slugged(server, "crowd")))).await;

    let tenants: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    assert!(tenants.iter().all(|tenant| tenant.state() == State::Active));
    let ids: HashSet<_> = tenants.iter().map(id).collect();
    assert_eq!(ids.len(), 20, "a database was given twice");
    assert!(before.is_subset(&ids), "a spare was left unused");
    check_tenants(server).await;
}

#[tokio::test]
async fn a_repeated_request_answers_the_same_bytes() {
    let (server, _turn) = suite().await;
    let request_id = server.clock.new_id().to_string();
    let request = CreateTenantRequest { request_id, ..slugged(server, "repeat") };

    let answers = join_all((0..6).map(|_| create(server, request.clone()))).await;

    let answers: Vec<_> = answers.into_iter().map(|a| a.unwrap().encode_to_vec()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let other = CreateTenantRequest { request_id: request.request_id, ..slugged(server, "other") };
    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(code_and_reason(create(server, other).await), expected);
}

#[tokio::test]
async fn a_caller_who_vanishes_leaves_a_whole_tenant_or_none() {
    let (server, _turn) = suite().await;
    let requests: Vec<_> = (0..24)
        .map(|_| CreateTenantRequest {
            request_id: server.clock.new_id().to_string(),
            ..slugged(server, "gone")
        })
        .collect();

    let vanishing = requests.iter().zip(0..).map(|(request, n)| {
        let patience = Duration::from_micros(500 * n);
        tokio::time::timeout(patience, create(server, request.clone()))
    });
    join_all(vanishing).await;

    // A repeated request finds what the first left, or begins anew.
    let outcomes = join_all(requests.into_iter().map(|request| create(server, request))).await;
    let ids: HashSet<_> = outcomes.into_iter().map(|outcome| id(&outcome.unwrap())).collect();
    assert_eq!(ids.len(), 24);
    let made: i64 = sqlx::query_scalar("SELECT count(*) FROM tenants WHERE slug LIKE 'gone-%'")
        .fetch_one(&mut registry(server).await)
        .await
        .unwrap();
    assert_eq!(made, 24);
    check_tenants(server).await;
    full(server).await;
}

#[tokio::test]
async fn half_made_spares_are_finished() {
    let (server, _turn) = suite().await;
    let before = spares(server).await;
    let mut registry = registry(server).await;

    for (spare, step) in before.iter().zip(["planned", "created", "locked", "granted"]) {
        // As a crash after this step leaves it.
        sqlx::query("UPDATE databases SET step = $2 WHERE database_id = $1")
            .bind(spare)
            .bind(step)
            .execute(&mut registry)
            .await
            .unwrap();
    }
    server.clock.advance(TimeDelta::seconds(20));

    assert_eq!(full(server).await, before);
}

#[tokio::test]
async fn a_spare_with_an_old_schema_waits() {
    let (server, _turn) = suite().await;
    let old = spares(server).await;
    let mut registry = registry(server).await;
    // As a migration that does not run leaves them.
    let lower = "UPDATE schema_versions SET version = version - 1, state = 4
                 WHERE service = 'contacts' AND database_id = ANY($1)";
    let ids: Vec<_> = old.iter().copied().collect();
    sqlx::query(lower).bind(&ids).execute(&mut registry).await.unwrap();

    let tenant = create(server, slugged(server, "new")).await.unwrap();

    assert_eq!(tenant.state(), State::Active);
    assert!(!old.contains(&id(&tenant)), "it has the old schema");
    assert!(full(server).await.is_disjoint(&old));
}

#[tokio::test]
async fn spares_that_failed_are_replaced_and_stop_no_wave() {
    let (server, _turn) = suite().await;
    let mut registry = registry(server).await;
    let mut failed = 0;
    // More of them than a wave may have.
    while failed <= 5 {
        let ids: Vec<_> = full(server).await.into_iter().collect();
        let fail = "UPDATE schema_versions SET version = version - 1, state = 4
                    WHERE service = 'contacts' AND database_id = ANY($1)";
        sqlx::query(fail).bind(&ids).execute(&mut registry).await.unwrap();
        failed += ids.len();
    }

    // No operator can retry what is nobody's.
    let operator = Client::operator(server);
    let mut client = MigrationServiceClient::new(operator.channel(server.addresses.registry));
    let summary = client.summarize_migrations(operator.request(SummarizeMigrationsRequest {}));
    let services = summary.await.unwrap().into_inner().services;

    let contacts = services.iter().find(|wave| wave.service == "contacts").unwrap();
    assert_eq!((contacts.failed, contacts.stopped), (0, false), "{contacts:?}");
    assert_eq!(contacts.current, contacts.total, "{contacts:?}");
    full(server).await;
}

#[tokio::test]
async fn replicas_together_keep_to_the_target_and_the_pace() {
    let (server, _turn) = suite().await;
    let (one, two) = tokio::join!(server.replica(), server.replica());
    let emptied = join_all((0..SPARES).map(|_| create(server, slugged(server, "pace")))).await;
    assert!(emptied.iter().all(Result::is_ok));

    let made: Vec<_> = full(server).await.into_iter().collect();

    let closest: Option<f64> = sqlx::query_scalar(
        "SELECT min(extract(epoch FROM apart))::float8
         FROM (
             SELECT create_time - lag(create_time) OVER (ORDER BY create_time) AS apart
             FROM databases WHERE database_id = ANY($1)
         ) AS made",
    )
    .bind(&made)
    .fetch_one(&mut registry(server).await)
    .await
    .unwrap();
    assert!(closest.is_none_or(|seconds| seconds > 0.5), "{closest:?} s apart");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_spare_is_closed_to_everyone_but_its_own_logins() {
    let (server, _turn) = suite().await;
    let mut postgres = server.superuser("postgres").await;

    for spare in full(server).await {
        let who: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT rolname::text
             FROM pg_roles AS r JOIN pg_database AS d ON has_database_privilege(r.oid, d.oid, 'CONNECT')
             WHERE datname = $1 AND NOT rolsuper AND rolname <> 'crm_registry'
             ORDER BY 1",
        )
        .bind(format!("tenant_{}", spare.as_simple()))
        .fetch_all(&mut postgres)
        .await
        .unwrap();
        let hex = spare.as_simple();
        assert_eq!(who, [format!("t_{hex}_contacts_g1"), format!("t_{hex}_messaging_g1")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_never_given_to_a_second_tenant() {
    let server = own_server(2);
    let operator = Client::operator(&server);
    let first = create(&server, slugged(&server, "first")).await.unwrap();
    let mut postgres = server.superuser("crm_registry").await;

    // What a failover loses: the registry's last transactions.
    let forget = format!(
        "DELETE FROM tenants WHERE tenant_id = '{id}';
         UPDATE databases SET purpose = 'spare', create_time = '2000-01-01'
         WHERE database_id = '{id}'",
        id = id(&first)
    );
    sqlx::raw_sql(AssertSqlSafe(forget)).execute(&mut postgres).await.unwrap();
    let second = create(&server, slugged(&server, "second")).await;

    match second {
        Ok(second) => assert_ne!(id(&second), id(&first), "it has another's database"),
        // It was quick to notice.
        Err(status) => assert_eq!(reason(&status), "CLUSTER_UNRECONCILED"),
    }
    let mut clusters = ClusterServiceClient::new(operator.channel(server.addresses.registry));
    let start = Instant::now();
    loop {
        let request = operator.request(CheckClustersRequest::default());
        let found = clusters.check_clusters(request).await.unwrap().into_inner().findings;
        let mut forgotten = found.iter().filter(|found| found.kind() == Kind::TenantForgotten);
        if forgotten.any(|found| found.subject == first.name) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{found:?}");
    }
}
