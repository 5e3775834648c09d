//! What PostgreSQL refuses to the logins of tenants.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![expect(clippy::print_stdout, reason = "a test may say what it measured")]

mod attempts;
mod changes;
mod log;
mod logins;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crm_proto::registry::v1::AcquireLeaseRequest;
use crm_proto::registry::v1::AcquireLeaseResponse;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_testing::{Client, Tenant, server};
use sqlx::{PgConnection, Row as _};

/// The lease of a service for a tenant, as the service gets it.
async fn lease(tenant: &Tenant, service: &str) -> AcquireLeaseResponse {
    let tenant = tenant.tenant.name.clone();
    acquire(service, AcquireLeaseRequest { tenant, ..Default::default() }).await
}

async fn acquire(service: &str, request: AcquireLeaseRequest) -> AcquireLeaseResponse {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server().identity.issue(format!("services/{service}"), roles, None).unwrap();
    let client = Client::new(issued.token);
    let mut leases = LeaseServiceClient::new(client.channel(server().addresses.internal));
    leases.acquire_lease(client.request(request)).await.unwrap().into_inner()
}

async fn log_in(lease: &AcquireLeaseResponse, database: &str) -> Result<PgConnection, sqlx::Error> {
    server().login(database, &lease.user, &lease.secret).await
}

async fn databases() -> Vec<String> {
    let mut postgres = server().superuser("postgres").await;
    let names = sqlx::query_scalar("SELECT datname FROM pg_database ORDER BY datname");
    names.fetch_all(&mut postgres).await.unwrap()
}

#[tokio::test]
async fn no_login_opens_a_database_while_it_is_made() {
    let tenant = Tenant::create().await;
    let lease = lease(&tenant, "contacts").await;
    let own = tenant.tenant.database.clone();
    let tried = Arc::new(AtomicUsize::new(0));
    let attempts = tokio::spawn({
        let tried = tried.clone();
        async move {
            loop {
                // The newest first: the one that is being made.
                let others = databases().await.into_iter().rev().filter(|name| *name != own);
                for database in others.take(6) {
                    assert!(log_in(&lease, &database).await.is_err(), "{database} was open");
                    tried.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });

    let mut made = 0;
    while made < 10 || (tried.load(Ordering::Relaxed) < 60 && !attempts.is_finished()) {
        Tenant::create().await;
        made += 1;
    }

    assert!(!attempts.is_finished(), "{:?}", attempts.await);
    attempts.abort();
}

/// Who may do what in a tenant database, to be compared with the golden file;
/// the tenant's own id is left out.
#[tokio::test]
async fn the_privileges_of_a_tenant_database_are_those_of_the_golden_file() {
    let tenant = Tenant::create().await;
    let mut database = tenant.database().await;
    let rows = sqlx::query(include_str!("privileges.sql"))
        .bind(tenant.id.as_simple().to_string())
        .fetch_all(&mut database)
        .await
        .unwrap();
    let mut lines: Vec<String> = rows.iter().map(|row| row.get("text")).collect();
    lines.sort();

    let golden = include_str!("privileges.golden");

    let found = lines.join("\n") + "\n";
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/privileges.found");
    std::fs::write(path, &found).unwrap();
    assert!(found == golden, "{path} is not tests/isolation/privileges.golden; diff them");
}
