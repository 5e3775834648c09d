//! Watchers that vanish without a word.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crm_testing::{Channel, Client, Folder, OtherCluster, Process, ask_admin};
use futures_util::future::join_all;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::stop::watch;
use crate::{registry, service_token};

/// How many watch.
const WATCHERS: usize = 8;
/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a test looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The sum of all lines of a metric that begin so and contain this.
async fn sum(admin: SocketAddr, begin: &str, part: &str) -> usize {
    let (_, metrics) = ask_admin(admin, "/metrics").await;
    let lines = metrics.lines().filter(|line| line.starts_with(begin) && line.contains(part));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// Waits until so many calls are under way, and so many streams were given up.
async fn until(admin: SocketAddr, in_flight: usize, given_up: usize) {
    let limit = Instant::now() + PATIENCE;
    loop {
        let seen = (
            sum(admin, "rpc_server_requests_in_flight{", "").await,
            sum(admin, "rpc_server_duration_seconds_count{", "code=\"CANCELLED\"").await,
        );
        if seen == (in_flight, given_up) {
            return;
        }
        assert!(Instant::now() < limit, "{seen:?}, not {:?}", (in_flight, given_up));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test]
async fn the_stream_of_a_watcher_that_vanishes_ends() {
    let cluster = OtherCluster::start().await;
    cluster.set_up().await;
    let folder = Folder::default();
    let command = registry(&folder, cluster.port(), cluster.password());
    let mut process = Process::start(command, &folder);
    let public = process.address("tenant-registry").await;
    let internal = process.address("tenant-registry-internal").await;
    let admin = process.address("admin").await;
    process.wait_until(public, ServingStatus::Serving).await;
    let secret = std::fs::read_to_string(folder.path("CRM_CONTACTS_SECRET_FILE")).unwrap();
    let token = service_token(public, &secret).await;
    let client = Client::new(&*token);
    let channels: Vec<Channel> = (0..WATCHERS).map(|_| client.channel(internal)).collect();
    let watchers = channels.iter().map(|channel| watch(&token, channel.clone()));
    let mut watchers = join_all(watchers).await;
    until(admin, WATCHERS, 0).await;

    // Some reset their streams, and keep their connections.
    watchers.truncate(WATCHERS / 2);
    until(admin, WATCHERS / 2, WATCHERS / 2).await;
    // The connections of the others end.
    drop((watchers, channels));
    until(admin, 0, WATCHERS).await;

    assert!(process.terminate().await.success());
}
