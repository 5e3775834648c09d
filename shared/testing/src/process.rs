//! Programs as an operator starts them: with variables, files and signals.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, process};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::watch::read_log;

/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a process that is asked to stop may take.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// How often a test looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A folder for the files of one test, which goes with it.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Default for Folder {
    fn default() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("crm-process-{}-{number}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Folder {
    /// Writes a file that only its owner reads, and answers where it is.
    pub fn write(&self, name: &str, text: &str) -> String {
        self.write_with_mode(name, text, 0o600)
    }

    /// Writes a file with this mode.
    pub fn write_with_mode(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.0.join(name);
        let mut file = File::options();
        let file = file.create(true).write(true).truncate(true).mode(mode).open(&path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
        path.display().to_string()
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: a failed test has said what matters already.
        let _removed = fs::remove_dir_all(&self.0);
    }
}

/// A command that runs a program with these settings and no others.
pub fn program(path: &str, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(path);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CRM_") {
            command.env_remove(name);
        }
    }
    command.envs(settings.iter().copied()).stdin(Stdio::null());
    command
}

/// A program that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command, with its log in the folder.
    pub fn start(mut command: Command, folder: &Folder) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = folder.path(&format!("{number}.log"));
        command.env("CRM_LOG_FORMAT", "json").stderr(File::create(&log).unwrap());
        Self { child: command.stdout(Stdio::null()).spawn().unwrap(), log }
    }

    /// Where one of its listeners is.
    pub async fn address(&mut self, listener: &str) -> SocketAddr {
        let until = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            let lines = log.lines().filter_map(|line| {
                let (_, rest) = line.split_once("\"message\":\"listening\"")?;
                rest.contains(&format!("\"{listener}\"")).then_some(rest)
            });
            let field = lines.filter_map(|line| line.split_once("\"address\":\"")).next();
            if let Some((_, rest)) = field {
                return rest.split('"').next().unwrap().parse().unwrap();
            }
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {log}");
            assert!(Instant::now() < until, "it does not listen: {log}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until its health is this.
    pub async fn wait_until(&mut self, address: SocketAddr, wanted: ServingStatus) {
        let until = Instant::now() + PATIENCE;
        while health(address).await != wanted {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.log());
            assert!(Instant::now() < until, "it is not {wanted:?}: {}", self.log());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, and waits for its end.
    pub async fn terminate(mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended().await
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop by this signal: it does so in good time, with 0.
    pub async fn stops_at(mut self, signal: &str) {
        let asked = Instant::now();
        self.signal(signal);
        let status = self.ended().await;
        assert!(status.success(), "{status}: {}", self.log());
        assert!(asked.elapsed() < STOPS_WITHIN, "{:?}: {}", asked.elapsed(), self.log());
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it does not end: {}", self.log());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(Path::new(&self.log)).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A test that failed leaves it running.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _killed = self.child.kill();
            let _ended = self.child.wait();
        }
        read_log(&self.log());
    }
}

/// What the server says of itself as a whole.
pub async fn health(address: SocketAddr) -> ServingStatus {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let asked = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    asked.unwrap().into_inner().status()
}

/// What a process says at its admin listener: the status, and the text.
pub async fn ask_admin(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), text.to_owned())
}
