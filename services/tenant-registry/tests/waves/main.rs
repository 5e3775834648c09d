//! Waves: how the schemas of tenants that are there already are raised.
//!
//! The contacts service of this test program is the version before: each test
//! registers one more migration in its name.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod calls;

use std::time::{Duration, Instant};

use crm_proto::registry::v1::tenant_migration::State;
use crm_proto::registry::v1::{ListTenantMigrationsRequest, SummarizeMigrationsRequest};
use crm_testing::{Tenant, code_and_reason, field_faults, server};
use futures_util::future::join_all;
use prost::Message as _;
use sqlx::Connection as _;
use tonic::Code;

use calls::*;

#[tokio::test]
async fn a_wave_raises_every_tenant_four_at_a_time_while_they_are_used() {
    let _turn = turn().await;
    let tenants = tenants(30).await;
    // What a tenant may be: in use, suspended, deleted.
    let mut registry = server().superuser("crm_registry").await;
    for (tenant, state) in [(&tenants[7], 3_i16), (&tenants[8], 4)] {
        let changed =
            sqlx::query("UPDATE tenants SET state = $2, is_settled = false WHERE tenant_id = $1");
        changed.bind(tenant.id).bind(state).execute(&mut registry).await.unwrap();
    }
    let (watch, most) = watch_sessions();

    let sql = format!("ALTER TABLE contacts.contacts ADD nickname text; {}", marking("wave_all"));
    let version = register(&sql).await;
    let used = [&tenants[0], &tenants[14], &tenants[29]];
    let mut calls = 0;
    while !is_done(&summary().await) {
        for outcome in join_all(used.map(create_contact)).await {
            outcome.unwrap();
            calls += 1;
        }
    }
    watch.abort();

    assert!(calls > 0);
    let most = *most.lock().await;
    assert!((2..=4).contains(&most), "{most} at once");
    for tenant in &tenants {
        let found = migration(tenant).await;
        assert_eq!((found.current_version, found.state()), (version, State::Current));
        assert_eq!((found.attempts, found.last_error.as_str()), (0, ""));
    }
    assert_eq!(marks(&tenants, "wave_all").await, [1; 30]);
    // Tenants of now have it from the start, and the version before serves all.
    let new = Tenant::create().await;
    assert_eq!(migration(&new).await.current_version, version);
    create_contact(&new).await.unwrap();
    for tenant in used {
        create_contact(tenant).await.unwrap();
        tenant.check_log().await;
    }
}

#[tokio::test]
async fn a_tenant_that_is_busy_holds_up_nobody_and_is_raised_in_the_end() {
    let _turn = turn().await;
    let tenants = tenants(3).await;
    let mut database = tenants[1].database().await;
    let mut lock = database.begin().await.unwrap();
    let table = "LOCK TABLE contacts.contacts IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(table).execute(&mut *lock).await.unwrap();

    let version = register("ALTER TABLE contacts.contacts ADD busy text").await;
    until(|wave| wave.current + 1 == wave.total && wave.pending == 1).await;
    let busy = migration(&tenants[1]).await;
    lock.rollback().await.unwrap();
    until(is_done).await;

    assert_eq!((busy.state(), busy.current_version), (State::Pending, version - 1));
    assert!(busy.attempts >= 1 && busy.last_error.contains("55P03"), "{busy:?}");
    assert_eq!(migration(&tenants[1]).await.current_version, version);
}

#[tokio::test]
async fn a_migration_that_fails_waits_for_an_operator_while_others_go_on() {
    let _turn = turn().await;
    let tenants = tenants(3).await;
    execute(&tenants[1], "CREATE TABLE contacts.in_the_way ()").await;

    let version = register("CREATE TABLE contacts.in_the_way (id uuid)").await;
    let wave = until(|wave| wave.current + wave.failed == wave.total).await;
    let failed = migration(&tenants[1]).await;
    let all_failed = list("tenants/-", "state = STATE_FAILED AND service = contacts").await;
    execute(&tenants[1], "DROP TABLE contacts.in_the_way").await;
    let request_id = server().clock.new_id().to_string();
    let not_failed = retry(&migration(&tenants[0]).await.name, "").await;
    let first = retry(&failed.name, &request_id).await.unwrap();
    until(is_done).await;
    let again = retry(&failed.name, &request_id).await.unwrap();
    let reused = retry(&migration(&tenants[0]).await.name, &request_id).await;

    assert_eq!((wave.failed, wave.stopped), (1, false));
    assert_eq!((failed.state(), failed.current_version), (State::Failed, version - 1));
    assert!(failed.last_error.starts_with(&format!("migration {version}: 42P07: ")), "{failed:?}");
    assert_eq!(all_failed, [failed]);
    let pending = first.tenant_migration.as_ref().unwrap();
    assert_eq!((pending.state(), pending.attempts), (State::Pending, 0));
    assert_eq!(first.encode_to_vec(), again.encode_to_vec());
    let expected = (Code::FailedPrecondition, "MIGRATION_NOT_FAILED".to_owned());
    assert_eq!(code_and_reason(not_failed), expected);
    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(code_and_reason(reused), expected);
    assert_eq!(migration(&tenants[1]).await.current_version, version);
}

#[tokio::test]
async fn a_migration_that_fails_on_data_says_so_without_the_data() {
    let _turn = turn().await;
    let tenants = tenants(2).await;
    // Whoever reads its canary, operator or log, ends this program.
    tenants[1].plant().await;
    let cast = "UPDATE contacts.contacts SET company = 'cast', position = display_name";
    execute(&tenants[1], cast).await;

    let version = register(
        "ALTER TABLE contacts.contacts ADD salary bigint;
         UPDATE contacts.contacts SET salary = position::bigint WHERE company = 'cast'",
    )
    .await;
    until(|wave| wave.current + wave.failed == wave.total).await;
    let failed = migration(&tenants[1]).await;
    execute(&tenants[1], "UPDATE contacts.contacts SET position = '1'").await;
    retry(&failed.name, "").await.unwrap();
    until(is_done).await;

    let error = "22P02: invalid input syntax for type bigint: \"…\"";
    assert_eq!(failed.last_error, format!("migration {version}: {error}"));
}

#[tokio::test]
async fn a_wave_in_which_many_fail_stops_and_goes_on_when_they_are_retried() {
    let _turn = turn().await;
    // Older tenants come first: the broken ones before those that are not.
    let tenants = tenants(16).await;
    let broken = &tenants[..6];
    for tenant in broken {
        execute(tenant, "CREATE TABLE contacts.broken ()").await;
    }

    register("CREATE TABLE contacts.broken (id uuid)").await;
    let stopped = until(|wave| wave.stopped && wave.running == 0).await;
    let mend = async |tenant: &Tenant| {
        execute(tenant, "DROP TABLE contacts.broken").await;
        retry(&migration(tenant).await.name, "").await.unwrap();
    };
    mend(&broken[0]).await;
    let going_on = until(|wave| wave.pending + wave.running == 0).await;
    join_all(broken[1..].iter().map(mend)).await;
    until(is_done).await;

    assert_eq!(stopped.failed, 6);
    assert!(stopped.pending > 0, "{stopped:?}");
    assert_eq!((going_on.failed, going_on.stopped), (5, false));
}

#[tokio::test]
async fn two_replicas_share_a_wave_and_run_each_migration_once() {
    let _turn = turn().await;
    let tenants = tenants(24).await;
    let replica = server().replica().await;
    let (watch, most) = watch_sessions();

    register(&marking("wave_shared")).await;
    until(is_done).await;
    watch.abort();
    // As a crash leaves it after the commit and before the registry knows.
    let mut registry = server().superuser("crm_registry").await;
    sqlx::query(
        "UPDATE schema_versions SET version = version - 1, state = 3
         WHERE database_id = ANY($1) AND service = 'contacts'",
    )
    .bind(tenants.iter().map(|tenant| tenant.id).collect::<Vec<_>>())
    .execute(&mut registry)
    .await
    .unwrap();
    until(is_done).await;
    replica.stop().await;

    let most = *most.lock().await;
    assert!((5..=8).contains(&most), "{most} at once");
    assert_eq!(marks(&tenants, "wave_shared").await, [1; 24]);
}

#[tokio::test]
async fn the_platforms_own_schema_is_raised_by_its_owner() {
    let _turn = turn().await;
    let tenant = Tenant::create().await;
    let mut registry = server().superuser("crm_registry").await;

    // As a replica with a newer platform leaves it.
    sqlx::query(
        "INSERT INTO migrations (service, version, description, checksum, sql, create_time)
         SELECT 'platform', max(version) + 1, 'test', sha256($1::bytea), $2, now()
         FROM migrations WHERE service = 'platform'",
    )
    .bind("CREATE TABLE platform.raised ()".as_bytes())
    .bind("CREATE TABLE platform.raised ()")
    .execute(&mut registry)
    .await
    .unwrap();
    let start = Instant::now();
    let name = &tenant.tenant.name;
    while list(name, "service = platform AND state = STATE_CURRENT").await.is_empty() {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let mut database = tenant.database().await;
    let owner = sqlx::query_scalar(
        "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'platform.raised'::regclass",
    );
    let owner: String = owner.fetch_one(&mut database).await.unwrap();
    assert_eq!(owner, "crm_platform_owner");
    let may_connect = sqlx::query_scalar(
        "SELECT has_database_privilege('crm_platform_migrator', current_database(), 'CONNECT')",
    );
    let may_connect: bool = may_connect.fetch_one(&mut database).await.unwrap();
    assert!(!may_connect, "the right to connect lasts for the migration alone");
    create_contact(&tenant).await.unwrap();
    tenant.check_log().await;
    // Tenants can be made again when the template has it, too.
    let behind = "SELECT EXISTS (SELECT FROM clusters WHERE NOT is_current(template_id))";
    while sqlx::query_scalar(behind).fetch_one(&mut registry).await.unwrap() {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_cannot_be_listed_or_retried_is_refused() {
    let _turn = turn().await;
    let tenant = Tenant::create().await;
    let name = format!("{}/migrations/contacts", tenant.tenant.name);
    let (operator, mut client) = client();
    let list = |parent: &str, filter: &str, page_token: &str| {
        operator.request(ListTenantMigrationsRequest {
            parent: parent.to_owned(),
            page_size: 1,
            filter: filter.to_owned(),
            page_token: page_token.to_owned(),
        })
    };

    let slug = format!("tenants/{}", tenant.tenant.slug);
    let by_slug = client.list_tenant_migrations(list(&slug, "", "")).await.unwrap().into_inner();
    assert_eq!(by_slug.tenant_migrations[0].name, name);
    for (parent, filter, page_token, field) in [
        ("", "", "", "parent"),
        ("tenant/x", "", "", "parent"),
        ("tenants/-", "state = FAILED", "", "filter"),
        ("tenants/-", "attempts = 1", "", "filter"),
        ("tenants/-", "", &by_slug.next_page_token, "page_token"),
    ] {
        let outcome = client.list_tenant_migrations(list(parent, filter, page_token)).await;
        assert_eq!(field_faults(outcome)[0].0, field, "{parent} {filter}");
    }
    let missing = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    let unknown = format!("tenants/{}", server().clock.new_id());
    let outcome = client.list_tenant_migrations(list(&unknown, "", "")).await;
    assert_eq!(code_and_reason(outcome), missing);
    for name in [format!("{unknown}/migrations/contacts"), name.replace("contacts", "nothing")] {
        assert_eq!(code_and_reason(retry(&name, "").await), missing, "{name}");
    }
    for name in ["", "tenants/x/migrations/contacts", &tenant.tenant.name, &name.to_uppercase()] {
        assert_eq!(field_faults(retry(name, "").await)[0].0, "name", "{name}");
    }
    // A tenant's administrator is no operator.
    let admin = tenant.admin();
    let denied = client.summarize_migrations(admin.request(SummarizeMigrationsRequest {})).await;
    let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
    assert_eq!(code_and_reason(denied), expected);
}
