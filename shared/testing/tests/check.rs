//! What is checked of every tenant at the end of its test.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crm_testing::{Tenant, server};
use sqlx::{AssertSqlSafe, Connection as _};

/// A revision that is not in the log. A trigger would refuse it.
const UNLOGGED: &str = "SET session_replication_role = replica;
    UPDATE platform.head SET revision = revision + 1";

/// Drops a tenant, and answers what the panic says, if it panics.
fn end(tenant: Tenant) -> Option<String> {
    let panicked = catch_unwind(AssertUnwindSafe(|| drop(tenant))).err()?;
    Some(panicked.downcast_ref::<String>().unwrap().clone())
}

/// Breaks a tenant's database.
async fn run(tenant: &Tenant, statement: &str) {
    let mut database = tenant.database().await;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_test_that_breaks_a_tenant_fails_with_what_is_broken() {
    let breaks = [
        (UNLOGGED, "the head is 1"),
        ("GRANT CONNECT ON DATABASE <name> TO PUBLIC", "PUBLIC has CONNECT"),
        ("GRANT crm_messaging TO t_<hex>_contacts_g1", "crm_messaging"),
    ];

    for (statement, words) in breaks {
        let tenant = Tenant::create().await;
        let statement = statement.replace("<name>", &tenant.tenant.database);
        run(&tenant, &statement.replace("<hex>", &tenant.id.as_simple().to_string())).await;
        let clone = tenant.clone();

        assert_eq!(end(clone), None, "it is not the last");
        let said = end(tenant).expect("the test fails");

        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn a_tenant_that_is_left_broken_on_purpose_fails_no_test() {
    let tenant = Tenant::create().await;
    run(&tenant, UNLOGGED).await;

    tenant.is_left_broken("to see that it is allowed");

    assert_eq!(end(tenant), None);
}

#[tokio::test]
async fn a_tenant_that_the_registry_does_not_know_fails_its_test() {
    let tenant = Tenant::create().await;
    let mut registry = server().superuser("crm_registry").await;
    let forget = sqlx::query("DELETE FROM tenants WHERE tenant_id = $1").bind(tenant.id);
    forget.execute(&mut registry).await.unwrap();

    let said = end(tenant).expect("the test fails");

    assert!(said.contains("does not know it"), "{said}");
}
