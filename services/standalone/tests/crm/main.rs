//! The program `crm`, from outside.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod configuration;
#[path = "../installation/mod.rs"]
mod installation;
mod outage;
mod released;
mod stop;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use clap::CommandFactory as _;

use crm_proto::contacts::v1::ListContactsRequest;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::messaging::v1::ListConversationsRequest;
use crm_proto::messaging::v1::conversation_service_client::ConversationServiceClient;
use installation::{Installation, text};
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;
use tonic::{Extensions, Request};

/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

fn postmaster(data: &Path) -> String {
    let pid = fs::read_to_string(data.join("postgres/data/postmaster.pid")).unwrap();
    pid.lines().next().unwrap().to_owned()
}

fn is_alive(pid: &str) -> bool {
    Command::new("kill").args(["-0", pid]).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn it_starts_gives_tokens_stops_at_a_signal_and_finds_its_data_again() {
    let installation = Installation::new("story");
    assert_eq!(installation.output(&["health", "--timeout", "0"]).status.code(), Some(1));
    let no_data = installation.output(&["token"]);
    assert!(text(&no_data.stderr).contains("`crm start` makes it"));

    let mut running = installation.start();
    let printed = running.wait_until_it_serves();
    for listener in ["tenant-registry", "contacts", "messaging", "edge", "grpcurl -plaintext"] {
        assert!(printed.contains(listener), "{printed}");
    }
    assert!(installation.output(&["health"]).status.success());
    let operator = installation.output(&["token"]);
    let tenant = installation.output(&["token", "--tenant", "demo"]);
    for token in [&operator, &tenant] {
        let token = text(&token.stdout);
        assert!(token.trim_end().split('.').count() == 3 && token.lines().count() == 1, "{token}");
    }
    let unknown = installation.output(&["token", "--tenant", "nobody"]);
    assert_eq!((unknown.status.code(), text(&unknown.stdout).as_str()), (Some(1), ""));
    assert!(text(&unknown.stderr).contains("nobody"));

    // What is taken is said: the folder first, then a port.
    let twice = installation.output(&["start"]);
    assert_eq!(twice.status.code(), Some(1));
    assert!(text(&twice.stderr).contains("another crm runs"), "{}", text(&twice.stderr));

    let pid = postmaster(&installation.folder.join("data"));
    // Connections that say nothing keep nobody waiting.
    let silent = [2, 30].map(|offset| {
        TcpStream::connect((Ipv4Addr::LOCALHOST, installation.port_base + offset)).unwrap()
    });
    running.signal("INT");
    assert!(running.wait(PATIENCE).success());
    drop(silent);
    assert!(!is_alive(&pid), "PostgreSQL goes too");

    let mut again = installation.start();
    again.wait_until_it_serves();
    assert!(installation.output(&["token", "--tenant", "demo"]).status.success());
    again.signal("TERM");
    assert!(again.wait(PATIENCE).success());
}

#[test]
fn a_second_signal_aborts_and_takes_postgresql_along() {
    let installation = Installation::new("abort");
    let running = installation.start();
    let ready = Instant::now();
    while !installation.folder.join("data/postgres").exists() {
        assert!(ready.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(10));
    }

    running.signal("INT");
    thread::sleep(Duration::from_millis(600));
    // By now it may have stopped already, which is as well.
    let pid = running.child.id().to_string();
    let _sent = Command::new("kill").args(["-s", "INT", &pid]).stderr(Stdio::null()).status();

    let code = running.wait(PATIENCE).code();
    assert!(matches!(code, Some(0 | 143)), "{code:?}");
    let data = installation.folder.join("data");
    let left = Command::new("pgrep").arg("-f").arg(&data).output().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !text(&Command::new("pgrep").arg("-f").arg(&data).output().unwrap().stdout).is_empty() {
        assert!(Instant::now() < deadline, "left behind: {}", text(&left.stdout));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_start_leaves_nothing_that_stops_the_next() {
    let installation = Installation::new("killed");
    let mut running = installation.start();
    running.wait_until_it_serves();

    running.signal("KILL");
    running.wait(PATIENCE);
    let mut again = installation.start();
    again.wait_until_it_serves();

    assert!(installation.output(&["token", "--tenant", "demo"]).status.success());
    again.signal("TERM");
    assert!(again.wait(PATIENCE).success());
}

#[test]
fn a_seed_is_the_same_each_time_and_a_reset_takes_everything() {
    let installation = Installation::new("seed");
    let mut running = installation.start();
    running.wait_until_it_serves();

    let seeded = installation.output(&["seed", "--contacts", "7"]);
    assert!(seeded.status.success(), "{}", text(&seeded.stderr));
    assert!(text(&seeded.stderr).contains("7 of 7 contacts"), "{}", text(&seeded.stderr));
    let small = sample(&installation);
    // Larger, and then again: what is there stays as it is.
    assert!(installation.output(&["seed", "--contacts", "12"]).status.success());
    let large = sample(&installation);
    assert!(installation.output(&["seed", "--contacts", "12"]).status.success());
    assert_eq!(sample(&installation), large);
    assert_eq!((small.contacts.len(), large.contacts.len()), (7, 12));
    assert_eq!((small.conversations, large.conversations), (9, 15));
    assert!(small.contacts.is_subset(&large.contacts));
    assert!(small.contacts.contains("Grace Hopper <grace.hopper.1@example.com>"), "{small:?}");

    // In use, unconfirmed, elsewhere: nothing is deleted.
    let refused = installation.output(&["reset", "--yes"]);
    assert!(text(&refused.stderr).contains("another crm runs"), "{}", text(&refused.stderr));
    running.signal("TERM");
    assert!(running.wait(PATIENCE).success());
    let refused = installation.output(&["reset"]);
    assert!(text(&refused.stderr).contains("--yes confirms"), "{}", text(&refused.stderr));
    let mut elsewhere = installation.crm(&["reset", "--yes"]);
    let elsewhere = elsewhere.env("CRM_DATABASE_URL", "postgres://crm@127.0.0.1/crm").output();
    assert_eq!(elsewhere.unwrap().status.code(), Some(1));
    let data = installation.folder.join("data");
    assert!(data.join("secrets/master.key").exists());

    assert!(installation.output(&["reset", "--yes"]).status.success());
    assert!(!data.exists());
    let nothing = installation.output(&["reset", "--yes"]);
    assert!(text(&nothing.stderr).contains("`crm start` makes it"));
}

#[derive(Debug, PartialEq, Eq)]
struct Sample {
    contacts: BTreeSet<String>,
    conversations: usize,
    /// Moves with every write.
    revision: i64,
}

/// What the tenant of `crm seed` has.
fn sample(installation: &Installation) -> Sample {
    let token = text(&installation.output(&["token", "--tenant", "sample"]).stdout);
    let bearer = format!("Bearer {}", token.trim_end()).parse().unwrap();
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", bearer);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let at = format!("http://127.0.0.1:{}", installation.edge_port);
        let edge = Endpoint::from_shared(at).unwrap().connect().await.unwrap();
        let list = ListContactsRequest { page_size: 1000, ..ListContactsRequest::default() };
        let list = Request::from_parts(metadata.clone(), Extensions::default(), list);
        let contacts = ContactServiceClient::new(edge.clone()).list_contacts(list).await;
        let contacts = contacts.unwrap().into_inner();
        let list = ListConversationsRequest::default();
        let list = Request::from_parts(metadata, Extensions::default(), list);
        let conversations = ConversationServiceClient::new(edge).list_conversations(list).await;
        let people = contacts.contacts.into_iter();
        Sample {
            contacts: people.map(|who| format!("{} <{}>", who.display_name, who.email)).collect(),
            conversations: conversations.unwrap().into_inner().conversations.len(),
            revision: contacts.revision,
        }
    })
}

#[test]
fn a_taken_port_is_named_with_who_asks_for_it() {
    let installation = Installation::new("port");
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, installation.port_base + 2)).unwrap();

    let output = installation.output(&["start"]);

    let error = text(&output.stderr);
    let address = format!("127.0.0.1:{}", installation.port_base + 2);
    assert_eq!(output.status.code(), Some(1));
    for word in ["contacts", &address, "CRM_PORT_BASE"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_bad_configuration_exits_with_64_and_names_the_setting() {
    let installation = Installation::new("usage");
    let cases: [(&[&str], &str, &str, &str); 7] = [
        (&["start"], "CRM_EDGE_ORIGINS", "*", "--edge-origins"),
        (&["start"], "CRM_PORT_BASE", "many", "--port-base"),
        (&["start"], "CRM_EDGE_PORT", "0", "--edge-port"),
        (&["start"], "CRM_LOG", "=====", "CRM_LOG"),
        (&["start", "--frobnicate"], "CRM_UNUSED", "", "--frobnicate"),
        (&["start"], "CRM_LOG_FORMAT", "xml", "--log-format"),
        (&["start"], "OTEL_EXPORTER_OTLP_ENDPOINT", "http://[", "--otlp-endpoint"),
    ];

    for (arguments, variable, value, named) in cases {
        let output = installation.crm(arguments).env(variable, value).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{variable}: {error}");
        assert!(error.contains(named), "{variable}: {error}");
        assert!(!installation.folder.join("data").exists(), "{variable}");
    }
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    let installation = Installation::new("exposed");
    let secrets = installation.folder.join("data/secrets");
    fs::create_dir_all(&secrets).unwrap();
    let key = secrets.join("master.key");
    fs::write(&key, "x").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();

    let output = installation.output(&["start"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("can be read by others"));
}

#[test]
fn help_teaches_every_subcommand_and_variable() {
    let installation = Installation::new("help");
    let mut help = String::new();

    installation
        .crm(&["--help"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
        .stdout
        .unwrap()
        .read_to_string(&mut help)
        .unwrap();

    for word in [
        "start",
        "health",
        "token",
        "migrate",
        "seed",
        "reset",
        "CRM_PORT_BASE",
        "CRM_EDGE_PORT",
        "CRM_DATA_DIR",
    ] {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
    let processes = [
        crm_tenant_registry::cli::Cli::command(),
        crm_contacts::app::SERVICE.command(),
        crm_messaging::app::SERVICE.command(),
    ];
    let helps: String =
        processes.into_iter().map(|mut command| command.render_help().to_string()).collect();
    let told = format!("{help} {helps} CRM_CONFIG");
    assert_eq!(variables(&told), variables(include_str!("../../../../.env.example")));
    let paper = variables(include_str!("../../../../docs/running.md"));
    let (missing, unknown) = (&variables(&help) - &paper, &paper - &variables(&told));
    assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}

/// The variables that a text names.
fn variables(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_uppercase() && c != '_')
        .filter(|word| word.starts_with("CRM_"))
        .collect()
}
