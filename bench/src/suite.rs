//! The program under measurement: its process, its folder, and its ways in.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::Failure;
use crate::client::Bearer;
use crate::cpu::Processes;

/// How long the program may take to serve, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first port that is tried; below those that systems give out themselves.
const FIRST_PORT: u16 = 21_000;
/// How far the ports of one installation reach: from registry to leases.
const PORTS: u16 = 22;
const REGISTRY: u16 = 1;
const CONTACTS: u16 = 2;
const EDGE: u16 = 9;
const POSTGRES: u16 = 20;
const LEASES: u16 = 21;

/// A program that runs on a folder of its own.
#[derive(Debug)]
pub(crate) struct Suite {
    program: PathBuf,
    folder: PathBuf,
    port_base: u16,
    process: Child,
}

impl Suite {
    /// Starts the program; it does not serve yet.
    pub(crate) fn spawn(program: &Path, log: &str, session_budget: u32) -> Result<Self, Failure> {
        let port_base = free_ports()?;
        let folder = make_folder()?;
        let log_file = File::create(folder.join("crm.log"))?;
        let mut start = command(program, &folder, port_base);
        start.args(["--session-budget", &session_budget.to_string()]);
        start.args(["--log", log, "--log-format", "pretty", "start"]);
        // A Ctrl-C is for this program alone, which then stops the other.
        start.process_group(0).stdout(log_file.try_clone()?).stderr(log_file);
        let process = start.spawn().map_err(|error| {
            // Best effort: the error says what matters.
            let _removed = fs::remove_dir_all(&folder);
            let hint = "build it with `cargo build --release --workspace`, or name it with --crm";
            format!("cannot run {} ({error}): {hint}", program.display())
        })?;
        Ok(Self { program: program.to_owned(), folder, port_base, process })
    }

    /// Waits until every service answers.
    pub(crate) async fn wait_until_serving(&self) -> Result<(), Failure> {
        let mut health = command(&self.program, &self.folder, self.port_base);
        let answer = health.arg("health").output().await?;
        if answer.status.success() {
            return Ok(());
        }
        let log = fs::read_to_string(self.folder.join("crm.log"))?;
        let last = log.lines().last().unwrap_or("it wrote no log");
        Err(format!("{} does not serve: {last}", self.program.display()).into())
    }

    /// The token of the local operator, or of an administrator of a tenant.
    pub(crate) async fn token(&self, tenant: Option<&str>) -> Result<Bearer, Failure> {
        Bearer::new(&self.token_text(tenant).await?)
    }

    /// As [`Suite::token`], for another process.
    pub(crate) async fn token_text(&self, tenant: Option<&str>) -> Result<String, Failure> {
        let mut token = command(&self.program, &self.folder, self.port_base);
        token.arg("token");
        if let Some(slug) = tenant {
            token.args(["--tenant", slug]);
        }
        let answer = token.output().await?;
        if !answer.status.success() {
            let text = String::from_utf8_lossy(&answer.stderr).into_owned();
            return Err(format!("there is no token: {text}").into());
        }
        Ok(String::from_utf8(answer.stdout)?.trim().to_owned())
    }

    /// A secret from the data folder.
    pub(crate) fn secret(&self, name: &str) -> Result<String, Failure> {
        let path = self.folder.join("data/secrets").join(name);
        Ok(fs::read_to_string(path)?.trim().to_owned())
    }

    /// A session of PostgreSQL's superuser.
    pub(crate) async fn superuser(&self, database: &str) -> Result<PgConnection, Failure> {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port_base + POSTGRES)
            .username("postgres")
            .password(&self.secret("postgres.password")?)
            .database(database)
            .ssl_mode(PgSslMode::Disable);
        Ok(PgConnection::connect_with(&options).await?)
    }

    /// Has PostgreSQL write down what is in its memory alone.
    pub(crate) async fn checkpoint(&self) -> Result<(), Failure> {
        let mut session = self.superuser("postgres").await?;
        sqlx::query("CHECKPOINT").execute(&mut session).await?;
        Ok(session.close().await?)
    }

    /// Where tenants are made and tokens issued.
    pub(crate) fn registry(&self) -> SocketAddr {
        self.address(REGISTRY)
    }

    /// Where contacts are made and read.
    pub(crate) fn contacts(&self) -> SocketAddr {
        self.address(CONTACTS)
    }

    /// Where leases are given.
    pub(crate) fn leases(&self) -> SocketAddr {
        self.address(LEASES)
    }

    /// The port of the private PostgreSQL.
    pub(crate) fn postgres_port(&self) -> u16 {
        self.port_base + POSTGRES
    }

    /// The folder of this run.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The processes whose CPU time is read.
    pub(crate) fn processes(&self) -> Result<Processes, Failure> {
        let service = self.process.id().ok_or("the program has ended")?;
        let lock = fs::read_to_string(self.folder.join("data/postgres/data/postmaster.pid"))?;
        let postgres = lock.lines().next().unwrap_or_default().parse()?;
        Ok(Processes { service, postgres })
    }

    /// Stops the program as an operator would, and removes its folder.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let pid = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        timeout(PATIENCE, self.process.wait()).await.map_err(|_| {
            let folder = self.folder.display();
            format!("the program does not stop on SIGTERM; its folder is {folder}")
        })??;
        Ok(fs::remove_dir_all(&self.folder)?)
    }

    fn address(&self, offset: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port_base + offset))
    }
}

/// The program on this folder and these ports, whatever the environment says.
fn command(program: &Path, folder: &Path, port_base: u16) -> Command {
    let mut command = Command::new(program);
    command.env_remove("CRM_DATABASE_URL").stdin(Stdio::null());
    command.arg("--data-dir").arg(folder.join("data"));
    command.arg("--port-base").arg(port_base.to_string());
    command.arg("--edge-port").arg((port_base + EDGE).to_string());
    command
}

/// A new folder that PostgreSQL's user can pass through.
fn make_folder() -> io::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("crm-bench-{}", std::process::id()));
    DirBuilder::new().mode(0o711).create(&folder)?;
    Ok(folder)
}

/// The first of the ports for an installation, all of them free.
fn free_ports() -> Result<u16, Failure> {
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (FIRST_PORT..32_000)
        .step_by(usize::from(PORTS))
        .find(|base| (0..PORTS).all(|offset| is_free(base + offset)))
        .ok_or_else(|| "no 22 free ports in a row".into())
}
