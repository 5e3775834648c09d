//! The registry as a process of its own: its options, and what it does.

mod reconcile;

use std::error::Error;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use chrono::TimeDelta;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use crm_clock::Clock;
use crm_service::{
    Admission, AdmissionOptions, Door, Role, Served, ServerTls, Telemetry, config_option,
    parse_or_exit_usage, pem_file, run, secret_file, serve_process, server_tls,
};
use futures_util::FutureExt as _;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::app::{App, identity};
use crate::cluster::model::is_id;
use crate::config::{Account, ClusterAddress, Config, OPERATOR, PurgeSettings};
use crate::database::wait_for_server;
use crate::seal::MasterKey;

pub use reconcile::{Reclaim, Reconcile};

type Failure = Box<dyn Error + Send + Sync>;

/// The tenant-registry of the CRM, in a process of its own
#[derive(Debug, Parser)]
#[command(name = "tenant-registry", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where it listens, for everyone
    #[arg(
        long,
        env = "CRM_REGISTRY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50051"
    )]
    listen: SocketAddr,
    /// Where it serves leases, for the services alone; anywhere but on this machine's loopback only with certificates
    #[arg(
        long,
        env = "CRM_REGISTRY_INTERNAL_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50071"
    )]
    internal_listen: SocketAddr,
    /// Where metrics and probes are, for whoever runs it; nobody else should come there
    #[arg(
        long,
        env = "CRM_REGISTRY_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50061"
    )]
    admin_listen: SocketAddr,
    /// The host of the PostgreSQL that holds the registry's database, and the first tenants'
    #[arg(long, env = "CRM_DATABASE_HOST", value_name = "HOST", default_value = "127.0.0.1", value_parser = host)]
    database_host: String,
    /// Its port
    #[arg(long, env = "CRM_DATABASE_PORT", value_name = "PORT", default_value_t = 5432,
          value_parser = clap::value_parser!(u16).range(1..))]
    database_port: u16,
    /// Whether connections to it are encrypted, and its certificate verified (PGSSLROOTCERT names the file of the CA)
    #[arg(long, env = "CRM_DATABASE_TLS", value_name = "MODE", default_value = "disabled")]
    database_tls: DatabaseTls,
    /// The file with the password of its role crm_registry
    #[arg(long, env = "CRM_DATABASE_PASSWORD_FILE", value_name = "FILE", value_parser = secret_file)]
    database_password_file: SecretString,
    /// Its id, as in clusters/{cluster}; it never changes
    #[arg(long, env = "CRM_CLUSTER", value_name = "ID", default_value = "local", value_parser = cluster_id)]
    cluster: String,
    /// The file with the key that seals secrets: 32 bytes, base64url without padding
    #[arg(long, env = "CRM_MASTER_KEY_FILE", value_name = "FILE", value_parser = master_key)]
    master_key_file: MasterKey,
    /// The file with the secret of the operator's account
    #[arg(long, env = "CRM_OPERATOR_SECRET_FILE", value_name = "FILE", value_parser = secret_file)]
    operator_secret_file: SecretString,
    /// The file with the secret of the service contacts
    #[arg(long, env = "CRM_CONTACTS_SECRET_FILE", value_name = "FILE", value_parser = secret_file)]
    contacts_secret_file: SecretString,
    /// The file with the secret of the service messaging
    #[arg(long, env = "CRM_MESSAGING_SECRET_FILE", value_name = "FILE", value_parser = secret_file)]
    messaging_secret_file: SecretString,
    /// The most sessions that one process of a service may have with one tenant
    #[arg(long, env = "CRM_SESSION_CAP", value_name = "COUNT", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    session_cap: u32,
    /// How many spare databases the first cluster keeps when it is new
    #[arg(long, env = "CRM_SPARES", value_name = "COUNT", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(0..=1000))]
    spares: u32,
    /// How many databases of deleted tenants are removed for good in a minute in each cluster; 0 removes none
    #[arg(long, env = "CRM_PURGES_PER_MINUTE", value_name = "COUNT", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(0..=600))]
    purges_per_minute: u32,
    /// Where more deleted tenants than this are due to be removed at once, none is
    #[arg(long, env = "CRM_PURGE_LIMIT", value_name = "COUNT", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(0..=100_000))]
    purge_limit: u32,
    /// How many days backups are kept: certificates of deletion say when the last one expires
    #[arg(long, env = "CRM_BACKUP_RETENTION_DAYS", value_name = "DAYS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(0..=36_500))]
    backup_retention_days: u32,
    /// The certificate of the listener for leases
    #[arg(long, env = "CRM_REGISTRY_TLS_CERT_FILE", value_name = "FILE", value_parser = pem_file)]
    tls_cert_file: Option<String>,
    /// The file with its key
    #[arg(long, env = "CRM_REGISTRY_TLS_KEY_FILE", value_name = "FILE", value_parser = secret_file)]
    tls_key_file: Option<SecretString>,
    /// The certificates that those of the services are signed with
    #[arg(long, env = "CRM_REGISTRY_CLIENT_CA_FILE", value_name = "FILE", value_parser = pem_file)]
    client_ca_file: Option<String>,
    #[command(flatten)]
    telemetry: Telemetry,
    #[command(flatten)]
    admission: AdmissionOptions,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Serve until a signal (the default)
    Start,
    /// Print one access token and nothing else: the operator's
    ///
    /// It needs what the registry needs, and no registry that runs. Options stand before `token`.
    Token {
        /// That of an administrator of this tenant instead
        #[arg(long, value_name = "SLUG")]
        tenant: Option<String>,
    },
    /// Show how a cluster and the registry differ on tenants after a restore, and settle it
    ///
    /// Until that is done, no database is given out in that cluster. Nothing is ever dropped. It needs what the registry needs, and no registry that runs. Options stand before `reconcile`.
    Reconcile(Reconcile),
    /// Make a tenant's database that was restored the tenant's again
    ///
    /// It needs what the registry needs, and no registry that runs. Options stand before `reclaim`.
    Reclaim(Reclaim),
}

/// How PostgreSQL is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DatabaseTls {
    /// Without TLS: on a network that nobody else is on.
    Disabled,
    /// With TLS, and a certificate that fits the host.
    VerifyFull,
}

fn master_key(path: &str) -> Result<MasterKey, String> {
    MasterKey::parse(&secret_file(path)?).map_err(|error| error.to_string())
}

/// A name or an address; or the folder of a socket, as PostgreSQL has it.
fn host(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = !text.is_empty() && text.chars().all(fits);
    if is_name || text.starts_with('/') || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("it is neither the name nor the address of a host; the port is CRM_DATABASE_PORT"
        .to_owned())
}

fn cluster_id(text: &str) -> Result<String, String> {
    if is_id(text) {
        return Ok(text.to_owned());
    }
    Err("it is a lower case letter, and then at most 62 of a-z, 0-9 and hyphens".to_owned())
}

/// What a process of the registry does.
struct Process {
    command: Command,
    doors: Vec<Door>,
    admin: Door,
    config: Config,
    telemetry: Telemetry,
    admission: AdmissionOptions,
}

/// The main function of the program.
pub fn main() -> ExitCode {
    let Process { command, doors, admin, config, telemetry, admission } =
        parse_or_exit_usage(Cli::command().arg(config_option()), Cli::check);
    run("tenant-registry", &telemetry, |shutdown| async move {
        match command {
            Command::Start => {
                let admission = Admission::new(admission);
                serve(doors, admin, admission, config, shutdown).await
            }
            Command::Token { tenant } => print_token(&config, tenant.as_deref()).await,
            Command::Reconcile(command) => command.run(&config).await,
            Command::Reclaim(command) => command.run(&config).await,
        }
    })
}

/// Waits for PostgreSQL, and serves until the shutdown.
async fn serve(
    doors: Vec<Door>,
    admin: Door,
    admission: Admission,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let stop = shutdown.clone();
    let start = async move {
        wait_for_server(&config).await?;
        let app = Box::pin(App::start(config, Clock::default())).await?;
        tokio::spawn(async move {
            stop.cancelled().await;
            app.drain.cancel();
        });
        let stacks = vec![(app.public, app.public_health), (app.internal, app.internal_health)];
        Ok(Served { stacks, drain: async {}.boxed() })
    };
    serve_process(doors, admin, admission, "PostgreSQL", start, shutdown).await
}

async fn print_token(config: &Config, tenant: Option<&str>) -> Result<(), Failure> {
    let identity = identity(config, Clock::default()).await?;
    let issued = match tenant {
        Some(slug) => identity.tenant_token(OPERATOR, slug).await?,
        None => identity.account_token(OPERATOR).await?,
    };
    writeln!(std::io::stdout(), "{}", issued.token)?;
    Ok(())
}

impl Cli {
    /// What the options ask for, or how they do not fit together.
    fn check(self) -> Result<Process, Vec<String>> {
        let tls = self.tls()?;
        let door = |name, role, address, option: &str, variable: &str| Door {
            name,
            address,
            setting: format!("{option} ({variable})"),
            role,
            tls: None,
        };
        let public =
            door("tenant-registry", Role::Service, self.listen, "--listen", "CRM_REGISTRY_LISTEN");
        let internal = door(
            "tenant-registry-internal",
            Role::Internal,
            self.internal_listen,
            "--internal-listen",
            "CRM_REGISTRY_INTERNAL_LISTEN",
        );
        let config = Config {
            cluster: ClusterAddress {
                id: self.cluster,
                host: self.database_host,
                port: self.database_port,
                verify_tls: self.database_tls == DatabaseTls::VerifyFull,
            },
            password: self.database_password_file,
            master_key: self.master_key_file,
            accounts: vec![
                Account::operator(self.operator_secret_file),
                Account::service("contacts", self.contacts_secret_file),
                Account::service("messaging", self.messaging_secret_file),
            ],
            session_cap: self.session_cap,
            spares: self.spares,
            purge: PurgeSettings {
                per_minute: self.purges_per_minute,
                limit: self.purge_limit as usize,
                backup_retention: TimeDelta::days(self.backup_retention_days.into()),
            },
        };
        Ok(Process {
            command: self.command.unwrap_or(Command::Start),
            doors: vec![public, Door { tls, ..internal }],
            admin: Door::admin(
                self.admin_listen,
                "--admin-listen (CRM_REGISTRY_ADMIN_LISTEN)".to_owned(),
            ),
            config,
            telemetry: self.telemetry,
            admission: self.admission,
        })
    }

    /// Leases carry passwords: they leave this machine by mutual TLS alone.
    fn tls(&self) -> Result<Option<ServerTls>, Vec<String>> {
        const FILES: &str = "CRM_REGISTRY_TLS_CERT_FILE (--tls-cert-file), \
             CRM_REGISTRY_TLS_KEY_FILE (--tls-key-file) and \
             CRM_REGISTRY_CLIENT_CA_FILE (--client-ca-file)";
        match (&self.tls_cert_file, &self.tls_key_file, &self.client_ca_file) {
            (Some(certificate), Some(key), Some(client_ca)) => {
                let tls = server_tls(certificate, key, client_ca);
                let unusable =
                    |error| vec![format!("{FILES} cannot be used: {}", crm_error::chain(&error))];
                tls.map(Some).map_err(unusable)
            }
            (None, None, None) if self.internal_listen.ip().is_loopback() => Ok(None),
            (None, None, None) => Err(vec![format!(
                "CRM_REGISTRY_INTERNAL_LISTEN (--internal-listen) is not on the loopback of this \
                 machine: leases carry passwords, so that {FILES} are needed"
            )]),
            _ => Err(vec![format!("{FILES} are given together, or not at all")]),
        }
    }
}
