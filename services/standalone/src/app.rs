//! The whole suite in one process, wired: each paragraph is a part, in the
//! order of need. `crm start` and the tests go through it alike.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use crm_auth::{Audience, Verifier};
use crm_clock::Clock;
use crm_service::{
    Admission, AdmissionOptions, DataConfig, Edge, Health, Readiness, Role, Stack, StackBuilder,
    admin, bind, serve,
};
use crm_tenancy::{RegistryEndpoints, TenantSessions};
use crm_tenant_registry as registry;
use crm_tenant_registry::{Account, ClusterAddress, PurgeSettings, scram_verifier};
use futures_util::future::join_all;
use http::HeaderValue;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::data::Secrets;
use crate::password::{UNLOGGED, set_registry_password};

/// The account of whoever holds the data folder.
pub const LOCAL_OPERATOR: &str = registry::OPERATOR;
/// How many sessions one process of a service may hold for one tenant.
const SESSION_CAP: u32 = 10;
/// How many spare databases a cluster keeps.
pub const SPARES: u32 = 4;
/// Contacts and messaging.
const DATA_SERVICES: usize = 2;
/// The registry's own connections, and some for operators.
const OTHER_CONNECTIONS: usize = registry::RESERVED_CONNECTIONS as usize;
/// How long everything may take to stop, but for the registry's last calls.
const DRAIN: Duration = Duration::from_secs(8);
/// How long the registry may take for them in any case.
const REGISTRY_DRAIN: Duration = Duration::from_secs(1);
/// Sets a cluster up; operators run the same file with psql.
#[cfg(not(bug_owner_login))]
pub const CLUSTER_SETUP: &str = include_str!("../../../deploy/postgres/cluster-setup.sql");
/// As it would be if tenants' logins were those of owners.
#[cfg(bug_owner_login)]
pub const CLUSTER_SETUP: &str = concat!(
    include_str!("../../../deploy/postgres/cluster-setup.sql"),
    "DO $bug$ BEGIN EXECUTE replace(
        pg_get_functiondef('crm_cluster.ensure_login'::regproc),
        'format(''crm_%s'', service)', 'format(''crm_%s_owner'', service)'
    ); END $bug$"
);

/// Where each listener is.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The tenant-registry.
    pub registry: SocketAddr,
    /// Contacts.
    pub contacts: SocketAddr,
    /// Messaging.
    pub messaging: SocketAddr,
    /// Leases, for the services alone.
    pub internal: SocketAddr,
    /// The edge.
    pub edge: SocketAddr,
    /// Metrics and probes, for whoever runs the process.
    pub admin: SocketAddr,
}

/// What the suite is told at its start.
#[derive(Clone)]
pub struct Config {
    /// A superuser of the cluster.
    pub superuser: PgConnectOptions,
    /// The installation's secrets.
    pub secrets: Secrets,
    /// The origins that browsers may call the edge from.
    pub edge_origins: Vec<HeaderValue>,
    /// The most database sessions of each data service. It is less where the
    /// cluster takes fewer connections.
    pub session_budget: usize,
    /// How many spare databases the cluster keeps when it is new.
    pub spares: u32,
    /// How deleted tenants are removed for good.
    pub purge: PurgeSettings,
    /// Whom the listeners believe.
    pub admission: AdmissionOptions,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("session_budget", &self.session_budget)
            .field("spares", &self.spares)
            .finish_non_exhaustive()
    }
}

/// The suite, serving.
#[derive(Debug)]
pub struct Suite {
    /// Where each listener is.
    pub addresses: Addresses,
    healths: Vec<Health>,
    sessions: Vec<TenantSessions>,
    /// Edge and data services: they stop first.
    front: JoinSet<std::io::Result<()>>,
    stop_front: CancellationToken,
    /// The registry, which they need to the end, and the admin listener, which
    /// tells of the end.
    back: JoinSet<Result<(), Failure>>,
    stop_back: CancellationToken,
    /// Ends the streams that the registry serves.
    drain_back: CancellationToken,
}

type Failure = Box<dyn Error + Send + Sync>;

/// What the registry is told by the suite.
pub fn registry_config(superuser: &PgConnectOptions, secrets: &Secrets) -> registry::Config {
    registry::Config {
        cluster: ClusterAddress {
            id: "local".to_owned(),
            host: superuser.get_host().to_owned(),
            port: superuser.get_port(),
            verify_tls: false,
        },
        password: secrets.registry.clone(),
        master_key: secrets.master_key.clone(),
        accounts: vec![
            Account::operator(secrets.operator.clone()),
            Account::service(crm_contacts::app::SERVICE.name, secrets.contacts.clone()),
            Account::service(crm_messaging::app::SERVICE.name, secrets.messaging.clone()),
        ],
        session_cap: SESSION_CAP,
        spares: SPARES,
        purge: PurgeSettings::default(),
    }
}

impl Suite {
    /// Starts everything. It serves as long as [`run`](Self::run) says.
    ///
    /// # Errors
    ///
    /// When PostgreSQL does not answer or refuses.
    pub async fn start(
        config: Config,
        listeners: Listeners,
        clock: Clock,
    ) -> Result<Self, Failure> {
        let addresses = listeners.addresses()?;

        // The cluster, and the registry in it.
        let session_budget = set_up_cluster(&config).await?;
        let registry = registry_config(&config.superuser, &config.secrets);
        let registry = registry::Config { spares: config.spares, purge: config.purge, ..registry };
        let registry = registry::App::start(registry, clock.clone()).await?;
        let (mut back, stop_back) = (JoinSet::new(), CancellationToken::new());
        let admission = Admission::new(config.admission.clone());
        let serve_back = |listener, stack: &Stack, role| {
            let serving =
                serve(listener, stack.clone(), role, admission.clone(), stop_back.clone());
            async { Ok(serving.await?) }
        };
        back.spawn(serve_back(listeners.registry, &registry.public, Role::Service));
        back.spawn(serve_back(listeners.internal, &registry.internal, Role::Internal));

        // The data services, which reach the registry as they would anywhere.
        let [contacts, messaging] = data_configs(&config.secrets, &addresses, session_budget);
        let contacts = crm_contacts::app::start(contacts, clock.clone()).await?;
        let messaging = crm_messaging::app::start(messaging, clock.clone()).await?;
        let (mut front, stop_front) = (JoinSet::new(), CancellationToken::new());
        let mut serve_front = |listener, stack: &Stack, role| {
            let (admission, stop) = (admission.clone(), stop_front.clone());
            front.spawn(serve(listener, stack.clone(), role, admission, stop));
        };
        serve_front(listeners.contacts, &contacts.stack, Role::Service);
        serve_front(listeners.messaging, &messaging.stack, Role::Service);

        // The edge: an allow-list over the same stacks.
        let (edge, edge_health) =
            edge(&registry.public, &contacts.stack, &messaging.stack, config.edge_origins, clock)?;
        serve_front(listeners.edge, &edge, Role::Edge);

        // The admin listener, for all parts together.
        let healths = vec![
            registry.public_health,
            registry.internal_health,
            contacts.health,
            messaging.health,
            edge_health,
        ];
        let readiness = readiness(healths.clone());
        back.spawn(admin::serve(listeners.admin, readiness, admission, stop_back.clone()));
        Ok(Self {
            addresses,
            healths,
            sessions: vec![contacts.sessions, messaging.sessions],
            front,
            stop_front,
            back,
            stop_back,
            drain_back: registry.drain,
        })
    }

    /// Says to health checks that everything serves.
    pub fn ready(&self) {
        for health in &self.healths {
            health.set(true);
        }
    }

    /// The health of each part.
    pub fn healths(&self) -> Vec<Health> {
        self.healths.clone()
    }

    /// Serves until the shutdown, then lets calls finish.
    ///
    /// # Errors
    ///
    /// When a listener fails.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Failure> {
        tokio::select! {
            () = shutdown.cancelled() => {}
            Some(ended) = self.front.join_next() => ended??,
            Some(ended) = self.back.join_next() => ended??,
        }
        let asked = Instant::now();
        shutdown.cancel();
        // Health checks fail first, so that nobody sends new calls.
        Health::give_notice(&self.healths).await;
        self.stop_front.cancel();
        while let Some(ended) = self.front.join_next().await {
            ended??;
        }
        join_all(self.sessions.iter().map(TenantSessions::drain)).await;
        self.drain_back.cancel();
        self.stop_back.cancel();
        let stopped = async {
            while let Some(ended) = self.back.join_next().await {
                ended??;
            }
            Ok(())
        };
        let until = (asked + DRAIN).max(Instant::now() + REGISTRY_DRAIN);
        tokio::time::timeout_at(until, stopped).await.unwrap_or(Ok(()))
    }
}

/// The ports, taken.
#[derive(Debug)]
pub struct Listeners {
    registry: TcpListener,
    contacts: TcpListener,
    messaging: TcpListener,
    internal: TcpListener,
    edge: TcpListener,
    admin: TcpListener,
}

impl Listeners {
    /// Takes every port; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// Names the address that is taken, who asks for it, and the setting.
    pub async fn bind(at: &Addresses) -> Result<Self, std::io::Error> {
        const BASE: &str = "--port-base (CRM_PORT_BASE)";
        Ok(Self {
            registry: bind(at.registry, "tenant-registry", BASE).await?,
            contacts: bind(at.contacts, "contacts", BASE).await?,
            messaging: bind(at.messaging, "messaging", BASE).await?,
            internal: bind(at.internal, "tenant-registry (leases)", BASE).await?,
            edge: bind(at.edge, "the edge", "--edge-port (CRM_EDGE_PORT)").await?,
            admin: bind(at.admin, "the admin listener", BASE).await?,
        })
    }

    fn addresses(&self) -> Result<Addresses, std::io::Error> {
        Ok(Addresses {
            registry: self.registry.local_addr()?,
            contacts: self.contacts.local_addr()?,
            messaging: self.messaging.local_addr()?,
            internal: self.internal.local_addr()?,
            edge: self.edge.local_addr()?,
            admin: self.admin.local_addr()?,
        })
    }
}

/// Sets the cluster up, and answers how many sessions each data service may
/// have there.
async fn set_up_cluster(config: &Config) -> Result<usize, Failure> {
    // A verifier is no password, and yet nothing for a log.
    let superuser = config.superuser.clone().disable_statement_logging().options(UNLOGGED);
    let mut session = PgConnection::connect_with(&superuser).await.map_err(|error| {
        let (host, port) = (superuser.get_host(), superuser.get_port());
        format!(
            "PostgreSQL on {host}:{port} cannot be used ({error}); \
             --database-url (CRM_DATABASE_URL) names another"
        )
    })?;
    sqlx::raw_sql(CLUSTER_SETUP).execute(&mut session).await?;
    set_registry_password(&mut session, &scram_verifier(&config.secrets.registry)?).await?;
    let connections: i32 = sqlx::query_scalar(
        "SELECT current_setting('max_connections')::int
             - current_setting('superuser_reserved_connections')::int",
    )
    .fetch_one(&mut session)
    .await?;
    session.close().await?;
    let left = usize::try_from(connections).unwrap_or(0).saturating_sub(OTHER_CONNECTIONS);
    let budget = config.session_budget.min(left / DATA_SERVICES);
    if budget < config.session_budget.min(SESSION_CAP as usize) {
        let needed = OTHER_CONNECTIONS + DATA_SERVICES * SESSION_CAP as usize;
        return Err(format!(
            "PostgreSQL takes {connections} connections; max_connections must allow {needed}"
        )
        .into());
    }
    Ok(budget)
}

/// What contacts and messaging are told.
fn data_configs(
    secrets: &Secrets,
    addresses: &Addresses,
    session_budget: usize,
) -> [DataConfig; 2] {
    let registry = RegistryEndpoints {
        public: format!("http://{}", addresses.registry),
        internal: format!("http://{}", addresses.internal),
        tls: None,
    };
    [(&secrets.contacts, addresses.contacts), (&secrets.messaging, addresses.messaging)].map(
        |(secret, at)| DataConfig {
            instance: at.to_string(),
            registry: registry.clone(),
            secret: secret.clone(),
            session_budget,
        },
    )
}

/// What the admin listener says of all parts.
fn readiness(parts: Vec<Health>) -> impl Fn() -> Readiness + Clone {
    move || Readiness { parts: parts.iter().map(Health::state).collect(), waits_for: None }
}

fn edge(
    registry: &Stack,
    contacts: &Stack,
    messaging: &Stack,
    origins: Vec<HeaderValue>,
    clock: Clock,
) -> Result<(Stack, Health), Failure> {
    let public = [
        ("crm.registry.v1.TenantService", registry),
        ("crm.registry.v1.ClusterService", registry),
        ("crm.registry.v1.MigrationService", registry),
        ("crm.identity.v1.AuthService", registry),
        ("crm.contacts.v1.ContactService", contacts),
        ("crm.changes.v1.ChangeService", messaging),
        ("crm.messaging.v1.ConversationService", messaging),
        ("crm.messaging.v1.MessageService", messaging),
    ];
    // The edge's own methods are public; it verifies nothing for others.
    let nobody = Verifier::new(Audience::Public, clock.clone());
    let names = public.map(|(name, _)| name);
    let (own, health) = StackBuilder::default().listing(names).build("edge", nobody, clock)?;
    let public = public.map(|(name, stack)| (name, stack.clone()));
    Ok((Edge::new(own, public).into_service(origins), health))
}
