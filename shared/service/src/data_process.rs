//! A data service as a process of its own.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, Command};
use crm_clock::Clock;
use crm_tenancy::RegistryEndpoints;
use futures_util::FutureExt as _;
use secrecy::SecretString;

use crate::admission::{Admission, AdmissionOptions};
use crate::config::{config_option, parse_or_exit_usage, secret_file};
use crate::data::{DataApp, DataConfig, DataService};
use crate::process::{Door, Served, serve_process};
use crate::run::run;
use crate::server::Role;
use crate::telemetry::Telemetry;
use crate::tls::{client_tls, pem_file};

type Failure = Box<dyn Error + Send + Sync>;

/// What the process of a data service may be told. The variables are
/// CRM_CONTACTS_LISTEN, CRM_MESSAGING_LISTEN and so on, but those that are the
/// same for all data services.
#[derive(Debug, Args)]
struct Options {
    /// Where it listens
    #[arg(long, env = "LISTEN", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where metrics and probes are, for whoever runs it; nobody else should come there
    #[arg(long, env = "ADMIN_LISTEN", value_name = "ADDRESS")]
    admin_listen: SocketAddr,
    /// Where the registry serves leases: http on this machine, https with certificates elsewhere
    #[arg(
        long,
        env = "CRM_REGISTRY_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:50071",
        value_parser = endpoint
    )]
    registry_endpoint: String,
    /// The file with the secret of this service's account, which nobody else may read
    #[arg(long, env = "SECRET_FILE", value_name = "FILE", value_parser = secret_file)]
    secret_file: SecretString,
    /// The most database sessions of this process
    #[arg(long, env = "SESSION_BUDGET", value_name = "COUNT", default_value_t = 60,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    session_budget: u16,
    /// The certificates that the registry's is signed with
    #[arg(long, env = "CRM_REGISTRY_CA_FILE", value_name = "FILE", value_parser = pem_file)]
    registry_ca_file: Option<String>,
    /// The certificate of this process, whose DNS name is that of the service
    #[arg(long, env = "TLS_CERT_FILE", value_name = "FILE", value_parser = pem_file)]
    tls_cert_file: Option<String>,
    /// The file with its key, which nobody else may read
    #[arg(long, env = "TLS_KEY_FILE", value_name = "FILE", value_parser = secret_file)]
    tls_key_file: Option<SecretString>,
    #[command(flatten)]
    telemetry: Telemetry,
    #[command(flatten)]
    admission: AdmissionOptions,
}

/// Where it listens, and whom it believes there.
struct Listening {
    listen: SocketAddr,
    admin: SocketAddr,
    admission: AdmissionOptions,
}

/// The options whose variables carry the service's name.
const OWN: [&str; 6] =
    ["listen", "admin_listen", "secret_file", "session_budget", "tls_cert_file", "tls_key_file"];
/// How far its admin port is from its port, by default.
const ADMIN_OFFSET: u16 = 10;

/// The account's secret is sent there: beyond this machine by TLS alone.
fn endpoint(text: &str) -> Result<String, String> {
    let url: http::Uri = text.parse().map_err(|_| "it is no URL".to_owned())?;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    match (url.scheme_str(), url.path()) {
        (Some("https"), "/") => {}
        (Some("http"), "/") if is_local => {}
        (Some("http"), "/") => return Err("beyond this machine it is https".to_owned()),
        _ => return Err("it is not http:// or https://, a host and a port".to_owned()),
    }
    Ok(text.trim_end_matches('/').to_owned())
}

impl DataService {
    /// The command line of its process.
    pub fn command(&self) -> Command {
        let at = |arg: clap::Arg, port: u16| {
            arg.default_value(format!("127.0.0.1:{port}")).required(false)
        };
        let command = Options::augment_args(Command::new(self.name))
            .version(env!("CARGO_PKG_VERSION"))
            .about(format!("The service {} of the CRM, in a process of its own", self.name))
            .mut_arg("listen", |listen| at(listen, self.port))
            .mut_arg("admin_listen", |listen| at(listen, self.port + ADMIN_OFFSET));
        OWN.into_iter().fold(command, |command, option| {
            let variable = self.variable(option);
            command.mut_arg(option, |arg| arg.env(variable))
        })
    }

    fn variable(&self, option: &str) -> String {
        format!("CRM_{}_{option}", self.name).to_uppercase()
    }

    /// Runs the process to its end: its main function.
    pub fn main<F>(&self, start: impl FnOnce(DataConfig, Clock) -> F) -> ExitCode
    where
        F: Future<Output = Result<DataApp, Failure>>,
    {
        let (Listening { listen, admin, admission }, telemetry, config) =
            parse_or_exit_usage(self.command().arg(config_option()), |options| self.check(options));
        let door = Door {
            name: self.name,
            address: listen,
            setting: format!("--listen ({})", self.variable("listen")),
            role: Role::Service,
            tls: None,
        };
        let setting = format!("--admin-listen ({})", self.variable("admin_listen"));
        let admin = Door::admin(admin, setting);
        run(self.name, &telemetry, |shutdown| {
            let start = async {
                let DataApp { stack, health, sessions } = start(config, Clock::default()).await?;
                let drain = async move { sessions.drain().await }.boxed();
                Ok(Served { stacks: vec![(stack, health)], drain })
            };
            let admission = Admission::new(admission);
            serve_process(vec![door], admin, admission, "tenant-registry", start, shutdown)
        })
    }

    fn check(&self, options: Options) -> Result<(Listening, Telemetry, DataConfig), Vec<String>> {
        let Options { listen, admin_listen, registry_endpoint, telemetry, .. } = options;
        let files = (options.tls_cert_file, options.tls_key_file, options.registry_ca_file);
        let tls = match (registry_endpoint.starts_with("https:"), files) {
            (true, (Some(certificate), Some(key), Some(ca))) => {
                let tls = client_tls(&certificate, &key, &ca);
                Some(tls.map_err(|error| vec![crm_error::chain(&error)])?)
            }
            (false, (None, None, None)) => None,
            _ => {
                let [certificate, key] =
                    ["tls_cert_file", "tls_key_file"].map(|o| self.variable(o));
                return Err(vec![format!(
                    "{certificate}, {key} and CRM_REGISTRY_CA_FILE are given together, with an \
                     https:// CRM_REGISTRY_ENDPOINT (--registry-endpoint), or not at all"
                )]);
            }
        };
        let registry = RegistryEndpoints {
            public: registry_endpoint.clone(),
            internal: registry_endpoint,
            tls,
        };
        let config = DataConfig {
            registry,
            secret: options.secret_file,
            instance: instance(listen),
            session_budget: options.session_budget.into(),
        };
        let listening = Listening { listen, admin: admin_listen, admission: options.admission };
        Ok((listening, telemetry, config))
    }
}

/// The name of this process among those of its service. An address that every
/// machine has does not tell processes apart.
fn instance(listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        let machine = rustix::system::uname();
        return format!("{}:{}", machine.nodename().to_string_lossy(), listen.port());
    }
    listen.to_string()
}
