//! A second server that takes connections and then hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crm_proto::registry::v1::cluster::State;
use crm_proto::registry::v1::{Cluster, CreateClusterRequest};
use crm_testing::{OtherCluster, PostgresLink, Server, Verdict};

use super::servers::register;
use super::{FIRST, PATIENCE, addition, change, create, set_state, suite, until, update};

/// A cluster, and the way to it.
async fn linked() -> (OtherCluster, PostgresLink) {
    let other = OtherCluster::start().await;
    other.set_up().await;
    let link = PostgresLink::to(other.port()).await;
    (other, link)
}

/// A request to add it by that way.
fn by_link(id: &str, other: &OtherCluster, link: &PostgresLink) -> CreateClusterRequest {
    let mut request = addition(id, other);
    request.cluster.as_mut().unwrap().port = link.port().into();
    request
}

async fn until_counted(count: &AtomicUsize, enough: usize) {
    let start = Instant::now();
    while count.load(Ordering::Relaxed) < enough {
        assert!(start.elapsed() < PATIENCE, "nothing is asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_cluster_that_hangs_at_its_template_keeps_no_registration_waiting() {
    let (server, _turn) = suite().await;
    let (other, link) = linked().await;
    let added = create(server, by_link("hung", &other, &link)).await.unwrap();
    let hung = Arc::new(AtomicUsize::new(0));
    let shared = hung.clone();
    link.judge(move |statement| {
        if !statement.text.contains("CREATE DATABASE") {
            return Verdict::Pass;
        }
        shared.fetch_add(1, Ordering::Relaxed);
        Verdict::Hang
    });

    register(server, "COMMENT ON TABLE contacts.contacts IS 'hung'").await.unwrap();

    until_counted(&hung, 1).await;
    set_state(server, &added.name, State::Draining).await;
}

async fn set_spares(server: &Server, name: &str, spare_target: i32) {
    let spare_target = Some(spare_target);
    let cluster = Cluster { name: name.to_owned(), spare_target, ..Cluster::default() };
    update(server, change(cluster)).await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_hangs_keeps_no_other_waiting_for_spares() {
    const SPARES: i32 = 5;
    let (server, _turn) = suite().await;
    let (other, link) = linked().await;
    let added = create(server, by_link("frozen", &other, &link)).await.unwrap();
    let [asked, making] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let shared = [asked.clone(), making.clone()];
    link.judge(move |statement| {
        for (words, count) in ["SELECT 1", "WHERE datname = $1"].iter().zip(&shared) {
            count.fetch_add(statement.text.contains(words).into(), Ordering::Relaxed);
        }
        Verdict::Hang
    });
    // It is known to be silent when the first question was given up.
    until_counted(&asked, 2).await;
    let mut registry = server.superuser("crm_registry").await;
    sqlx::raw_sql(
        "INSERT INTO databases
             (database_id, cluster, name, purpose, step, template_id, create_time)
         SELECT gen_random_uuid(), cluster, 'left_' || n, 'spare', 'planned', template_id,
             now() - interval '1 hour'
         FROM clusters, generate_series(1, 3) AS n
         WHERE cluster = 'frozen'",
    )
    .execute(&mut registry)
    .await
    .unwrap();
    set_spares(server, &added.name, 3).await;

    set_spares(server, FIRST, SPARES).await;

    until(server, FIRST, |cluster| cluster.spare_count == SPARES).await;
    let planned = "SELECT spares_made FROM clusters WHERE cluster = 'frozen'";
    let planned: i64 = sqlx::query_scalar(planned).fetch_one(&mut registry).await.unwrap();
    assert_eq!((planned, making.load(Ordering::Relaxed)), (0, 0));
    for name in [FIRST, &added.name] {
        set_spares(server, name, 0).await;
    }
    set_state(server, &added.name, State::Draining).await;
    let left = "DELETE FROM databases WHERE name LIKE 'left_%'";
    sqlx::raw_sql(left).execute(&mut registry).await.unwrap();
}
