//! The program `crm` with ports and a folder of its own.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

/// An installation of its own: ports and a folder, which goes with it.
pub(crate) struct Installation {
    pub(crate) folder: PathBuf,
    pub(crate) port_base: u16,
    pub(crate) edge_port: u16,
    /// More variables of its environment.
    pub(crate) variables: Vec<(&'static str, String)>,
}

/// An installation that was started.
pub(crate) struct Running {
    pub(crate) child: Child,
    log: PathBuf,
}

impl Installation {
    pub(crate) fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("crm-cli-{}-{name}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let port_base = free_base();
        Self { folder, port_base, edge_port: port_base + 30, variables: Vec::new() }
    }

    pub(crate) fn crm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crm"));
        command
            .args(arguments)
            .env("CRM_PORT_BASE", self.port_base.to_string())
            .env("CRM_EDGE_PORT", self.edge_port.to_string())
            .env("CRM_DATA_DIR", self.folder.join("data"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn start(&self) -> Running {
        let log = self.folder.join("log");
        let child = self
            .crm(&["start"])
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Running { child, log }
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.crm(arguments).output().unwrap()
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Best effort: a failed test has said what matters already.
        let _removed = fs::remove_dir_all(&self.folder);
    }
}

impl Running {
    /// Reads what it prints until it serves.
    pub(crate) fn wait_until_it_serves(&mut self) -> String {
        let mut printed = String::new();
        let mut lines = BufReader::new(self.child.stdout.take().unwrap());
        while !printed.contains("Ctrl-C stops everything") {
            let read = lines.read_line(&mut printed).unwrap();
            assert!(read > 0, "{printed}\n{}", fs::read_to_string(&self.log).unwrap());
        }
        printed
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    pub(crate) fn wait(mut self, patience: Duration) -> ExitStatus {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it did not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM, so that it stops its PostgreSQL, even if the test failed.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal("TERM");
            let _ended = self.child.wait();
        }
        // It is gone where the installation was dropped first.
        crm_testing::read_log(&fs::read_to_string(&self.log).unwrap_or_default());
    }
}

/// A base whose ports are free, and not another test's.
fn free_base() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let start = 20_000 + (process::id() % 200) as u16 * 50;
    std::iter::repeat_with(|| start + NEXT.fetch_add(50, Ordering::Relaxed))
        .take(100)
        .find(|base| [1, 2, 3, 10, 20, 21, 30].iter().all(|offset| free(base + offset)))
        .unwrap()
}

/// What a program printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
