//! A registry whose database was restored, and has forgotten what it did since;
//! and a tenant's database that was.

use std::collections::HashSet;
use std::time::Instant;

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, ListContactsRequest};
use crm_proto::registry::v1::cluster::TlsMode;
use crm_proto::registry::v1::cluster_service_client::ClusterServiceClient;
use crm_proto::registry::v1::tenant::State;
use crm_proto::registry::v1::{
    Cluster, CreateClusterRequest, DeleteTenantRequest, GetTenantRequest, ResumeTenantRequest,
    SuspendTenantRequest, Tenant, UndeleteTenantRequest,
};
use crm_tenant_registry::consistency::FindingKind;
use crm_testing::{OtherCluster, canary, reason};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::installation::{Installation, LOOK_EVERY, PATIENCE, id, patiently};

const BEFORE: usize = 12;
const AFTER: usize = 20;
const SUSPENDED: usize = 5;
const DELETED: usize = 5;

async fn run(session: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(session).await.unwrap();
}

/// Copies a database under another name, as it is now, and ends its sessions.
async fn copy(installation: &Installation, from: &str, to: &str) {
    let mut postgres = installation.database("postgres").await;
    let start = Instant::now();
    let end =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{from}'");
    let copy = format!("CREATE DATABASE {to} TEMPLATE {from} OWNER crm_registry");
    run(&mut postgres, &format!("DROP DATABASE IF EXISTS {to} WITH (FORCE)")).await;
    run(&mut postgres, &format!("ALTER DATABASE {from} ALLOW_CONNECTIONS false")).await;
    loop {
        run(&mut postgres, &end).await;
        match sqlx::raw_sql(AssertSqlSafe(copy.as_str())).execute(&mut postgres).await {
            Ok(_) => break,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
    }
    run(&mut postgres, &format!("ALTER DATABASE {from} ALLOW_CONNECTIONS true")).await;
    postgres.close().await.unwrap();
}

/// Makes a tenant with a contact of its own.
async fn tenant(installation: &Installation) -> Tenant {
    let request = installation.request();
    let tenant = patiently(async || installation.create(&request).await).await.0;
    let (admin, contacts) = installation.admin(&tenant);
    let contact = Contact {
        display_name: canary(id(&tenant)),
        phone: "12345".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest {
        contact: Some(contact),
        request_id: installation.clock.new_id().to_string(),
        ..CreateContactRequest::default()
    };
    let contacts = ContactServiceClient::new(admin.channel(contacts));
    patiently(async || contacts.clone().create_contact(admin.request(request.clone())).await).await;
    tenant
}

/// The names of a tenant's contacts.
async fn contacts(installation: &Installation, tenant: &Tenant) -> Result<Vec<String>, Status> {
    let (admin, contacts) = installation.admin(tenant);
    let mut contacts = ContactServiceClient::new(admin.channel(contacts));
    let listed = contacts.list_contacts(admin.request(ListContactsRequest::default())).await?;
    Ok(listed.into_inner().contacts.into_iter().map(|contact| contact.display_name).collect())
}

/// That a tenant has the contact that was made with it, and no other.
async fn has_its_own(installation: &Installation, tenant: &Tenant) {
    let (found, _) = patiently(async || contacts(installation, tenant).await).await;
    assert_eq!(found, [canary(id(tenant))], "{}", tenant.name);
}

async fn get(installation: &Installation, name: &str) -> Result<Tenant, Status> {
    let (operator, mut client) = installation.tenants();
    let request = GetTenantRequest { name: name.to_owned() };
    Ok(client.get_tenant(operator.request(request)).await?.into_inner())
}

async fn add_second(installation: &Installation, other: &OtherCluster) {
    let operator = installation.operator();
    let mut clusters = ClusterServiceClient::new(operator.channel(installation.public));
    let request = CreateClusterRequest {
        cluster_id: "second".to_owned(),
        cluster: Some(Cluster {
            host: "127.0.0.1".to_owned(),
            port: other.port().into(),
            tls_mode: TlsMode::Disabled.into(),
            spare_target: Some(2),
            ..Cluster::default()
        }),
        password: other.password().to_owned(),
        ..CreateClusterRequest::default()
    };
    clusters.create_cluster(operator.request(request)).await.unwrap();
}

/// The kinds of what is out of order, with how often each is found.
async fn disorder(installation: &Installation) -> Vec<(FindingKind, usize)> {
    let findings = installation.consistency.report().await.unwrap();
    let kinds: HashSet<_> = findings.iter().map(|finding| finding.kind).collect();
    let mut counted: Vec<_> = kinds
        .into_iter()
        .map(|kind| (kind, findings.iter().filter(|finding| finding.kind == kind).count()))
        .collect();
    counted.sort();
    counted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_registry_gives_no_database_away_twice_and_loses_no_tenant() {
    let mut installation = Installation::start(3).await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    add_second(&installation, &other).await;
    let mut before = Vec::new();
    for _ in 0..BEFORE {
        before.push(tenant(&installation).await);
    }

    // The backup; then what it does not have.
    copy(&installation, "crm_registry", "registry_backup").await;
    let mut after = Vec::new();
    for _ in 0..AFTER {
        after.push(tenant(&installation).await);
    }
    let (suspended, rest) = before.split_at(SUSPENDED);
    let (deleted, active) = rest.split_at(DELETED);
    let (operator, client) = installation.tenants();
    for Tenant { name, .. } in suspended {
        let request = SuspendTenantRequest { name: name.clone(), ..Default::default() };
        client.clone().suspend_tenant(operator.request(request)).await.unwrap();
    }
    for Tenant { name, .. } in deleted {
        let request = DeleteTenantRequest { name: name.clone(), ..Default::default() };
        client.clone().delete_tenant(operator.request(request)).await.unwrap();
    }
    let homes: HashSet<_> = after.iter().map(|tenant| tenant.cluster.clone()).collect();
    assert_eq!(homes.len(), 2, "{homes:?}");

    // The restore.
    installation.process.signal("KILL");
    copy(&installation, "registry_backup", "crm_registry").await;
    let mut postgres = installation.database("postgres").await;
    run(&mut postgres, "REVOKE ALL ON DATABASE crm_registry FROM PUBLIC").await;
    installation.restart().await;

    nothing_is_given_out(&installation, suspended, deleted, active).await;
    reconcile(&installation).await;

    // All are there, as they were.
    for tenant in &after {
        let found = get(&installation, &tenant.name).await.unwrap();
        assert_eq!((&found.slug, &found.database), (&tenant.slug, &tenant.database));
        has_its_own(&installation, tenant).await;
    }
    for Tenant { name, .. } in suspended {
        assert_eq!(get(&installation, name).await.unwrap().state(), State::Suspended);
        let request = ResumeTenantRequest { name: name.clone(), ..Default::default() };
        client.clone().resume_tenant(operator.request(request)).await.unwrap();
    }
    for Tenant { name, .. } in deleted {
        assert_eq!(get(&installation, name).await.unwrap().state(), State::Deleted);
        let request = UndeleteTenantRequest { name: name.clone(), ..Default::default() };
        client.clone().undelete_tenant(operator.request(request)).await.unwrap();
    }
    for tenant in &before {
        has_its_own(&installation, tenant).await;
    }
    let old: HashSet<_> = before.iter().chain(&after).map(id).collect();
    for _ in 0..6 {
        let new = tenant(&installation).await;
        assert!(!old.contains(&id(&new)), "{} was another's", new.name);
        has_its_own(&installation, &new).await;
    }
    until_consistent(&installation).await;
    println!("{BEFORE} tenants before the backup, {AFTER} after it, {} clusters", homes.len());
    installation.stop().await;
}

/// Until it is reconciled, no database is given out and nobody let in who was
/// not; all others go on.
async fn nothing_is_given_out(
    installation: &Installation,
    suspended: &[Tenant],
    deleted: &[Tenant],
    active: &[Tenant],
) {
    let refused = installation.create(&installation.request()).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "CLUSTER_UNRECONCILED")
    );
    for tenant in suspended.iter().chain(deleted) {
        assert!(contacts(installation, tenant).await.is_err(), "{} is open", tenant.name);
    }
    for tenant in active {
        has_its_own(installation, tenant).await;
    }
    let found = disorder(installation).await;
    let count = |kind| found.iter().find(|(found, _)| *found == kind).map(|(_, count)| *count);
    assert_eq!(count(FindingKind::TenantForgotten), Some(AFTER), "{found:?}");
    assert_eq!(count(FindingKind::StateDifferent), Some(SUSPENDED + DELETED), "{found:?}");
}

/// Shows what there is to settle, settles it, and waits until the registry has
/// noticed.
async fn reconcile(installation: &Installation) {
    let mut settled = 0;
    for cluster in ["local", "second"] {
        let words = ["reconcile", cluster, "--restored", "registry"];
        let shown = installation.run(&words);
        let again = installation.run(&words);
        assert_eq!(shown, again, "a dry run changed something");
        let done = installation.run(&[&words[..], &["--apply"]].concat());
        settled += done.lines().filter(|line| line.starts_with("tenants/")).count();
        let agreed = installation.run(&words);
        assert_eq!(agreed, format!("the registry and clusters/{cluster} agree\n"));
    }
    assert_eq!(settled, AFTER + SUSPENDED + DELETED);
    let start = Instant::now();
    while let Err(refused) = installation.create(&installation.request()).await {
        assert_eq!(reason(&refused), "CLUSTER_UNRECONCILED", "{refused:?}");
        assert!(start.elapsed() < PATIENCE, "it does not notice");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let start = Instant::now();
    let unsettled = "SELECT count(*) FROM tenants WHERE NOT is_settled";
    let mut registry = installation.registry().await;
    while sqlx::query_scalar::<_, i64>(unsettled).fetch_one(&mut registry).await.unwrap() > 0 {
        assert!(start.elapsed() < PATIENCE, "states are not settled");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Databases that were made after the backup and given to nobody are unknown,
/// and stay: they are told, and nothing else is out of order.
async fn until_consistent(installation: &Installation) {
    let start = Instant::now();
    loop {
        let mut found = disorder(installation).await;
        found.retain(|(kind, _)| {
            !matches!(kind, FindingKind::DatabaseOrphan | FindingKind::LoginOrphan)
        });
        if found.is_empty() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{found:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_used_once_it_is_reclaimed() {
    let installation = Installation::start(0).await;
    let tenant = tenant(&installation).await;
    let name = tenant.database.as_str();
    copy(&installation, name, "tenant_backup").await;

    // Dropped and made anew, as from a dump: it has neither its claim nor its
    // rights.
    copy(&installation, "tenant_backup", name).await;

    let refused = contacts(&installation, &tenant).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "DEPENDENCY_UNAVAILABLE")
    );
    let found = disorder(&installation).await;
    assert!(found.contains(&(FindingKind::DatabaseUnmarked, 1)), "{found:?}");
    let told = installation.run(&["reclaim", &tenant.slug]);
    assert_eq!(told, "the database is the tenant's again\n");
    has_its_own(&installation, &tenant).await;
    installation.works(&tenant).await;
    let mut postgres = installation.database("postgres").await;
    run(&mut postgres, "DROP DATABASE tenant_backup").await;
    until_consistent(&installation).await;

    // Another tenant's is not taken for it.
    let other = self::tenant(&installation).await;
    copy(&installation, &other.database, name).await;
    let claim: Uuid = sqlx::query_scalar("SELECT claim_id FROM tenants WHERE tenant_id = $1")
        .bind(id(&other))
        .fetch_one(&mut installation.registry().await)
        .await
        .unwrap();
    let login = format!("t_{}_contacts_g1", id(&tenant).as_simple());
    let mislead = format!(
        "COMMENT ON DATABASE {name} IS '{claim}'; GRANT CONNECT ON DATABASE {name} TO {login}"
    );
    run(&mut postgres, &mislead).await;
    let refused = contacts(&installation, &tenant).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    installation.stop().await;
}
