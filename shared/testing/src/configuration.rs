//! What every program does with a configuration that it cannot use. The cases
//! come from `.env.example`: a variable without one fails.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::Folder;

/// Every variable, with its default.
const EXAMPLE: &str = include_str!("../../../.env.example");
/// What nobody may read in anything that a program says.
const SECRET: &str = "never-to-be-seen";
/// A port where somebody listens is not waited for; one that is free soon is,
/// for 70 seconds.
const REFUSES_WITHIN: Duration = Duration::from_secs(20);

/// A program as it is started, but for one setting.
#[derive(Debug)]
pub struct Configuration<C> {
    /// The command, with settings that are right. Every listener is on a free
    /// port.
    pub command: C,
    /// Where its files are.
    pub folder: Folder,
}

impl<C: Fn() -> Command> Configuration<C> {
    /// Every wrong value is named with its variable: each by itself, and all at
    /// once. Nothing was tried before: the ports are not free.
    pub fn refuses_wrong_values(&self) {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let held = held.local_addr().unwrap().to_string();
        let variables = self.variables();
        for variable in &variables {
            let mut command = (self.command)();
            for listen in variables.iter().filter(|variable| variable.ends_with("_LISTEN")) {
                command.env(listen, &held);
            }
            let words = refused(command.env(variable, wrong_value(variable)));
            assert!(words.contains(variable), "{variable} is not in\n{words}");
            assert_eq!(words.lines().count(), 1, "{variable}: {words}");
        }
        let mut command = (self.command)();
        command.envs(variables.iter().map(|variable| (variable, wrong_value(variable))));
        let words = refused(&mut command);
        for variable in &variables {
            let named = |line: &str| line.contains(&format!(": {variable} (--"));
            assert!(words.lines().any(named), "{variable} is not in\n{words}");
        }
        assert_eq!(words.lines().count(), variables.len(), "{words}");
    }

    /// A secret's file is there, has something in it, and is its owner's alone.
    /// Nothing of it is ever said.
    pub fn refuses_bad_secret_files(&self) {
        let empty = self.folder.write("empty", "");
        let blank = self.folder.write("blank", " \n");
        let absent = self.folder.path("absent").display().to_string();
        let exposed = self.folder.write_with_mode("exposed", SECRET, 0o640);
        let public = self.folder.write_with_mode("public", SECRET, 0o604);
        let secrets = self.variables().into_iter().filter(|variable| holds_a_secret(variable));
        let secrets: Vec<_> = secrets.collect();
        assert!(!secrets.is_empty());
        for variable in secrets {
            for (file, named) in [
                (&empty, "it is empty"),
                (&blank, "it is empty"),
                (&absent, "No such file"),
                (&exposed, "it can be read by others"),
                (&public, "it can be read by others"),
            ] {
                let words = refused((self.command)().env(variable, file));
                assert!(words.contains(variable) && words.contains(named), "{variable}: {words}");
            }
        }
    }

    /// A key of the file that is no option is named, and so are all.
    pub fn refuses_unknown_keys(&self) {
        let file = "log = \"info\"\nfrobnicate = 1\nlisten-to = \"all\"\n";
        let file = self.folder.write("unknown.toml", file);

        let words = refused((self.command)().env("CRM_CONFIG", file));

        for key in ["frobnicate", "listen-to"] {
            assert!(words.contains(&format!("{key} in the file of CRM_CONFIG")), "{words}");
        }
        assert_eq!(words.lines().count(), 2, "{words}");
    }

    /// Where somebody listens already, one line says so at once, with the option
    /// that names another address.
    pub fn refuses_taken_ports(&self) {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let held = held.local_addr().unwrap().to_string();
        let listens = self.variables().into_iter().filter(|name| name.ends_with("_LISTEN"));
        for variable in listens {
            let asked = Instant::now();
            let mut command = (self.command)();
            let output = command.env(variable, &held).env("CRM_LOG", "error").output().unwrap();

            let name = Path::new(command.get_program()).file_name().unwrap().to_string_lossy();
            let words = String::from_utf8(output.stderr).unwrap();
            assert!(words.starts_with(&format!("{name}: ")), "{name}: {words}");
            assert_eq!(output.status.code(), Some(1), "{words}");
            assert_eq!(words.lines().count(), 1, "{words}");
            assert!(words.contains(&held) && words.contains(variable), "{variable}: {words}");
            assert!(asked.elapsed() < REFUSES_WITHIN, "{:?}: {words}", asked.elapsed());
        }
    }

    /// The variables of `.env.example` that the program's help has.
    fn variables(&self) -> Vec<&'static str> {
        let help = (self.command)().arg("--help").output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let all = EXAMPLE.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix('#').unwrap_or(line).split_once('=')?;
            let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
            (!name.is_empty() && name.chars().all(is_name)).then_some(name)
        });
        let own = |name: &&str| {
            help.contains(&format!("[env: {name}=")) || help.contains(&format!("[env: {name}]"))
        };
        let variables: Vec<_> = all.filter(own).collect();
        assert!(variables.len() > 5, "{variables:?}\n{help}");
        variables
    }
}

/// The tests of a [`Configuration`] that every service has: the function makes
/// the program's.
#[macro_export]
macro_rules! configuration_tests {
    ($configuration:path) => {
        #[test]
        fn every_wrong_value_is_named_with_its_variable_before_anything_begins() {
            $configuration().refuses_wrong_values();
        }

        #[test]
        fn a_secret_file_that_cannot_be_used_is_named() {
            $configuration().refuses_bad_secret_files();
        }

        #[test]
        fn a_key_that_is_no_option_is_named() {
            $configuration().refuses_unknown_keys();
        }

        #[test]
        fn a_taken_port_is_named_with_the_option_that_asks_for_it() {
            $configuration().refuses_taken_ports();
        }
    };
}

fn holds_a_secret(variable: &str) -> bool {
    ["_SECRET_FILE", "_PASSWORD_FILE", "_KEY_FILE"].iter().any(|end| variable.ends_with(end))
}

/// What no program can do with this variable.
fn wrong_value(variable: &str) -> &'static str {
    match variable {
        "CRM_DATA_DIR" => "/dev/null/data",
        "CRM_POSTGRES_BIN" => "/nowhere",
        "CRM_DATABASE_URL" => "mysql://root:never-to-be-seen@127.0.0.1/crm",
        "CRM_EDGE_ORIGINS" => "*",
        "CRM_EDGE_PORT" => "0",
        "CRM_LOG" => "=====",
        "CRM_LOG_FORMAT" => "xml",
        "CRM_PORT_BASE" => "many",
        "CRM_CLUSTER" => "No Cluster",
        "CRM_DATABASE_HOST" => "localhost:5432",
        "CRM_DATABASE_PORT" => "65536",
        "CRM_DATABASE_TLS" => "perhaps",
        "CRM_REGISTRY_ENDPOINT" => "ftp://registry",
        "CRM_SESSION_CAP" => "0",
        "CRM_SPARES" | "CRM_PURGES_PER_MINUTE" | "CRM_PURGE_LIMIT" => "-1",
        "CRM_BACKUP_RETENTION_DAYS" => "a month",
        "CRM_TRUSTED_PROXIES" => "localhost",
        "OTEL_EXPORTER_OTLP_ENDPOINT" => "http://[",
        "CRM_CONFIG" => "/nowhere/crm.toml",
        _ if variable.ends_with("_FILE") => "/nowhere/file",
        _ if variable.ends_with("_LISTEN") => "nowhere",
        _ if variable.ends_with("_SESSION_BUDGET") => "0",
        _ => panic!("{variable} of .env.example has no wrong value here"),
    }
}

/// What a program says that exits with 64.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{words}");
    assert!(!words.contains(SECRET), "{words}");
    words
}
