//! What it does not begin with.

use std::process::Command;

use crm_testing::{Configuration, Folder, OtherCluster, Process};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{SECRETS, registry, service_token};

fn configuration() -> Configuration<impl Fn() -> Command> {
    let settings = Folder::default();
    let command = move || registry(&settings, 1, "password");
    Configuration { command, folder: Folder::default() }
}

crm_testing::configuration_tests!(configuration);

#[tokio::test]
async fn no_secret_is_in_the_most_talkative_log() {
    let cluster = OtherCluster::start().await;
    cluster.set_up().await;
    let folder = Folder::default();
    let mut command = registry(&folder, cluster.port(), cluster.password());
    command.env("CRM_LOG", "trace");
    let mut process = Process::start(command, &folder);
    let public = process.address("tenant-registry").await;
    process.wait_until(public, ServingStatus::Serving).await;
    let secret = |variable| std::fs::read_to_string(folder.path(variable)).unwrap();

    let token = service_token(public, &secret("CRM_CONTACTS_SECRET_FILE")).await;
    let log = process.log();
    assert!(process.terminate().await.success());

    assert!(log.contains("TRACE"), "it is not talkative");
    let password = cluster.password().to_owned();
    for secret in SECRETS.map(secret).into_iter().chain([password, token]) {
        assert!(!log.contains(secret.trim()), "{}", secret.len());
    }
}
