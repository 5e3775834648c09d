//! What it does not begin with.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use crm_testing::{Configuration, Folder};

use crate::installation::{Installation, text};

/// A port where somebody listens is not waited for; one that is free soon is,
/// for 70 seconds.
const REFUSES_WITHIN: Duration = Duration::from_secs(20);

#[test]
fn every_wrong_value_is_named_with_its_variable_before_anything_begins() {
    let installation = Installation::new("wrong");
    let command = || -> Command { installation.crm(&["start"]) };

    Configuration { command, folder: Folder::default() }.refuses_wrong_values();

    assert!(!installation.folder.join("data").exists());
}

#[test]
fn every_taken_port_is_named_with_the_option_that_moves_it() {
    let installation = Installation::new("ports");
    for (offset, who) in [
        (1, "tenant-registry"),
        (2, "contacts"),
        (3, "messaging"),
        (10, "the admin listener"),
        (20, "PostgreSQL"),
        (21, "tenant-registry (leases)"),
        (30, "the edge"),
    ] {
        let taken = (Ipv4Addr::LOCALHOST, installation.port_base + offset);
        let _taken = TcpListener::bind(taken).unwrap();
        let asked = Instant::now();

        let output = installation.crm(&["start"]).env("CRM_LOG", "error").output().unwrap();

        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert_eq!(words.lines().count(), 1, "{words}");
        let option = if offset == 30 { "CRM_EDGE_PORT" } else { "CRM_PORT_BASE" };
        for named in [who, option, &format!("127.0.0.1:{}", taken.1)] {
            assert!(words.contains(named), "{named} is not in {words}");
        }
        assert!(asked.elapsed() < REFUSES_WITHIN, "{:?}: {words}", asked.elapsed());
    }
}

#[test]
fn an_empty_secret_is_refused() {
    let installation = Installation::new("empty");
    let secrets = installation.folder.join("data/secrets");
    fs::create_dir_all(&secrets).unwrap();
    for secret in ["operator.secret", "master.key"] {
        let file = secrets.join(secret);
        let folder = Folder::default();
        fs::copy(folder.write("empty", "\n"), &file).unwrap();

        let output = installation.crm(&["start"]).output().unwrap();

        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains(secret) && words.contains("is empty"), "{words}");
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn a_postgresql_that_is_not_there_is_named_without_its_password() {
    let installation = Installation::new("absent");
    let url = "postgres://postgres:never-to-be-seen@127.0.0.1:1/postgres";

    let output = installation
        .crm(&["start"])
        .envs([("CRM_DATABASE_URL", url), ("CRM_LOG", "error")])
        .output()
        .unwrap();

    let words = text(&output.stderr);
    assert_eq!((output.status.code(), words.lines().count()), (Some(1), 1), "{words}");
    assert!(words.contains("CRM_DATABASE_URL") && words.contains("127.0.0.1:1"), "{words}");
    assert!(!words.contains("never-to-be-seen"), "{words}");
}
