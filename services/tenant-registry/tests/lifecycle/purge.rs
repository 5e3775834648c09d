//! What is left of a deleted tenant once its time has come.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, ListContactsRequest};
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant::State;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_tenant_registry::consistency::FindingKind;
use crm_testing::{Channel, Client, Server, Tenant, canary, code_and_reason, own_purging_server};
use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, PgConnection};
use tonic::{Code, Status};
use uuid::Uuid;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The use of one server by these tests.
struct Registry<'a> {
    server: &'a Server,
    operator: Client,
    client: TenantServiceClient<Channel>,
}

impl<'a> Registry<'a> {
    fn of(server: &'a Server) -> Self {
        let operator = Client::operator(server);
        let client = TenantServiceClient::new(operator.channel(server.addresses.registry));
        Self { server, operator, client }
    }

    async fn create(&self, slug: &str) -> Result<pb::Tenant, Status> {
        let tenant = pb::Tenant {
            slug: slug.to_owned(),
            display_name: "Someone".to_owned(),
            ..pb::Tenant::default()
        };
        let request = pb::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
        let created = self.client.clone().create_tenant(self.operator.request(request)).await;
        Ok(created?.into_inner())
    }

    async fn get(&self, tenant: &pb::Tenant) -> Result<pb::Tenant, Status> {
        let request = pb::GetTenantRequest { name: tenant.name.clone() };
        let found = self.client.clone().get_tenant(self.operator.request(request)).await?;
        Ok(found.into_inner())
    }

    async fn delete(&self, tenant: &pb::Tenant) {
        let request = pb::DeleteTenantRequest { name: tenant.name.clone(), ..Default::default() };
        self.client.clone().delete_tenant(self.operator.request(request)).await.unwrap();
    }

    async fn undelete(&self, tenant: &pb::Tenant) -> Result<pb::Tenant, Status> {
        let request = pb::UndeleteTenantRequest { name: tenant.name.clone(), ..Default::default() };
        let undeleted = self.client.clone().undelete_tenant(self.operator.request(request)).await;
        Ok(undeleted?.into_inner())
    }

    async fn purge(&self, name: &str, uid: Uuid) -> Result<pb::DeletionCertificate, Status> {
        let uid = uid.to_string();
        let request = pb::PurgeTenantRequest { name: name.to_owned(), uid, validate_only: false };
        let purged = self.client.clone().purge_tenant(self.operator.request(request)).await?;
        Ok(purged.into_inner().certificate.unwrap())
    }

    /// Waits until a tenant is gone, and answers the certificate.
    async fn gone(&self, tenant: &pb::Tenant) -> pb::DeletionCertificate {
        let start = Instant::now();
        loop {
            match self.purge(&tenant.name, id(tenant)).await {
                Ok(certificate) if certificate.purge_time.is_some() => return certificate,
                Ok(_) => {}
                // Its time has not come yet.
                Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}"),
            }
            assert!(start.elapsed() < PATIENCE, "{} is there still", tenant.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn admin(&self, tenant: &pb::Tenant) -> (Client, ContactServiceClient<Channel>) {
        let claims = crm_auth::TenantClaims { tid: id(tenant), generation: 1, ver: 1 };
        let roles = vec!["roles/admin".to_owned()];
        let subject = format!("serviceAccounts/{}", id(tenant));
        let issued = self.server.identity.issue(subject, roles, Some(claims)).unwrap();
        let admin = Client::new(issued.token);
        let contacts = ContactServiceClient::new(admin.channel(self.server.addresses.contacts));
        (admin, contacts)
    }

    async fn fill(&self, tenant: &pb::Tenant) {
        let (admin, mut contacts) = self.admin(tenant);
        let contact = Contact {
            display_name: canary(id(tenant)),
            phone: "12345".to_owned(),
            ..Contact::default()
        };
        let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
        contacts.create_contact(admin.request(request)).await.unwrap();
    }

    async fn contacts(&self, tenant: &pb::Tenant) -> Result<usize, Status> {
        let (admin, mut contacts) = self.admin(tenant);
        let listed = contacts.list_contacts(admin.request(ListContactsRequest::default())).await;
        Ok(listed?.into_inner().contacts.len())
    }
}

fn id(tenant: &pb::Tenant) -> Uuid {
    tenant.name.strip_prefix("tenants/").unwrap().parse().unwrap()
}

/// Where something of a tenant is left: databases, roles, and tables of the
/// registry that have its id in any row.
async fn traces(server: &Server, tenant: &pb::Tenant) -> BTreeSet<String> {
    let mut registry = server.superuser("crm_registry").await;
    let hex = id(tenant).as_simple().to_string();
    let of_cluster: Vec<String> = sqlx::query_scalar(
        "SELECT 'database' FROM pg_database WHERE datname LIKE '%' || $1
         UNION ALL SELECT 'role' FROM pg_roles WHERE rolname LIKE '%' || $1 || '%'
         UNION ALL
         SELECT 'setting' FROM pg_db_role_setting AS s
         WHERE s.setrole <> 0 AND NOT EXISTS (SELECT FROM pg_roles WHERE oid = s.setrole)",
    )
    .bind(&hex)
    .fetch_all(&mut registry)
    .await
    .unwrap();
    let mut found: BTreeSet<_> = of_cluster.into_iter().collect();
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
            .fetch_all(&mut registry)
            .await
            .unwrap();
    for table in tables {
        let rows = format!(
            "SELECT EXISTS (SELECT FROM {table} AS t
             WHERE replace(t::text, '-', '') LIKE '%{hex}%')"
        );
        let statement = sqlx::query_scalar(AssertSqlSafe(rows));
        if statement.fetch_one(&mut registry).await.unwrap() {
            found.insert(table);
        }
    }
    found
}

async fn run(session: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(session).await.unwrap();
}

/// Waits until a query answers true.
async fn until(session: &mut PgConnection, what: &str, query: &'static str) {
    let start = Instant::now();
    while !sqlx::query_scalar::<_, bool>(query).fetch_one(&mut *session).await.unwrap() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_tenant_leaves_nothing_but_its_certificate() {
    let server = own_purging_server(2);
    let registry = Registry::of(&server);
    let mut tenants = Vec::new();
    for slug in ["early", "due", "kept"] {
        let tenant = registry.create(slug).await.unwrap();
        registry.fill(&tenant).await;
        tenants.push(tenant);
    }
    let [early, due, kept] = &tenants[..] else { unreachable!("there are three") };

    // By name and id, and only what is deleted.
    let not_deleted = (Code::FailedPrecondition, "RESOURCE_NOT_DELETED".to_owned());
    assert_eq!(code_and_reason(registry.purge(&early.name, id(early)).await), not_deleted);
    for tenant in &tenants {
        registry.delete(tenant).await;
    }
    registry.undelete(kept).await.unwrap();
    let not_found = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    assert_eq!(code_and_reason(registry.purge(&early.name, id(due)).await), not_found);
    let started = registry.purge("tenants/early", id(early)).await.unwrap();
    assert_eq!((started.tenant.as_str(), started.slug.as_str()), (early.name.as_str(), "early"));
    let undeleted = registry.undelete(early).await;
    let refused = undeleted.unwrap_err().code();
    assert!([Code::FailedPrecondition, Code::NotFound].contains(&refused), "{refused:?}");

    let certificate = registry.gone(early).await;
    assert_eq!(certificate.login_count, 2);
    assert!(!certificate.requester.is_empty());
    let (purged, expires) = (certificate.purge_time.unwrap(), certificate.backup_expire_time);
    assert_eq!(expires.unwrap().seconds - purged.seconds, 30 * 24 * 3600);
    assert_eq!(traces(&server, early).await, BTreeSet::from(["purged_tenants".to_owned()]));

    // The other when its time has come, without anyone's asking.
    server.clock.advance(TimeDelta::days(31));
    let registry = Registry::of(&server);
    let start = Instant::now();
    while registry.get(due).await.is_ok() {
        assert!(start.elapsed() < PATIENCE, "it is there still");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(registry.gone(due).await.requester, "");
    assert_eq!(traces(&server, due).await, BTreeSet::from(["purged_tenants".to_owned()]));
    assert!(registry.contacts(due).await.is_err());
    assert_eq!(registry.contacts(kept).await.unwrap(), 1);

    // The slug rests; whoever has it then sees nothing old.
    let taken = (Code::AlreadyExists, "SLUG_TAKEN".to_owned());
    assert_eq!(code_and_reason(registry.create("early").await), taken);
    server.clock.advance(TimeDelta::days(91));
    let registry = Registry::of(&server);
    let again = registry.create("early").await.unwrap();
    assert_ne!(again.name, early.name);
    assert_eq!(registry.contacts(&again).await.unwrap(), 0);
    let start = Instant::now();
    loop {
        let found = server.consistency.report().await.unwrap();
        if found.is_empty() {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_undeletion_and_a_purge_one_wins() {
    let server = own_purging_server(0);
    let registry = Registry::of(&server);
    let tenants = join_all((0..8).map(|n| {
        let registry = &registry;
        async move { registry.create(&format!("race-{n}")).await.unwrap() }
    }));
    let tenants = tenants.await;
    join_all(tenants.iter().map(|tenant| registry.delete(tenant))).await;

    let races = tenants.iter().map(|tenant| async {
        tokio::join!(registry.undelete(tenant), registry.purge(&tenant.name, id(tenant)))
    });
    for (tenant, (undeleted, purged)) in tenants.iter().zip(join_all(races).await) {
        match (undeleted, purged) {
            (Ok(undeleted), purged) => {
                assert_eq!(undeleted.state(), State::Active);
                assert_eq!(purged.unwrap_err().code(), Code::FailedPrecondition);
                registry.fill(tenant).await;
                assert_eq!(registry.contacts(tenant).await.unwrap(), 1);
            }
            (Err(refused), purged) => {
                assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
                purged.unwrap();
                registry.gone(tenant).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_forgot_a_purge_revives_nobody() {
    let server = own_purging_server(0);
    let registry = Registry::of(&server);
    let tenant = registry.create("gone").await.unwrap();
    registry.delete(&tenant).await;
    let mut database = server.superuser("crm_registry").await;
    let tables = ["databases", "tenants", "logins"];
    for table in tables {
        run(&mut database, &format!("CREATE TABLE saved_{table} AS SELECT * FROM {table}")).await;
    }
    registry.purge(&tenant.name, id(&tenant)).await.unwrap();
    registry.gone(&tenant).await;

    // The dump of a moment ago.
    for table in tables {
        let restore =
            format!("INSERT INTO {table} SELECT * FROM saved_{table} ON CONFLICT DO NOTHING");
        run(&mut database, &restore).await;
    }
    run(&mut database, "DROP TABLE saved_databases, saved_tenants, saved_logins").await;
    run(&mut database, "DELETE FROM purged_tenants").await;

    assert!(registry.undelete(&tenant).await.is_err(), "it is revived");
    let start = Instant::now();
    loop {
        let found = server.consistency.report().await.unwrap();
        let removed = |kind| found.iter().any(|finding| finding.kind == kind);
        if removed(FindingKind::TenantRemoved) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_is_expected_is_purged_only_by_name() {
    let server = own_purging_server(0);
    let registry = Registry::of(&server);
    let tenants = join_all((0..4).map(|n| {
        let registry = &registry;
        async move { registry.create(&format!("due-{n}")).await.unwrap() }
    }));
    let tenants = tenants.await;
    join_all(tenants.iter().map(|tenant| registry.delete(tenant))).await;
    let alone = registry.create("alone").await.unwrap();
    registry.delete(&alone).await;

    server.clock.advance(TimeDelta::days(31));
    let registry = Registry::of(&server);
    registry.purge(&alone.name, id(&alone)).await.unwrap();
    registry.gone(&alone).await;

    // Rounds went by, and took none of the four, of which three are allowed.
    for tenant in &tenants {
        assert_eq!(registry.get(tenant).await.unwrap().state(), State::Deleted);
    }
    registry.purge(&tenants[0].name, id(&tenants[0])).await.unwrap();
    for tenant in &tenants {
        registry.gone(tenant).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spares_that_nobody_gets_and_old_templates_go() {
    let server = own_purging_server(3);
    let mut registry = server.superuser("crm_registry").await;
    until(
        &mut registry,
        "old templates stay",
        "SELECT count(*) = 1 FROM pg_database WHERE datname LIKE 'crm_template%'",
    )
    .await;
    let full = "SELECT count(*) = 3 FROM databases
         WHERE purpose = 'spare' AND step = 'ready' AND is_current(database_id)";
    until(&mut registry, "there are no spares", full).await;

    run(
        &mut registry,
        "CREATE TABLE unwanted AS
         SELECT database_id FROM databases WHERE purpose = 'spare' ORDER BY create_time LIMIT 2;
         UPDATE databases SET purpose = 'spoiled'
         WHERE database_id = (SELECT min(database_id::text)::uuid FROM unwanted);
         UPDATE schema_versions SET version = 0, state = 4
         WHERE service = 'contacts'
             AND database_id = (SELECT max(database_id::text)::uuid FROM unwanted)",
    )
    .await;
    until(
        &mut registry,
        "spares that nobody gets stay",
        "SELECT NOT EXISTS (
             SELECT FROM unwanted AS u
             JOIN pg_database AS d ON d.datname = 'tenant_' || replace(u.database_id::text, '-', '')
         )",
    )
    .await;
    run(&mut registry, "DROP TABLE unwanted").await;
    until(&mut registry, "they are not replaced", full).await;
    run(&mut registry, "UPDATE clusters SET spare_target = 1").await;
    until(
        &mut registry,
        "surplus spares stay",
        "SELECT count(*) = 1 FROM pg_database WHERE datname LIKE 'tenant%'",
    )
    .await;

    // One that a tenant has, whatever its row says, does not go.
    let tenant = Tenant::create_in(&server).await;
    tenant.is_left_broken("its database is called a spoiled spare");
    let mislead =
        format!("UPDATE databases SET purpose = 'spoiled' WHERE database_id = '{}'", tenant.id);
    run(&mut registry, &mislead).await;
    run(&mut registry, "UPDATE clusters SET purge_turn_time = '-infinity'").await;
    until(&mut registry, "nobody tried", "SELECT purge_turn_time > '-infinity' FROM clusters")
        .await;
    let there = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    let there = sqlx::query_scalar::<_, bool>(there).bind(&tenant.tenant.database);
    assert!(there.fetch_one(&mut registry).await.unwrap(), "a tenant's database was removed");
}
