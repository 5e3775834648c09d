//! What the tests of waves have in common.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::migration_service_client::MigrationServiceClient;
use crm_proto::registry::v1::{
    ListTenantMigrationsRequest, Migration, RegisterSchemaRequest, RetryTenantMigrationRequest,
    RetryTenantMigrationResponse, ServiceMigrations, SummarizeMigrationsRequest, TenantMigration,
};
use crm_testing::{Channel, Client, Tenant, serve_alone, server};
use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tonic::Status;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// One test at a time: each wave is for all tenants.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    serve_alone();
    TURN.lock().await
}

pub(crate) async fn tenants(count: usize) -> Vec<Tenant> {
    let mut tenants = join_all((0..count).map(|_| Tenant::create())).await;
    tenants.sort_by_key(|tenant| tenant.id);
    tenants
}

pub(crate) fn client() -> (Client, MigrationServiceClient<Channel>) {
    let operator = Client::operator(server());
    let channel = operator.channel(server().addresses.registry);
    (operator, MigrationServiceClient::new(channel))
}

/// Registers one more migration of contacts; answers its version.
pub(crate) async fn register(sql: &str) -> u32 {
    let mut registry = server().superuser("crm_registry").await;
    let known: Vec<(i32, String, String)> = sqlx::query_as(
        "SELECT version, description, sql FROM migrations WHERE service = 'contacts' ORDER BY 1",
    )
    .fetch_all(&mut registry)
    .await
    .unwrap();
    let next = i32::try_from(known.len()).unwrap() + 1;
    let next = (next, "test".to_owned(), sql.to_owned());
    let migrations = known.into_iter().chain([next]).map(|(version, description, sql)| Migration {
        version: version.unsigned_abs(),
        description,
        sql,
        oldest_service_version: 0,
    });
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server().identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    let service = Client::new(issued.token);
    let mut leases = LeaseServiceClient::new(service.channel(server().addresses.internal));
    let request = RegisterSchemaRequest { migrations: migrations.collect() };
    let registered = leases.register_schema(service.request(request)).await.unwrap();
    registered.into_inner().schema_version
}

pub(crate) async fn list(parent: &str, filter: &str) -> Vec<TenantMigration> {
    let (operator, mut client) = client();
    let mut request = ListTenantMigrationsRequest {
        parent: parent.to_owned(),
        page_size: 7,
        filter: filter.to_owned(),
        ..ListTenantMigrationsRequest::default()
    };
    let mut found = Vec::new();
    loop {
        let page = client.list_tenant_migrations(operator.request(request.clone())).await;
        let page = page.unwrap().into_inner();
        assert!(page.tenant_migrations.len() <= 7);
        found.extend(page.tenant_migrations);
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

/// The contacts schema of a tenant.
pub(crate) async fn migration(tenant: &Tenant) -> TenantMigration {
    let found = list(&tenant.tenant.name, "service = contacts").await;
    assert_eq!(found.len(), 1);
    found.into_iter().next().unwrap()
}

pub(crate) async fn summary() -> ServiceMigrations {
    let (operator, mut client) = client();
    let request = operator.request(SummarizeMigrationsRequest {});
    let services = client.summarize_migrations(request).await.unwrap().into_inner().services;
    services.into_iter().find(|service| service.service == "contacts").unwrap()
}

/// Waits for a summary of contacts that is as expected.
pub(crate) async fn until(expected: impl Fn(&ServiceMigrations) -> bool) -> ServiceMigrations {
    let start = Instant::now();
    loop {
        let found = summary().await;
        if expected(&found) {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn is_done(wave: &ServiceMigrations) -> bool {
    wave.current == wave.total
}

pub(crate) async fn retry(
    name: &str,
    request_id: &str,
) -> Result<RetryTenantMigrationResponse, Status> {
    let (operator, mut client) = client();
    let request =
        RetryTenantMigrationRequest { name: name.to_owned(), request_id: request_id.to_owned() };
    Ok(client.retry_tenant_migration(operator.request(request)).await?.into_inner())
}

pub(crate) async fn execute(tenant: &Tenant, statement: &str) {
    let mut database = tenant.database().await;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

/// How often the migration that fills this table ran in each tenant.
pub(crate) async fn marks(tenants: &[Tenant], table: &str) -> Vec<i64> {
    let mut counts = Vec::new();
    for tenant in tenants {
        let mut database = tenant.database().await;
        let count = format!("SELECT count(*) FROM contacts.{table}");
        counts
            .push(sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut database).await.unwrap());
        database.close().await.unwrap();
    }
    counts
}

/// A migration that shows how often it ran, and takes a while.
pub(crate) fn marking(table: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS contacts.{table} (mark integer);
         INSERT INTO contacts.{table} VALUES (1);
         SELECT pg_sleep(0.5);"
    )
}

/// Watches how many databases are migrated at once, until it is aborted.
pub(crate) fn watch_sessions() -> (JoinHandle<()>, Arc<Mutex<i64>>) {
    let most = Arc::new(Mutex::new(0));
    let shared = most.clone();
    let watch = async move {
        let mut postgres: PgConnection = server().superuser("postgres").await;
        loop {
            let sessions = sqlx::query_scalar(
                "SELECT count(*)
                 FROM pg_stat_activity
                 WHERE usename = 'crm_contacts_migrator' AND datname LIKE 'tenant%'
                     AND query LIKE '%pg_sleep%' AND state = 'active'",
            );
            let sessions: i64 = sessions.fetch_one(&mut postgres).await.unwrap();
            let mut most = shared.lock().await;
            *most = sessions.max(*most);
            drop(most);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    (tokio::spawn(watch), most)
}

pub(crate) async fn create_contact(tenant: &Tenant) -> Result<Contact, Status> {
    let admin = tenant.admin();
    let mut contacts = ContactServiceClient::new(admin.channel(server().addresses.contacts));
    let contact = Contact {
        display_name: "Someone".to_owned(),
        phone: "12345".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    Ok(contacts.create_contact(admin.request(request)).await?.into_inner())
}
