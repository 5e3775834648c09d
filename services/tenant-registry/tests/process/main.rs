//! The program `tenant-registry`, from outside.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod configuration;
mod stop;
mod vanish;

use std::net::SocketAddr;
use std::process::Command;

use crm_proto::registry::v1::cluster::TlsMode;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{AcquireLeaseRequest, GetTenantRequest, RegisterSchemaRequest};
use crm_service::client_tls;
use crm_tenancy::{Migration, RegistryClient, RegistryEndpoints};
use crm_tenant_registry::new_secret;
use crm_testing::{
    Client, Folder, OtherCluster, Process, ask_admin, code_and_reason, health, program,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use secrecy::ExposeSecret as _;
use sqlx::{AssertSqlSafe, PgConnection};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;

const BIN: &str = env!("CARGO_BIN_EXE_tenant-registry");
/// Four secrets that the registry keeps.
const SECRETS: [&str; 4] = [
    "CRM_MASTER_KEY_FILE",
    "CRM_OPERATOR_SECRET_FILE",
    "CRM_CONTACTS_SECRET_FILE",
    "CRM_MESSAGING_SECRET_FILE",
];

/// A registry on free ports, whose PostgreSQL has this port and password.
fn registry(folder: &Folder, port: u16, password: &str) -> Command {
    let mut command = program(
        BIN,
        &[
            ("CRM_REGISTRY_LISTEN", "127.0.0.1:0"),
            ("CRM_REGISTRY_ADMIN_LISTEN", "127.0.0.1:0"),
            ("CRM_REGISTRY_INTERNAL_LISTEN", "127.0.0.1:0"),
            ("CRM_DATABASE_PORT", &port.to_string()),
            ("CRM_DATABASE_PASSWORD_FILE", &folder.write("password", password)),
        ],
    );
    for variable in SECRETS {
        if !folder.path(variable).exists() {
            folder.write(variable, new_secret().unwrap().expose_secret());
        }
        command.env(variable, folder.path(variable));
    }
    command
}

/// A port where nobody listens.
fn free_port() -> u16 {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().port()
}

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{words}");
    words
}

#[test]
fn every_fault_of_the_configuration_is_named_at_once() {
    let folder = Folder::default();
    let file = folder.write("registry.toml", "session-cap = 0\nfrobnicate = 1\n");
    let exposed = folder.write_with_mode("exposed", "secret", 0o640);

    let words = refused(
        registry(&folder, 1, "password")
            .env("CRM_CONFIG", file)
            .env("CRM_REGISTRY_LISTEN", "nowhere")
            .env("CRM_MASTER_KEY_FILE", folder.path("password"))
            .env("CRM_OPERATOR_SECRET_FILE", &exposed)
            .env("CRM_CONTACTS_SECRET_FILE", folder.path("absent"))
            .env_remove("CRM_MESSAGING_SECRET_FILE")
            .arg("--frobnicate"),
    );

    for named in [
        "frobnicate in the file of CRM_CONFIG (--config) is no option",
        "CRM_SESSION_CAP (--session-cap): ",
        "CRM_REGISTRY_LISTEN (--listen): ",
        "CRM_MASTER_KEY_FILE (--master-key-file): ",
        "CRM_OPERATOR_SECRET_FILE (--operator-secret-file): ",
        "it can be read by others",
        "CRM_CONTACTS_SECRET_FILE (--contacts-secret-file): ",
        "CRM_MESSAGING_SECRET_FILE (--messaging-secret-file): it is not given",
        "unexpected argument '--frobnicate'",
    ] {
        assert!(words.contains(named), "{named} is not in\n{words}");
    }
    assert_eq!(words.lines().count(), 8, "{words}");
}

#[test]
fn a_file_that_cannot_be_read_is_refused_with_its_line() {
    let folder = Folder::default();
    let broken = folder.write("broken.toml", "spares = 1\nlisten = \n");

    let words = refused(registry(&folder, 1, "password").args(["--config", &broken]));
    assert!(words.contains("broken.toml: line 2: "), "{words}");

    let absent = folder.path("absent.toml");
    let words = refused(registry(&folder, 1, "password").arg("--config").arg(&absent));
    assert!(words.contains("CRM_CONFIG (--config): ") && words.contains("absent.toml"), "{words}");
}

#[test]
fn leases_beyond_the_loopback_are_refused_without_certificates() {
    let folder = Folder::default();

    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:50071"] {
        let mut command = registry(&folder, 1, "password");
        let words = refused(command.env("CRM_REGISTRY_INTERNAL_LISTEN", address));
        assert!(words.contains("CRM_REGISTRY_INTERNAL_LISTEN"), "{words}");
        assert!(words.contains("CRM_REGISTRY_CLIENT_CA_FILE"), "{words}");
    }
    let ca = folder.write("ca.pem", &Authority::new().pem());
    let mut command = registry(&folder, 1, "password");
    let words = refused(command.env("CRM_REGISTRY_CLIENT_CA_FILE", ca));
    assert!(words.contains("are given together"), "{words}");
}

#[tokio::test]
async fn the_command_line_comes_first_then_the_environment_then_the_file() {
    let folder = Folder::default();
    let [file, environment, line] = std::array::from_fn(|_| format!("127.0.0.1:{}", free_port()));
    let text = format!("listen = \"{file}\"\ninternal-listen = \"{file}\"\nlog = \"info\"\n");
    let config = folder.write("registry.toml", &text);
    let started = async |command: &mut Command| -> [SocketAddr; 2] {
        let command = std::mem::replace(command, Command::new(BIN));
        let mut process = Process::start(command, &folder);
        let public = process.address("tenant-registry").await;
        let internal = process.address("tenant-registry-internal").await;
        // PostgreSQL is not there, and it stops all the same.
        assert!(process.terminate().await.success());
        [public, internal]
    };
    let port = free_port();
    let mut all = registry(&folder, port, "password");
    all.env("CRM_CONFIG", &config);
    all.env("CRM_REGISTRY_LISTEN", &environment).env_remove("CRM_REGISTRY_INTERNAL_LISTEN");

    let [public, internal] = started(&mut all).await;
    assert_eq!([public.to_string(), internal.to_string()], [environment, file]);

    let mut all = registry(&folder, port, "password");
    all.args(["--config", &config, "--listen", &line]);
    let [public, _] = started(&mut all).await;
    assert_eq!(public.to_string(), line);
}

#[tokio::test]
async fn it_waits_for_postgresql_and_gives_tokens() {
    let cluster = OtherCluster::start().await;
    cluster.set_up().await;
    cluster.stop().await;
    let folder = Folder::default();
    let command = || registry(&folder, cluster.port(), cluster.password());

    let mut process = Process::start(command(), &folder);
    let public = process.address("tenant-registry").await;
    let internal = process.address("tenant-registry-internal").await;
    assert_eq!(health(public).await, ServingStatus::NotServing);
    assert_eq!(health(internal).await, ServingStatus::NotServing);
    let probes = process.address("admin").await;
    let (status, waiting) = ask_admin(probes, "/readyz").await;
    assert!(status == 503 && waiting.contains("\"waits_for\":\"PostgreSQL\""), "{waiting}");
    let request = || GetTenantRequest { name: "tenants/acme".to_owned() };
    let anyone = Client::new("nothing");
    let mut tenants = TenantServiceClient::new(anyone.channel(public));
    let outcome = tenants.get_tenant(anyone.request(request())).await;
    let unavailable = (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned());
    assert_eq!(code_and_reason(outcome), unavailable);

    cluster.start_again().await;
    process.wait_until(public, ServingStatus::Serving).await;
    process.wait_until(internal, ServingStatus::Serving).await;
    assert!(process.log().contains("waiting for PostgreSQL"));
    assert_eq!(ask_admin(probes, "/readyz").await.0, 200);
    let token = command().arg("token").output().unwrap();
    let operator = Client::new(String::from_utf8(token.stdout).unwrap().trim());
    let outcome = tenants.get_tenant(operator.request(request())).await;
    assert_eq!(code_and_reason(outcome), (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
    let token = command().args(["token", "--tenant", "acme"]).output().unwrap();
    assert_eq!((token.status.code(), token.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8(token.stderr).unwrap().contains("acme"));

    assert!(process.terminate().await.success());
}

/// A registry whose leases are served with a certificate of this authority, to
/// those who have one of it, too.
fn certified_registry(folder: &Folder, cluster: &OtherCluster, authority: &Authority) -> Command {
    let (certificate, key) = authority.issue("localhost");
    let mut command = registry(folder, cluster.port(), cluster.password());
    command
        .env("CRM_REGISTRY_TLS_CERT_FILE", folder.write("cert.pem", &certificate))
        .env("CRM_REGISTRY_TLS_KEY_FILE", folder.write("key.pem", &key))
        .env("CRM_REGISTRY_CLIENT_CA_FILE", folder.write("ca.pem", &authority.pem()));
    command
}

#[tokio::test]
async fn leases_go_only_to_the_service_that_the_certificate_names() {
    let cluster = OtherCluster::start().await;
    cluster.set_up().await;
    let folder = Folder::default();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut process = Process::start(certified_registry(&folder, &cluster, &ours), &folder);
    let public = process.address("tenant-registry").await;
    let port = process.address("tenant-registry-internal").await.port();
    process.wait_until(public, ServingStatus::Serving).await;
    let internal = format!("https://localhost:{port}");
    let secret = std::fs::read_to_string(folder.path("CRM_CONTACTS_SECRET_FILE")).unwrap();

    // The service's own certificate, and the whole way of a data service.
    let (certificate, key) = ours.issue("contacts");
    let tls = client_tls(&certificate, &key.into(), &ours.pem()).unwrap();
    let endpoints = RegistryEndpoints {
        public: internal.clone(),
        internal: internal.clone(),
        tls: Some(tls.clone()),
    };
    let clock = crm_clock::Clock::default();
    let client = RegistryClient::new("contacts", secret.clone().into(), &endpoints, clock).unwrap();
    client.register_schema(&[MIGRATION]).await.unwrap();

    // With that service's token, another's certificate is of no use.
    let (certificate, key) = ours.issue("messaging");
    let other = client_tls(&certificate, &key.into(), &ours.pem()).unwrap();
    let token = service_token(public, &secret).await;
    for (tls, expected) in [(tls, Code::NotFound), (other, Code::PermissionDenied)] {
        let channel = Endpoint::from_shared(internal.clone())
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect_lazy();
        let request = AcquireLeaseRequest {
            tenant: "tenants/00000000-0000-7000-8000-000000000009".to_owned(),
            ..Default::default()
        };
        let mut leases = LeaseServiceClient::new(channel);
        let outcome = leases.acquire_lease(Client::new(&token).request(request)).await;
        assert_eq!(code_and_reason(outcome).0, expected);
    }

    // No certificate, one of another authority, or no TLS: no connection.
    let (certificate, key) = theirs.issue("contacts");
    let foreign = client_tls(&certificate, &key.into(), &ours.pem()).unwrap();
    let none = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(ours.pem()));
    for tls in [foreign, none] {
        let endpoint = Endpoint::from_shared(internal.clone()).unwrap().tls_config(tls).unwrap();
        assert!(!answers(endpoint.connect_lazy(), &token).await);
    }
    let plain = Endpoint::from_shared(format!("http://localhost:{port}")).unwrap();
    assert!(!answers(plain.connect_lazy(), &token).await);
    assert!(process.terminate().await.success());
}

#[tokio::test]
async fn the_database_is_reached_by_tls_with_a_certificate_that_fits() {
    let cluster = OtherCluster::start().await;
    cluster.set_up().await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut superuser = serve_by_tls(&cluster, &ours).await;
    let folder = Folder::default();
    let by_tls = |ca: &Authority| {
        let mut command = registry(&folder, cluster.port(), cluster.password());
        command
            .env("CRM_DATABASE_HOST", "localhost")
            .env("CRM_DATABASE_TLS", "verify-full")
            .env("PGSSLROOTCERT", folder.write("ca.pem", &ca.pem()));
        Process::start(command, &folder)
    };

    let mut process = by_tls(&ours);
    let public = process.address("tenant-registry").await;
    process.wait_until(public, ServingStatus::Serving).await;
    let encrypted: Option<bool> = sqlx::query_scalar(
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE usename = 'crm_registry'",
    )
    .fetch_one(&mut superuser)
    .await
    .unwrap();
    assert_eq!(encrypted, Some(true));
    // Leases say so, too.
    let mut registry = cluster.superuser("crm_registry").await;
    let modes: Vec<i16> =
        sqlx::query_scalar("SELECT tls_mode FROM clusters").fetch_all(&mut registry).await.unwrap();
    assert_eq!(modes, [TlsMode::VerifyFull as i16]);
    assert!(process.terminate().await.success());

    assert_eq!(by_tls(&theirs).ended().await.code(), Some(1));
}

/// Has PostgreSQL speak TLS, and answers a superuser's session.
async fn serve_by_tls(cluster: &OtherCluster, authority: &Authority) -> PgConnection {
    let mut superuser = cluster.superuser("postgres").await;
    let (certificate, key) = authority.issue("localhost");
    for (file, text) in [("server.crt", certificate), ("server.key", key)] {
        let lines: Vec<_> = text.lines().collect();
        let statement = format!(
            "COPY (SELECT unnest('{{{}}}'::text[])) TO PROGRAM 'umask 077; cat >{file}'",
            lines.join(",")
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut superuser).await.unwrap();
    }
    for statement in ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
        sqlx::raw_sql(statement).execute(&mut superuser).await.unwrap();
    }
    superuser
}

const MIGRATION: Migration = Migration {
    version: 1,
    description: "nothing",
    sql: "CREATE TABLE contacts.one ()",
    oldest_service_version: 0,
};

/// A token of the service contacts.
async fn service_token(public: SocketAddr, secret: &str) -> String {
    use crm_proto::identity::v1::IssueServiceTokenRequest;
    use crm_proto::identity::v1::auth_service_client::AuthServiceClient;
    let mut auth = AuthServiceClient::new(Client::new("").channel(public));
    let request = IssueServiceTokenRequest {
        client_id: "services/contacts".to_owned(),
        client_secret: secret.to_owned(),
    };
    auth.issue_service_token(request).await.unwrap().into_inner().access_token
}

/// Whether a call gets through to the server at all: its errors have a reason.
async fn answers(channel: Channel, token: &str) -> bool {
    let request = Client::new(token).request(RegisterSchemaRequest::default());
    match LeaseServiceClient::new(channel).register_schema(request).await {
        Ok(_) => true,
        Err(status) => !status.details().is_empty(),
    }
}

/// An authority of this test.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn pem(&self) -> String {
        self.pem.clone()
    }

    /// A certificate for a DNS name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}
