//! The command line. Every option has a variable; the option wins.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use crm_service::{AdmissionOptions, Telemetry, parse_or_exit_usage, run};
use crm_tenant_registry::cli::{Reclaim, Reconcile};
use http::HeaderValue;
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use tokio_util::sync::CancellationToken;

use crate::app::Addresses;
use crate::postgres::bin_dir;
use crate::{health, migrate, reset, seed, start, token};

/// A multi-tenant CRM backend: all services in one process
#[derive(Debug, Parser)]
#[command(name = "crm", version, args_conflicts_with_subcommands = false)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    telemetry: Telemetry,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Start PostgreSQL and every service, until Ctrl-C (the default)
    Start,
    /// Wait until everything serves; exit with 0 then, and with 1 if it does not
    Health {
        /// How long to wait, in seconds; 0 looks once
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    /// Print one access token and nothing else: the local operator's
    Token {
        /// That of an administrator of this tenant instead
        #[arg(long, value_name = "SLUG")]
        tenant: Option<String>,
    },
    /// Show how the schemas of tenants are raised, or retry what failed
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Make a sample tenant with contacts, conversations and messages: the same each time
    ///
    /// What is there already is left alone: a run that was cut off is finished by the next.
    Seed {
        /// The tenant, which is made where there is none
        #[arg(long, value_name = "SLUG", default_value = "sample")]
        tenant: String,
        /// How many contacts it gets; some 2.5 messages come with each
        #[arg(long, value_name = "COUNT", default_value_t = 100,
              value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        contacts: u32,
    },
    /// Show how the cluster and the registry differ on tenants after a restore, and settle it
    Reconcile(Reconcile),
    /// Make a tenant's database that was restored the tenant's again
    Reclaim(Reclaim),
    /// Delete the data folder with all tenants and all keys; nothing may run with it
    Reset {
        /// Do it without a question
        #[arg(long)]
        yes: bool,
    },
}

/// What every subcommand may be told.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The port that others follow from: registry +1, contacts +2, messaging +3, admin +10, PostgreSQL +20, leases +21
    #[arg(long, env = "CRM_PORT_BASE", value_name = "PORT", default_value_t = 50050, global = true,
          value_parser = clap::value_parser!(u16).range(1024..=65_500))]
    pub port_base: u16,
    /// The port of the edge, which browsers use
    #[arg(long, env = "CRM_EDGE_PORT", value_name = "PORT", default_value_t = 8080, global = true,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub edge_port: u16,
    /// The folder for the database and its keys
    #[arg(long, env = "CRM_DATA_DIR", value_name = "DIR", default_value = ".crm", global = true,
          value_parser = data_dir)]
    pub data_dir: PathBuf,
    /// The folder of PostgreSQL's programs; by default they are looked for
    #[arg(long, env = "CRM_POSTGRES_BIN", value_name = "DIR", global = true,
          value_parser = bin_dir)]
    pub postgres_bin: Option<PathBuf>,
    /// A PostgreSQL to use instead of a private one: the URL of a superuser
    #[arg(
        long,
        env = "CRM_DATABASE_URL",
        value_name = "URL",
        global = true,
        hide_env_values = true,
        value_parser = database_url
    )]
    pub database_url: Option<SecretString>,
    /// The most database sessions of each data service; fewer where PostgreSQL takes fewer
    #[arg(long, env = "CRM_SESSION_BUDGET", value_name = "COUNT", default_value_t = 60, global = true,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub session_budget: u16,
    /// The origins that browsers may call the edge from
    #[arg(
        long,
        env = "CRM_EDGE_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ',',
        global = true,
        value_parser = origin,
        default_value = "http://localhost:5173,http://127.0.0.1:5173"
    )]
    pub edge_origins: Vec<HeaderValue>,
    /// Whom the listeners believe.
    #[command(flatten)]
    pub admission: AdmissionOptions,
}

/// A folder, or a place where one can be made.
fn data_dir(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let nearest = path.ancestors().find(|path| path.exists());
    if text.is_empty() || nearest.is_some_and(|nearest| !nearest.is_dir()) {
        return Err("it is no folder, and none can be made there".to_owned());
    }
    Ok(path)
}

/// The superuser's URL. The words of its mistakes have nothing of it.
fn database_url(text: &str) -> Result<SecretString, String> {
    let is_postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
    if !is_postgres || text.parse::<PgConnectOptions>().is_err() {
        return Err("it is no PostgreSQL URL".to_owned());
    }
    Ok(text.to_owned().into())
}

/// An exact origin (RFC 6454): a wildcard would let any page act for its
/// visitors.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let exact = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ']));
    match HeaderValue::from_str(text) {
        Ok(value) if exact => Ok(value),
        _ => Err("an origin is http:// or https://, a host, and perhaps a port".to_owned()),
    }
}

impl Options {
    /// The address of each listener.
    pub fn addresses(&self) -> Addresses {
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Addresses {
            registry: at(self.port_base + 1),
            contacts: at(self.port_base + 2),
            messaging: at(self.port_base + 3),
            internal: at(self.port_base + 21),
            edge: at(self.edge_port),
            admin: at(self.port_base + 10),
        }
    }

    /// The port of the private PostgreSQL.
    pub fn postgres_port(&self) -> u16 {
        self.port_base + 20
    }
}

impl Cli {
    /// Reads the command line; a mistake in it ends the process with 64.
    pub fn parse_or_exit_usage() -> Self {
        parse_or_exit_usage(Self::command(), Ok::<Self, _>)
    }

    /// Does what the command line says.
    pub fn run(self) -> ExitCode {
        let options = self.options;
        run("crm", &self.telemetry, |shutdown| async move {
            match self.command.unwrap_or(Command::Start) {
                Command::Start => start::start(options, shutdown).await,
                Command::Health { timeout } => {
                    health::wait(&options.addresses(), Duration::from_secs(timeout)).await
                }
                Command::Token { tenant } => token::print(options, tenant.as_deref()).await,
                Command::Migrate(command) => {
                    stop_at(shutdown, migrate::run(options, command)).await
                }
                Command::Seed { tenant, contacts } => {
                    stop_at(shutdown, seed::seed(options, &tenant, contacts)).await
                }
                Command::Reconcile(command) => command.run(&token::registry(&options)?).await,
                Command::Reclaim(command) => command.run(&token::registry(&options)?).await,
                Command::Reset { yes } => reset::reset(options, yes).await,
            }
        })
    }
}

/// Does long work until it is done, or a signal asks to stop.
async fn stop_at<E>(
    shutdown: CancellationToken,
    work: impl Future<Output = Result<(), E>>,
) -> Result<(), E>
where
    E: From<&'static str>,
{
    tokio::select! {
        done = work => done,
        () = shutdown.cancelled() => Err("it was stopped; the same call goes on where it was".into()),
    }
}
