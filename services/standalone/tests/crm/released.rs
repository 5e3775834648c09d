//! What earlier versions left behind is taken up by this one: see `.ci/release`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crm_auth::{TENANT_ADMIN, TenantClaims};
use crm_clock::Clock;
use crm_proto::contacts::v1 as contacts;
use crm_proto::messaging::v1 as messaging;
use crm_proto::registry::v1 as registry;
use crm_standalone::app::{LOCAL_OPERATOR, registry_config};
use crm_standalone::data::DataDir;
use crm_standalone::postgres::{Options, PrivatePostgres};
use crm_tenant_registry::app;
use crm_tenant_registry::identity::Identity;
use crm_testing::{Raw, faults_of_log, reason};
use flate2::read::GzDecoder;
use prost::Message;
use prost::bytes::Bytes;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use crate::PATIENCE;
use crate::installation::{Installation, text};

const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/released");
const CREATE_TENANT: &str = "crm.registry.v1.TenantService/CreateTenant";
const RESUME_TENANT: &str = "crm.registry.v1.TenantService/ResumeTenant";
const UNDELETE_TENANT: &str = "crm.registry.v1.TenantService/UndeleteTenant";
const CHECK_CLUSTERS: &str = "crm.registry.v1.ClusterService/CheckClusters";
const CREATE_CONTACT: &str = "crm.contacts.v1.ContactService/CreateContact";
const CREATE_MESSAGE: &str = "crm.messaging.v1.MessageService/CreateMessage";
/// What goes by since a release was made does not count.
const PRESENT: [(&str, &str); 2] = [
    (
        "crm_registry",
        "UPDATE requests SET expire_time = now() + interval '1 day';
         UPDATE tenants SET purge_time = now() + interval '30 days' WHERE purge_time IS NOT NULL",
    ),
    ("tenant_%", "UPDATE platform.requests SET expire_time = now() + interval '1 day'"),
];

/// What a version left behind: its secrets, and what it was asked and
/// answered.
#[derive(Deserialize)]
struct Release {
    secrets: BTreeMap<String, String>,
    calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    /// The tenant that called; the operator did where there is none.
    tenant: Option<String>,
    method: String,
    request: String,
    answer: String,
}

/// An installation of this version that was another's.
struct Upgraded<'a> {
    installation: &'a Installation,
    superuser: PgConnectOptions,
    registry: PgPool,
    identity: Identity,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_release_left_behind_is_served_as_it_was() {
    let mut releases: Vec<i32> = fs::read_dir(RELEASED)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    releases.sort_unstable();

    let mut newest = 0;
    for release in &releases {
        newest = upgrade(&Path::new(RELEASED).join(release.to_string())).await;
    }

    // Each version of the platform has one, but for that which is not released.
    let expected: Vec<i32> = (2..=newest).collect();
    assert!(expected.starts_with(&releases), "{releases:?} of {expected:?}: see .ci/release");
    assert!(releases.len() + 1 >= expected.len(), "{releases:?} of {expected:?}: see .ci/release");
}

/// Starts this version on what another left behind, and answers the version
/// that the platform's schema has then.
async fn upgrade(folder: &Path) -> i32 {
    let release: Release = serde_json::from_str(&unpack(&folder.join("release.json.gz"))).unwrap();
    let installation = Installation::new("released");
    restore(&installation, &release, &unpack(&folder.join("cluster.sql.gz"))).await;
    let mut running = installation.start();
    running.wait_until_it_serves();
    let upgraded = Upgraded::new(&installation).await;

    // Every schema becomes the newest, and the cluster is as it should be.
    let watched = installation.output(&["migrate", "status", "--watch"]);
    assert!(watched.status.success(), "{}", text(&watched.stdout));
    upgraded.check_cluster().await;

    // Who was out of reach still is; the others repeat and read what they did.
    for call in &release.calls {
        match call.tenant.as_deref() {
            Some("paused") => upgraded.refuse(call, "TENANT_SUSPENDED").await,
            Some("gone") => upgraded.refuse(call, "TENANT_DELETED").await,
            Some(_) | None => upgraded.repeat(call).await,
        }
    }

    // They come back with all that they had.
    let name = || "tenants/paused".to_owned();
    let resume = registry::ResumeTenantRequest { name: name(), ..Default::default() };
    upgraded.call::<_, registry::Tenant>(None, RESUME_TENANT, resume).await;
    let name = || "tenants/gone".to_owned();
    let undelete = registry::UndeleteTenantRequest { name: name(), ..Default::default() };
    upgraded.call::<_, registry::Tenant>(None, UNDELETE_TENANT, undelete).await;
    for call in release.calls.iter().filter(|call| call.tenant.is_some()) {
        upgraded.repeat(call).await;
    }

    // There is room for more: of the old ones, and of one that is new.
    let tenant = registry::Tenant { display_name: "Newcomer".to_owned(), ..Default::default() };
    let tenant = registry::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
    let tenant: registry::Tenant = upgraded.call(None, CREATE_TENANT, tenant).await;
    for slug in ["demo", "acme", "paused", "gone", &tenant.slug] {
        upgraded.write(slug).await;
    }
    for database in upgraded.databases("tenant_%").await {
        let faults = faults_of_log(&mut upgraded.connect(&database).await).await.unwrap();
        assert!(faults.is_empty(), "{database}: {faults:?}");
    }
    upgraded.check_cluster().await;
    let newest = sqlx::query_scalar("SELECT max(version) FROM platform.schema_migrations")
        .fetch_one(&mut upgraded.connect(&tenant.database).await)
        .await
        .unwrap();
    running.signal("TERM");
    assert!(running.wait(PATIENCE).success());
    newest
}

/// Makes the data folder again that was left behind.
async fn restore(installation: &Installation, release: &Release, cluster: &str) {
    let data = DataDir::create(&installation.folder.join("data")).unwrap();
    for (name, secret) in &release.secrets {
        let path = installation.folder.join("data/secrets").join(name);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
        writeln!(file.as_mut().unwrap(), "{secret}").unwrap();
    }
    let options = Options {
        data_dir: data.postgres(),
        port: installation.port_base + 20,
        bin_dir: std::env::var_os("CRM_POSTGRES_BIN").map(Into::into),
        superuser_password: data.secrets().unwrap().superuser,
        durable: false,
        max_connections: 20,
    };
    let postgres = PrivatePostgres::start(options, &|_| {}).await.unwrap();
    let superuser = postgres.connect_options();
    // Where it begins, any database will do.
    for part in format!("postgres\n{cluster}").split("\n\\connect ") {
        let (database, statements) = part.split_once('\n').unwrap();
        let database = superuser.clone().database(database);
        let mut session = PgConnection::connect_with(&database).await.unwrap();
        let is_alone = |line: &&str| line.starts_with("CREATE DATABASE");
        let (alone, together): (Vec<_>, Vec<_>) = statements.lines().partition(is_alone);
        for statement in alone.into_iter().chain([together.join("\n").as_str()]) {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.unwrap();
        }
        session.close().await.unwrap();
    }
    for (databases, statement) in PRESENT {
        for database in names(&superuser, databases).await {
            let database = superuser.clone().database(&database);
            let mut session = PgConnection::connect_with(&database).await.unwrap();
            sqlx::raw_sql(statement).execute(&mut session).await.unwrap();
            session.close().await.unwrap();
        }
    }
    postgres.stop().await.unwrap();
}

impl<'a> Upgraded<'a> {
    async fn new(installation: &'a Installation) -> Self {
        let secrets = DataDir::open(&installation.folder.join("data")).unwrap().secrets().unwrap();
        let superuser = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(installation.port_base + 20)
            .username("postgres")
            .password(secrets.superuser.expose_secret());
        let registry = PgPool::connect_lazy_with(superuser.clone().database("crm_registry"));
        let config = registry_config(&superuser, &secrets);
        let identity = app::identity(&config, Clock::default()).await.unwrap();
        Self { installation, superuser, registry, identity }
    }

    /// A call is answered as it was, to the byte.
    async fn repeat(&self, call: &Call) {
        let answer = self.send(call).await.unwrap();
        let words = format!("{} of {:?}", call.method, call.tenant);
        assert_eq!(answer, STANDARD.decode(&call.answer).unwrap(), "{words}");
    }

    async fn refuse(&self, call: &Call, expected: &str) {
        assert_eq!(reason(&self.send(call).await.unwrap_err()), expected, "{}", call.method);
    }

    async fn send(&self, call: &Call) -> Result<Bytes, Status> {
        let request = STANDARD.decode(&call.request).unwrap();
        self.raw(call.tenant.as_deref(), &call.method, request.into()).await
    }

    async fn call<Q: Message, A: Message + Default>(
        &self,
        tenant: Option<&str>,
        method: &str,
        request: Q,
    ) -> A {
        let answer = self.raw(tenant, method, request.encode_to_vec().into()).await;
        A::decode(answer.unwrap()).unwrap()
    }

    async fn raw(
        &self,
        tenant: Option<&str>,
        method: &str,
        request: Bytes,
    ) -> Result<Bytes, Status> {
        let offset = match method.split('.').nth(1).unwrap() {
            "registry" => 1,
            "contacts" => 2,
            _ => 3,
        };
        let address = format!("http://127.0.0.1:{}", self.installation.port_base + offset);
        let channel = Endpoint::from_shared(address).unwrap().connect_lazy();
        let mut request = Request::new(request);
        let bearer = format!("Bearer {}", self.token(tenant).await).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
        client.ready().await.unwrap();
        let path = format!("/{method}").parse().unwrap();
        client.unary(request, path, Raw).await.map(tonic::Response::into_inner)
    }

    /// What whoever holds the keys may issue, whatever state the tenant is in.
    async fn token(&self, tenant: Option<&str>) -> String {
        let Some(slug) = tenant else {
            return self.identity.account_token(LOCAL_OPERATOR).await.unwrap().token;
        };
        let id = sqlx::query_scalar("SELECT tenant_id FROM tenants WHERE slug = $1");
        let tid = id.bind(slug).fetch_one(&self.registry).await.unwrap();
        let claims = TenantClaims { tid, generation: 1, ver: 1 };
        let roles = vec![TENANT_ADMIN.to_owned()];
        self.identity.issue(LOCAL_OPERATOR.to_owned(), roles, Some(claims)).unwrap().token
    }

    /// A contact, and a message in the conversation that comes with it.
    async fn write(&self, slug: &str) {
        let contact = contacts::Contact {
            display_name: format!("New of {slug}"),
            phone: "12345".to_owned(),
            ..Default::default()
        };
        let contact =
            contacts::CreateContactRequest { contact: Some(contact), ..Default::default() };
        let contact: contacts::Contact = self.call(Some(slug), CREATE_CONTACT, contact).await;
        let message = messaging::Message {
            sender_type: messaging::message::SenderType::User.into(),
            content: format!("Welcome to {slug}"),
            ..Default::default()
        };
        let message = messaging::CreateMessageRequest {
            parent: contact.initial_conversation,
            message: Some(message),
            ..Default::default()
        };
        let message: messaging::Message = self.call(Some(slug), CREATE_MESSAGE, message).await;
        assert_eq!(message.revision, contact.revision + 1, "{slug}");
    }

    /// Nothing is out of order, once what goes on is done: templates that nobody
    /// needs any more are removed.
    async fn check_cluster(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let request = registry::CheckClustersRequest {};
            let report: registry::CheckClustersResponse =
                self.call(None, CHECK_CLUSTERS, request).await;
            if report.findings.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{report:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn databases(&self, pattern: &str) -> Vec<String> {
        names(&self.superuser, pattern).await
    }

    async fn connect(&self, database: &str) -> PgConnection {
        PgConnection::connect_with(&self.superuser.clone().database(database)).await.unwrap()
    }
}

async fn names(superuser: &PgConnectOptions, pattern: &str) -> Vec<String> {
    let mut session = PgConnection::connect_with(superuser).await.unwrap();
    sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE datname LIKE $1")
        .bind(pattern)
        .fetch_all(&mut session)
        .await
        .unwrap()
}

fn unpack(path: &Path) -> String {
    let mut unpacked = String::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_string(&mut unpacked).unwrap();
    unpacked
}

/// Tenants have run them: a change would make two kinds of database. The list
/// is as sha256sum writes it.
#[test]
fn released_migrations_are_those_of_the_list() {
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let list = fs::read_to_string(services.join("migrations.sha256")).unwrap();
    let mut listed: Vec<_> = list.lines().map(str::to_owned).collect();
    listed.sort_unstable();

    let mut found = Vec::new();
    let folders = fs::read_dir(services).unwrap().flatten().map(|service| service.path());
    let folders = folders.flat_map(|path| [path.join("migrations"), path.join("platform")]);
    for folder in folders.filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let digest = digest(&SHA256, &fs::read(&path).unwrap());
            let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            let name = path.strip_prefix(services).unwrap().display();
            found.push(format!("{digest}  {name}"));
        }
    }
    found.sort_unstable();
    assert_eq!(found, listed, "what is released is never changed; what is new is listed");
}
