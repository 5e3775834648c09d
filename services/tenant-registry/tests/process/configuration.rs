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

#[test]
fn every_wrong_value_is_named_with_its_variable_before_anything_begins() {
    configuration().refuses_wrong_values();
}

#[test]
fn a_secret_file_that_cannot_be_used_is_named() {
    configuration().refuses_bad_secret_files();
}

#[test]
fn a_key_that_is_no_option_is_named() {
    configuration().refuses_unknown_keys();
}

#[test]
fn a_taken_port_is_named_with_the_option_that_asks_for_it() {
    configuration().refuses_taken_ports();
}

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
