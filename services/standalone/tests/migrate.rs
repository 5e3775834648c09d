//! `crm migrate`, and a wave whose process is killed.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod installation;

use std::time::{Duration, Instant};

use crm_proto::identity::v1::IssueServiceTokenRequest;
use crm_proto::identity::v1::auth_service_client::AuthServiceClient;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::migration_service_client::MigrationServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_standalone::data::DataDir;
use installation::{Installation, text};
use secrecy::ExposeSecret as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// How long a wave may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ways into an installation that runs.
struct Access<'a> {
    installation: &'a Installation,
    token: String,
}

impl Access<'_> {
    fn channel(&self, offset: u16) -> Channel {
        let port = self.installation.port_base + offset;
        Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy()
    }

    fn operator<T>(&self, message: T) -> Request<T> {
        authorized(&self.token, message)
    }

    async fn create_tenant(&self, slug: &str) -> pb::Tenant {
        let tenant = pb::Tenant {
            slug: slug.to_owned(),
            display_name: slug.to_owned(),
            ..pb::Tenant::default()
        };
        let request = pb::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
        let mut tenants = TenantServiceClient::new(self.channel(1));
        tenants.create_tenant(self.operator(request)).await.unwrap().into_inner()
    }

    /// Registers migrations of contacts on top of its own.
    async fn register(&self, more: &[&str]) {
        let own = crm_contacts::app::SERVICE.migrations.iter().map(|migration| migration.sql);
        let migrations = (1..).zip(own.chain(more.iter().copied())).map(|(version, sql)| {
            pb::Migration { version, sql: sql.to_owned(), ..pb::Migration::default() }
        });
        let request = pb::RegisterSchemaRequest { migrations: migrations.collect() };
        let secrets = self.data().secrets().unwrap();
        let issue = IssueServiceTokenRequest {
            client_id: "services/contacts".to_owned(),
            client_secret: secrets.contacts.expose_secret().to_owned(),
        };
        let mut auth = AuthServiceClient::new(self.channel(1));
        let token = auth.issue_service_token(issue).await.unwrap().into_inner().access_token;
        let mut leases = LeaseServiceClient::new(self.channel(21));
        leases.register_schema(authorized(&token, request)).await.unwrap();
    }

    async fn summary(&self) -> pb::ServiceMigrations {
        let mut client = MigrationServiceClient::new(self.channel(1));
        let request = self.operator(pb::SummarizeMigrationsRequest {});
        let services = client.summarize_migrations(request).await.unwrap().into_inner().services;
        services.into_iter().find(|wave| wave.service == "contacts").unwrap()
    }

    fn data(&self) -> DataDir {
        DataDir::open(&self.installation.folder.join("data")).unwrap()
    }

    async fn database(&self, name: &str) -> PgConnection {
        let secrets = self.data().secrets().unwrap();
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.installation.port_base + 20)
            .username("postgres")
            .password(secrets.superuser.expose_secret())
            .database(name);
        PgConnection::connect_with(&options).await.unwrap()
    }

    /// How often the marking migration ran there.
    async fn marks(&self, database: &str) -> i64 {
        let mut session = self.database(database).await;
        let marks = sqlx::query_scalar("SELECT count(*) FROM contacts.marks");
        marks.fetch_one(&mut session).await.unwrap()
    }

    async fn execute(&self, database: &str, statement: &str) {
        let mut session = self.database(database).await;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.unwrap();
        session.close().await.unwrap();
    }
}

fn authorized<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_wave_is_finished_by_the_next_start_and_nothing_runs_twice() {
    let installation = Installation::new("wave");
    let mut running = installation.start();
    running.wait_until_it_serves();
    let token = text(&installation.output(&["token"]).stdout).trim_end().to_owned();
    let access = Access { installation: &installation, token };
    let mut tenants = Vec::new();
    for number in 0..10 {
        tenants.push(access.create_tenant(&format!("wave-{number}")).await);
    }

    let marking = "CREATE TABLE IF NOT EXISTS contacts.marks (mark integer);
        INSERT INTO contacts.marks VALUES (1);
        SELECT pg_sleep(1)";
    access.register(&[marking]).await;
    let start = Instant::now();
    let mut wave = access.summary().await;
    while wave.current == 0 {
        assert!(start.elapsed() < PATIENCE, "{wave:?}");
        wave = access.summary().await;
    }
    running.signal("KILL");
    running.wait(PATIENCE);
    assert!(wave.current < wave.total, "{wave:?}");
    let mut again = installation.start();
    again.wait_until_it_serves();
    let watched = installation.output(&["migrate", "status", "--watch"]);

    assert!(watched.status.success(), "{}", text(&watched.stderr));
    let wave = access.summary().await;
    assert_eq!((wave.current, wave.failed), (wave.total, 0));
    for tenant in &tenants {
        assert_eq!(access.marks(&tenant.database).await, 1, "{}", tenant.slug);
    }

    // What fails is named with its cause, and retried when that is gone.
    let broken = &tenants[3];
    access.execute(&broken.database, "CREATE TABLE contacts.in_the_way ()").await;
    access.register(&[marking, "CREATE TABLE contacts.in_the_way (id uuid)"]).await;
    let failed = installation.output(&["migrate", "status", "--watch"]);
    let unknown = installation.output(&["migrate", "retry", "nobody"]);
    access.execute(&broken.database, "DROP TABLE contacts.in_the_way").await;
    let retried = installation.output(&["migrate", "retry", &broken.slug]);
    let mended = installation.output(&["migrate", "status", "--watch"]);
    let shown = installation.output(&["migrate", "status"]);

    let printed = text(&failed.stdout);
    assert_eq!(failed.status.code(), Some(1), "{printed}");
    for word in ["SERVICE", "contacts", "platform", &broken.name, "FAILED", "42P07"] {
        assert!(printed.contains(word), "{word} is not in\n{printed}");
    }
    assert_eq!(unknown.status.code(), Some(1));
    assert!(retried.status.success() && text(&retried.stdout).contains("1 taken up again"));
    assert!(mended.status.success(), "{}", text(&mended.stderr));
    assert!(shown.status.success() && !text(&shown.stdout).contains("42P07"));
    again.signal("TERM");
    assert!(again.wait(PATIENCE).success());
}
