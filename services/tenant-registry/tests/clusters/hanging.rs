//! A second server that takes connections and then hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crm_proto::registry::v1::CreateClusterRequest;
use crm_proto::registry::v1::cluster::State;
use crm_testing::{OtherCluster, PostgresLink, Statement, Verdict};

use super::servers::register;
use super::{addition, create, set_state, suite};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Hangs at the statements that fit, and counts them.
fn hang(
    link: &PostgresLink,
    fits: impl Fn(&Statement) -> bool + Send + 'static,
) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let shared = count.clone();
    link.judge(move |statement| {
        if !fits(statement) {
            return Verdict::Pass;
        }
        shared.fetch_add(1, Ordering::Relaxed);
        Verdict::Hang
    });
    count
}

async fn until_more(count: &AtomicUsize, than: usize) {
    let start = Instant::now();
    while count.load(Ordering::Relaxed) <= than {
        assert!(start.elapsed() < PATIENCE, "nothing is asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_cluster_that_hangs_at_its_template_keeps_no_registration_waiting() {
    let (server, _turn) = suite().await;
    let (other, link) = linked().await;
    let added = create(server, by_link("hung", &other, &link)).await.unwrap();
    let hung = hang(&link, |statement| statement.text.contains("CREATE DATABASE"));

    register(server, "COMMENT ON TABLE contacts.contacts IS 'hung'").await.unwrap();

    until_more(&hung, 0).await;
    set_state(server, &added.name, State::Draining).await;
}
