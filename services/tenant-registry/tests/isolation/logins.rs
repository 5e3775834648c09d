//! Every login, in every database.

use std::time::{Duration, Instant};

use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{AcquireLeaseRequest, CreateTenantRequest, Tenant};
use crm_testing::{Client, Server, own_server};
use secrecy::ExposeSecret as _;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::attempts::{Attempts, catalogue};

/// How many databases wait for tenants.
const SPARES: u32 = 2;
const SERVICES: [&str; 2] = ["contacts", "messaging"];
/// The schemas of a tenant's database, each with an owner and a migrator.
const SCHEMAS: [&str; 3] = ["contacts", "messaging", "platform"];
/// A password that the test gives to roles which have none that it knows.
const GIVEN: &str = "given-by-the-test";

/// Whose login it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A service's, in one tenant's database.
    Service(&'static str),
    /// That which migrates a schema.
    Migrator(&'static str),
    Registry,
}

#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) whose: Whose,
    pub(crate) user: String,
    password: String,
    /// The one database that it is for.
    database: String,
}

/// A PostgreSQL with two tenants, spares and templates, and all its logins.
struct Cluster {
    server: Server,
    tenants: Vec<Tenant>,
    logins: Vec<Login>,
}

impl Cluster {
    async fn start() -> Self {
        let server = tokio::task::spawn_blocking(|| own_server(SPARES)).await.unwrap();
        let mut tenants = Vec::new();
        let mut logins = Vec::new();
        for name in ["One", "Two"] {
            let tenant = create(&server, name).await;
            for service in SERVICES {
                logins.push(lease(&server, &tenant, service).await);
            }
            tenants.push(tenant);
        }
        wait_for_spares(&server).await;
        let mut postgres = server.superuser("postgres").await;
        for schema in SCHEMAS {
            let user = format!("crm_{schema}_migrator");
            let statement = format!("ALTER ROLE {user} PASSWORD '{GIVEN}'");
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut postgres).await.unwrap();
            let (whose, password) = (Whose::Migrator(schema), GIVEN.to_owned());
            logins.push(Login { whose, user, password, database: String::new() });
        }
        logins.push(Login {
            whose: Whose::Registry,
            user: "crm_registry".to_owned(),
            password: server.secrets().registry.expose_secret().to_owned(),
            database: String::new(),
        });
        Self { server, tenants, logins }
    }

    async fn names(&self, of: &'static str) -> Vec<String> {
        let mut postgres = self.server.superuser("postgres").await;
        sqlx::query_scalar(of).fetch_all(&mut postgres).await.unwrap()
    }

    async fn open(&self, login: &Login, database: &str) -> Result<PgConnection, sqlx::Error> {
        self.server.login(database, &login.user, &login.password).await
    }
}

async fn create(server: &Server, display_name: &str) -> Tenant {
    let operator = Client::operator(server);
    let tenant = Some(Tenant { display_name: display_name.to_owned(), ..Default::default() });
    let request = CreateTenantRequest { tenant, ..Default::default() };
    let mut client = TenantServiceClient::new(operator.channel(server.addresses.registry));
    client.create_tenant(operator.request(request)).await.unwrap().into_inner()
}

/// The login of a service, as the service gets it.
async fn lease(server: &Server, tenant: &Tenant, service: &'static str) -> Login {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server.identity.issue(format!("services/{service}"), roles, None).unwrap();
    let client = Client::new(issued.token);
    let mut leases = LeaseServiceClient::new(client.channel(server.addresses.internal));
    let request = AcquireLeaseRequest { tenant: tenant.name.clone(), ..Default::default() };
    let lease = leases.acquire_lease(client.request(request)).await.unwrap().into_inner();
    let (user, password, database) = (lease.user, lease.secret, lease.database);
    Login { whose: Whose::Service(service), user, password, database }
}

async fn wait_for_spares(server: &Server) {
    let mut registry = server.superuser("crm_registry").await;
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let ready = "SELECT count(*) FROM databases WHERE purpose = 'spare' AND step = 'ready'";
        let ready: i64 = sqlx::query_scalar(ready).fetch_one(&mut registry).await.unwrap();
        if ready == i64::from(SPARES) {
            return;
        }
        assert!(Instant::now() < until, "there are {ready} spares");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The one cluster of both tests, for one at a time: migrators are let in.
async fn cluster() -> (&'static Cluster, MutexGuard<'static, ()>) {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    (CLUSTER.get_or_init(Cluster::start).await, turn)
}

#[tokio::test]
async fn a_login_opens_its_own_database_and_no_other() {
    let (cluster, _turn) = cluster().await;

    let connections = open_every_database(cluster).await;
    let roles = log_in_as_every_role(cluster).await;

    println!("{connections} connections, {roles} logins with a secret of others");
}

#[tokio::test]
async fn a_login_may_not_touch_what_is_not_its_own() {
    let (cluster, _turn) = cluster().await;
    let before = catalogue(&cluster.server).await;
    let mut attempts = Attempts::new(&cluster.server).await;

    for login in &cluster.logins {
        // A migrator is let in for as long as it migrates: as if it did now.
        let database = match login.whose {
            Whose::Service(_) => &login.database,
            Whose::Migrator(_) | Whose::Registry => &cluster.tenants[0].database,
        };
        let is_migrator = matches!(login.whose, Whose::Migrator(_));
        if is_migrator {
            set_connect(&cluster.server, "GRANT", "TO", login, database).await;
        }
        let mut session = cluster.open(login, database).await.unwrap();
        attempts.make(&mut session, login, database).await;
        session.close().await.unwrap();
        if is_migrator {
            set_connect(&cluster.server, "REVOKE", "FROM", login, database).await;
        }
    }

    let Attempts { refused, allowed, broken, .. } = attempts;
    println!("{refused} statements refused, {allowed} allowed");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert_eq!(catalogue(&cluster.server).await, before, "rights, roles or settings changed");
    assert!(refused >= 4500 && allowed >= 30, "attempts were lost: {refused}, {allowed}");
}

async fn set_connect(server: &Server, verb: &str, to: &str, login: &Login, database: &str) {
    let statement = format!("{verb} CONNECT ON DATABASE {database} {to} {}", login.user);
    let mut postgres = server.superuser("postgres").await;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut postgres).await.unwrap();
}

/// Templates, spares, the registry's, the shared ones, and other tenants'.
async fn open_every_database(cluster: &Cluster) -> usize {
    let databases = cluster.names("SELECT datname::text FROM pg_database ORDER BY 1").await;
    let has = |start: &str| databases.iter().filter(|name| name.starts_with(start)).count();
    assert!(has("tenant_") >= 2 + SPARES as usize && has("crm_template_") >= 1, "{databases:?}");
    let mut tried = 0;
    for login in &cluster.logins {
        for database in &databases {
            let expected = match login.whose {
                Whose::Service(_) => *database == login.database,
                Whose::Migrator(_) => false,
                // It owns the databases of tenants, and what is in none of them.
                Whose::Registry => {
                    ["postgres", "crm_registry"].contains(&database.as_str())
                        || database.starts_with("tenant_")
                }
            };
            let opened = cluster.open(login, database).await;
            assert_eq!(opened.is_ok(), expected, "{} in {database}", login.user);
            tried += 1;
        }
    }
    tried
}

/// Owners and groups have no login; nobody's secret is good for anyone else.
async fn log_in_as_every_role(cluster: &Cluster) -> usize {
    let roles = cluster.names("SELECT rolname::text FROM pg_roles ORDER BY 1").await;
    let mut tried = 0;
    for role in &roles {
        // PostgreSQL's own roles are no more than rights: one secret is enough.
        let secrets = if role.starts_with("pg_") { 1 } else { cluster.logins.len() };
        let others = cluster.logins.iter().filter(|login| login.user != *role);
        for login in others.take(secrets) {
            // Every migrator was given the same.
            let databases = [&login.database, &cluster.tenants[0].database];
            if login.password == GIVEN && role.ends_with("_migrator") {
                continue;
            }
            for database in databases.into_iter().filter(|database| !database.is_empty()) {
                let opened = cluster.server.login(database, role, &login.password).await;
                assert!(opened.is_err(), "{role} in {database} by the secret of {}", login.user);
                tried += 1;
            }
        }
        for password in ["", role.as_str()] {
            let opened = cluster.server.login("postgres", role, password).await;
            assert!(opened.is_err(), "{role} by {password:?}");
            tried += 1;
        }
    }
    tried
}
