//! Many calls, many tenants, and sessions that end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{CreateContactRequest, ListContactsRequest};
use crm_testing::{Client, Tenant, reason, server};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{ada, contacts, contacts_call, create, get};

#[tokio::test]
async fn sessions_that_the_server_ended_cost_no_call() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let calls = || (0..10).map(|_| contacts_call(&admin, create(ada())));
    for outcome in join_all(calls()).await {
        outcome.unwrap();
    }
    // As after a failover: every session of the tenant is gone.
    let mut postgres = server().superuser("postgres").await;
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1")
        .bind(&tenant.tenant.database)
        .execute(&mut postgres)
        .await
        .unwrap();
    // Longer ago than a session is trusted without a question.
    tokio::time::sleep(Duration::from_millis(1100)).await;

    for outcome in join_all(calls()).await {
        outcome.unwrap();
    }
    tenant.check_log().await;
}

#[tokio::test]
async fn a_flood_of_one_tenant_is_refused_and_its_neighbour_is_served() {
    let (flooder, neighbour) = tokio::join!(Tenant::create(), Tenant::create());
    let (client, calm) = (flooder.admin(), neighbour.admin());
    for known in [&calm, &client] {
        contacts_call(known, create(ada())).await.unwrap();
    }
    // Every write of the flooder waits for this one.
    let mut database = flooder.database().await;
    let mut held = sqlx::Connection::begin(&mut database).await.unwrap();
    sqlx::query("UPDATE platform.head SET revision = revision").execute(&mut *held).await.unwrap();

    let refusals = Arc::new(AtomicUsize::new(0));
    // Over few connections: one address has not that many.
    let connections: Vec<_> = (0..10).map(|_| contacts(&client)).collect();
    let flood = (0..300).map(|call| {
        let (client, refusals) = (client.clone(), refusals.clone());
        let mut contacts = connections[call % connections.len()].clone();
        async move {
            let outcome = contacts.create_contact(client.request(create(ada()))).await;
            refusals.fetch_add(usize::from(outcome.is_err()), Ordering::Relaxed);
            outcome
        }
    });
    let flood = tokio::spawn(join_all(flood.collect::<Vec<_>>()));
    // The flood has come: however slow the machine is, most of it is refused.
    let until = Instant::now() + Duration::from_secs(60);
    while refusals.load(Ordering::Relaxed) < 150 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for _ in 0..20 {
        contacts_call(&calm, create(ada())).await.unwrap();
    }
    held.rollback().await.unwrap();

    let outcomes = flood.await.unwrap();
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(refused.len() >= 150, "{} refused", refused.len());
    for status in refused {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::ResourceExhausted, "SESSIONS_EXHAUSTED")
        );
    }
    flooder.check_log().await;
}

#[tokio::test]
async fn who_has_had_more_than_its_share_reads_few_large_pages_at_once() {
    let (flooder, neighbour) = tokio::join!(Tenant::create(), Tenant::create());
    // Nobody else calls there.
    let replica = server().replica().await;
    let address = replica.addresses.contacts;
    let at_replica = |client: &Client| ContactServiceClient::new(client.channel(address));
    let (client, calm) = (flooder.admin(), neighbour.admin());
    let list = |client: &Client| {
        let (mut contacts, page_size) = (at_replica(client), 1000);
        let request = client.request(ListContactsRequest { page_size, ..Default::default() });
        async move { contacts.list_contacts(request).await }
    };
    let create_there = |client: &Client, validate_only| {
        let mut contacts = at_replica(client);
        let request = client.request(CreateContactRequest { validate_only, ..create(ada()) });
        async move { contacts.create_contact(request).await }
    };
    // Every page of the flooder takes as long as this, and every write of its
    // neighbour.
    let mut held = Vec::new();
    for (tenant, statement) in [
        (&flooder, "BEGIN; LOCK TABLE contacts.contacts"),
        (&neighbour, "BEGIN; UPDATE platform.head SET revision = revision"),
    ] {
        let mut database = tenant.database().await;
        sqlx::raw_sql(statement).execute(&mut database).await.unwrap();
        held.push(database);
    }

    // Alone, it has what it asks for. Then another is there for a while.
    let pages: Vec<_> = (0..5).map(|_| tokio::spawn(list(&client))).collect();
    wait_for_blocked(&flooder, 5).await;
    let write = tokio::spawn(create_there(&calm, false));
    wait_for_blocked(&neighbour, 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cores = std::thread::available_parallelism().unwrap().get();
    let served = (cores / 2).clamp(5, 10) - 5;
    let mut flood = stream::iter((0..30).map(|_| list(&client))).buffer_unordered(30);
    let refused = flood.by_ref().take(30 - served).collect::<Vec<_>>();
    let (refused, page, small) = tokio::join!(refused, list(&calm), create_there(&client, true));

    page.unwrap();
    small.unwrap();
    for outcome in refused {
        let status = outcome.unwrap_err();
        let refusal = (status.code(), reason(&status));
        assert_eq!(refusal, (Code::ResourceExhausted, "SESSIONS_EXHAUSTED".to_owned()));
    }
    for database in &mut held {
        sqlx::raw_sql("ROLLBACK").execute(database).await.unwrap();
    }
    write.await.unwrap().unwrap();
    while let Some(outcome) = flood.next().await {
        outcome.unwrap();
    }
    for page in pages {
        page.await.unwrap().unwrap();
    }
    replica.stop().await;
    neighbour.check_log().await;
}

/// Waits until so many sessions of a tenant wait for a lock.
async fn wait_for_blocked(tenant: &Tenant, count: i64) {
    let mut postgres = server().superuser("postgres").await;
    let blocked = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = $1 AND wait_event_type = 'Lock'";
    let since = Instant::now();
    while sqlx::query_scalar::<_, i64>(blocked)
        .bind(&tenant.tenant.database)
        .fetch_one(&mut postgres)
        .await
        .unwrap()
        != count
    {
        assert!(since.elapsed() < Duration::from_secs(60), "the calls do not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_vanished_client_loses_no_acknowledged_write_and_leaves_no_session_behind() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let channel = admin.channel(server().addresses.contacts);

    // What a call takes here and now, so that about half of them are cut off.
    let first = Instant::now();
    contacts_call(&admin, create(ada())).await.unwrap();
    let latency = Mutex::new(first.elapsed());
    let calls = (0..600u32).map(|i| {
        let (admin, channel, latency) = (admin.clone(), channel.clone(), &latency);
        async move {
            let mut client = ContactServiceClient::new(channel);
            let call = client.create_contact(admin.request(create(ada())));
            let patience = *latency.lock().unwrap() * 2 * ((i * 7919) % 600) / 600;
            let began = Instant::now();
            let outcome = tokio::time::timeout(patience, call).await;
            let mut latency = latency.lock().unwrap();
            // One that was cut off takes, on average, twice as long.
            let seen = if outcome.is_ok() { began.elapsed() } else { patience * 2 };
            *latency = (*latency * 7 + seen) / 8;
            outcome
        }
    });
    let outcomes: Vec<_> = stream::iter(calls).buffer_unordered(8).collect().await;
    let cut_off = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let answered = outcomes.into_iter().flatten().flatten();
    let acknowledged: Vec<_> = answered.map(|contact| contact.into_inner().name).collect();

    assert!(cut_off > 100 && acknowledged.len() > 100, "{cut_off} {}", acknowledged.len());
    for name in acknowledged {
        contacts(&admin).get_contact(admin.request(get(&name))).await.unwrap();
    }
    let mut database = tenant.database().await;
    let idle: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
    )
    .fetch_one(&mut database)
    .await
    .unwrap();
    assert_eq!(idle, 0);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_small_budget_of_sessions_serves_many_tenants() {
    let tenants = join_all((0..8).map(|_| Tenant::create())).await;
    let replica = server().replica_with_budget(3).await;
    let address = replica.addresses.contacts;
    let databases = tenants.iter().map(|tenant| tenant.tenant.database.clone()).collect();
    let done = CancellationToken::new();
    let watch = tokio::spawn(most_sessions(databases, done.clone()));

    let calls = (0..96).map(|i| {
        let client = tenants[i % tenants.len()].admin();
        let mut contacts = ContactServiceClient::new(client.channel(address));
        async move { contacts.create_contact(client.request(create(ada()))).await }
    });
    // Many more than sessions, and not so many that one waits for its turn in
    // vain where opening a session takes long.
    let answers: Vec<_> = stream::iter(calls).buffer_unordered(24).collect().await;
    for answer in answers {
        answer.unwrap();
    }

    done.cancel();
    let most = watch.await.unwrap();
    assert!((1..=3).contains(&most), "{most} sessions at once");
    replica.stop().await;
    for tenant in &tenants {
        tenant.check_log().await;
    }
}

/// The most sessions that contacts had open in these databases at any look.
async fn most_sessions(databases: Vec<String>, done: CancellationToken) -> i64 {
    let mut postgres = server().superuser("postgres").await;
    let mut most = 0;
    while !done.is_cancelled() {
        let open: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE application_name = 'crm-contacts' AND datname = ANY($1)",
        )
        .bind(&databases)
        .fetch_one(&mut postgres)
        .await
        .unwrap();
        most = most.max(open);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    most
}
