//! The comparison of the registry with its clusters.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![expect(clippy::print_stdout, reason = "a test may say how much it did")]

use std::time::{Duration, Instant};

use crm_proto::registry::v1::cluster::TlsMode;
use crm_proto::registry::v1::cluster_service_client::ClusterServiceClient;
use crm_proto::registry::v1::finding::Kind;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{
    CheckClustersRequest, CheckClustersResponse, Cluster, CreateClusterRequest,
    ResumeTenantRequest, SuspendTenantRequest,
};
use crm_tenant_registry::consistency::FindingKind::{self, *};
use crm_testing::{Client, OtherCluster, Server, Tenant, own_server};
use futures_util::future::join_all;
use sqlx::postgres::PgAdvisoryLock;
use sqlx::{AssertSqlSafe, Connection as _};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs statements in the registry's database, as a superuser, who may reach
/// everything from there. Where the registry mends the same at that moment,
/// PostgreSQL may refuse either of both, and it is tried again.
async fn run(server: &Server, statements: &str) {
    let mut registry = server.superuser("crm_registry").await;
    let start = Instant::now();
    while let Err(error) = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut registry).await {
        let text = error.to_string();
        let is_meanwhile =
            ["tuple concurrently", "deadlock detected"].map(|what| text.contains(what));
        assert!(
            is_meanwhile.contains(&true) && start.elapsed() < PATIENCE,
            "{statements}: {error}"
        );
    }
    registry.close().await.unwrap();
}

async fn found(server: &Server) -> Vec<(FindingKind, String)> {
    let findings = server.consistency.report().await.unwrap();
    findings.into_iter().map(|finding| (finding.kind, finding.subject)).collect()
}

/// Waits until the report is this. What the registry mends by itself is broken
/// again before each look.
async fn until(server: &Server, broken: &str, expected: &[(FindingKind, String)]) {
    let start = Instant::now();
    loop {
        run(server, broken).await;
        let found = found(server).await;
        if found == expected {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{broken}: {found:?}, not {expected:?}");
    }
}

/// A way to break something, what is found then, and a way to mend it. In the
/// statements, `<id>` and `<hex>` are a tenant's, `<other>` another's.
struct Disorder {
    broken: &'static str,
    found: &'static [(FindingKind, &'static str)],
    mended: &'static str,
}

const DISORDERS: [Disorder; 27] = [
    Disorder {
        broken: "ALTER DATABASE tenant_<hex> RENAME TO tenant_00000000000000000000000000000000",
        found: &[
            (DatabaseMissing, "tenant_<hex>"),
            (DatabaseOrphan, "tenant_00000000000000000000000000000000"),
        ],
        mended: "ALTER DATABASE tenant_00000000000000000000000000000000 RENAME TO tenant_<hex>",
    },
    Disorder {
        broken: "CREATE DATABASE crm_template_999999 ALLOW_CONNECTIONS false",
        found: &[(DatabaseOrphan, "crm_template_999999")],
        mended: "DROP DATABASE crm_template_999999",
    },
    Disorder {
        broken: "CREATE DATABASE forgotten OWNER crm_registry ALLOW_CONNECTIONS false",
        found: &[(DatabaseOrphan, "forgotten")],
        mended: "DROP DATABASE forgotten",
    },
    Disorder {
        broken: "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'tenant_<hex>'",
        found: &[(DatabaseInvalid, "tenant_<hex>")],
        mended: "UPDATE pg_database SET datconnlimit = -1 WHERE datname = 'tenant_<hex>'",
    },
    Disorder {
        broken: "ALTER DATABASE <template> ALLOW_CONNECTIONS true",
        found: &[(DatabaseOpen, "<template>")],
        mended: "ALTER DATABASE <template> ALLOW_CONNECTIONS false",
    },
    Disorder {
        broken: "ALTER DATABASE tenant_<hex> ALLOW_CONNECTIONS false",
        found: &[(DatabaseClosed, "tenant_<hex>")],
        mended: "ALTER DATABASE tenant_<hex> ALLOW_CONNECTIONS true",
    },
    Disorder {
        broken: "GRANT CONNECT ON DATABASE tenant_<hex> TO PUBLIC",
        found: &[(DatabaseRights, "tenant_<hex>")],
        mended: "REVOKE CONNECT ON DATABASE tenant_<hex> FROM PUBLIC",
    },
    Disorder {
        broken: "GRANT CONNECT ON DATABASE tenant_<hex> TO t_<other>_contacts_g1",
        found: &[(DatabaseRights, "tenant_<hex>")],
        mended: "REVOKE CONNECT ON DATABASE tenant_<hex> FROM t_<other>_contacts_g1",
    },
    Disorder {
        broken: "GRANT CREATE ON DATABASE tenant_<hex> TO t_<hex>_contacts_g1",
        found: &[(DatabaseRights, "tenant_<hex>")],
        mended: "REVOKE CREATE ON DATABASE tenant_<hex> FROM t_<hex>_contacts_g1",
    },
    Disorder {
        broken: "GRANT CONNECT ON DATABASE tenant_<hex> TO crm_contacts_migrator",
        found: &[(DatabaseRights, "tenant_<hex>")],
        mended: "REVOKE CONNECT ON DATABASE tenant_<hex> FROM crm_contacts_migrator",
    },
    Disorder {
        broken: "GRANT CONNECT ON DATABASE postgres TO PUBLIC",
        found: &[(DatabaseRights, "postgres")],
        mended: "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
    },
    Disorder {
        broken: "INSERT INTO databases (database_id, cluster, name, purpose, step, create_time)
             VALUES (gen_random_uuid(), 'local', 'nobodys', 'tenant', 'planned', now())
             ON CONFLICT DO NOTHING",
        found: &[(DatabaseWithoutTenant, "nobodys")],
        mended: "DELETE FROM databases WHERE name = 'nobodys'",
    },
    Disorder {
        broken: "UPDATE databases SET step = 'granted' WHERE database_id = '<id>'",
        found: &[(TenantWithoutDatabase, "tenants/<id>")],
        mended: "UPDATE databases SET step = 'ready' WHERE database_id = '<id>'",
    },
    Disorder {
        broken: "ALTER ROLE t_<hex>_contacts_g1 RENAME TO t_<hex>_contacts_g2",
        found: &[(LoginMissing, "t_<hex>_contacts_g1"), (LoginOrphan, "t_<hex>_contacts_g2")],
        mended: "ALTER ROLE t_<hex>_contacts_g2 RENAME TO t_<hex>_contacts_g1",
    },
    Disorder {
        broken: "UPDATE tenants SET state = 3, is_settled = true WHERE tenant_id = '<id>';
             ALTER ROLE t_<hex>_contacts_g1 LOGIN; ALTER ROLE t_<hex>_messaging_g1 NOLOGIN",
        found: &[(LoginOpen, "t_<hex>_contacts_g1")],
        mended: "UPDATE tenants SET state = 2, is_settled = false WHERE tenant_id = '<id>'",
    },
    Disorder {
        broken: "ALTER ROLE t_<hex>_contacts_g1 NOLOGIN",
        found: &[(LoginShut, "t_<hex>_contacts_g1")],
        mended: "ALTER ROLE t_<hex>_contacts_g1 LOGIN",
    },
    Disorder {
        broken: "REVOKE CONNECT ON DATABASE tenant_<hex> FROM t_<hex>_contacts_g1",
        found: &[(LoginRights, "t_<hex>_contacts_g1")],
        mended: "GRANT CONNECT ON DATABASE tenant_<hex> TO t_<hex>_contacts_g1",
    },
    Disorder {
        broken: "GRANT crm_messaging TO t_<hex>_contacts_g1",
        found: &[(LoginRights, "t_<hex>_contacts_g1")],
        mended: "REVOKE crm_messaging FROM t_<hex>_contacts_g1",
    },
    Disorder {
        broken: "ALTER ROLE t_<hex>_contacts_g1 CREATEDB",
        found: &[(LoginRights, "t_<hex>_contacts_g1")],
        mended: "ALTER ROLE t_<hex>_contacts_g1 NOCREATEDB",
    },
    Disorder {
        broken: "ALTER ROLE t_<hex>_contacts_g1 SET work_mem = '1MB'",
        found: &[(LoginSettings, "t_<hex>_contacts_g1")],
        mended: "ALTER ROLE t_<hex>_contacts_g1 RESET ALL",
    },
    Disorder {
        broken: "ALTER ROLE t_<hex>_contacts_g1 IN DATABASE postgres SET role = 'crm_contacts'",
        found: &[(LoginSettings, "t_<hex>_contacts_g1")],
        mended: "ALTER ROLE t_<hex>_contacts_g1 IN DATABASE postgres RESET ALL",
    },
    Disorder {
        broken: "ALTER ROLE t_<other>_contacts_g1 PASSWORD 'another'",
        found: &[(LoginPassword, "t_<other>_contacts_g1")],
        // The next lease makes it anew.
        mended: "UPDATE logins SET is_ready = false WHERE tenant_id = '<other>'",
    },
    Disorder {
        broken: "INSERT INTO logins (tenant_id, service, generation, secret, create_time)
             VALUES ('<id>', 'contacts', 7, '', now()) ON CONFLICT DO NOTHING",
        found: &[(SecretWithoutLogin, "t_<hex>_contacts_g7")],
        mended: "DELETE FROM logins WHERE generation = 7",
    },
    Disorder {
        broken: "INSERT INTO requests
                 (caller, method, request_id, hash, tenant_id, expire_time)
             SELECT 'x', 'x', '<id>', '', template_id, now() + interval '1 hour' FROM clusters
             ON CONFLICT DO NOTHING",
        found: &[(RowsOfNoTenant, "tenants/<template id>")],
        mended: "DELETE FROM requests WHERE method = 'x'",
    },
    Disorder {
        broken: "INSERT INTO databases (database_id, cluster, name, purpose, step, create_time)
             VALUES (gen_random_uuid(), 'local', 'crm_template_999999', 'template', 'planned',
                 now() - interval '1 hour')
             ON CONFLICT DO NOTHING",
        found: &[(MakingLeft, "crm_template_999999")],
        mended: "DELETE FROM databases WHERE name = 'crm_template_999999'",
    },
    Disorder {
        broken: "UPDATE tenants SET is_settled = false, update_time = now() - interval '1 hour'
             WHERE tenant_id = '<id>'",
        found: &[(StateLeft, "tenants/<id>")],
        mended: "UPDATE tenants SET update_time = now() WHERE tenant_id = '<id>'",
    },
    Disorder {
        // Platform's comes before, and waits: nobody takes contacts' up.
        broken: "UPDATE schema_versions SET version = version - 1, state = 4
             WHERE database_id = '<id>' AND service = 'platform';
             UPDATE schema_versions
             SET version = version - 1, state = 3, update_time = now() - interval '1 hour'
             WHERE database_id = '<id>' AND service = 'contacts' AND state <> 3",
        found: &[(MigrationLeft, "tenant_<hex>")],
        mended: "UPDATE schema_versions AS v
             SET state = 2, version = (SELECT max(m.version) FROM migrations AS m
                                       WHERE m.service = v.service)
             WHERE database_id = '<id>'",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn every_disorder_is_found_and_nothing_else() {
    let server = own_server(0);
    let (one, other) = (Tenant::create_in(&server).await, Tenant::create_in(&server).await);
    let mut registry = server.superuser("crm_registry").await;
    let template = sqlx::query_as(
        "SELECT d.name, d.database_id
         FROM clusters AS c JOIN databases AS d ON d.database_id = c.template_id",
    );
    let template: (String, uuid::Uuid) = template.fetch_one(&mut registry).await.unwrap();
    let filled = |text: &str| {
        text.replace("<hex>", &one.id.as_simple().to_string())
            .replace("<id>", &one.id.to_string())
            .replace("<other>", &other.id.as_simple().to_string())
            .replace("<template id>", &template.1.to_string())
            .replace("<template>", &template.0)
    };
    until(&server, "", &[]).await;

    for Disorder { broken, found, mended } in &DISORDERS {
        let expected: Vec<_> =
            found.iter().map(|(kind, subject)| (*kind, filled(subject))).collect();
        // What cannot be broken twice is not mended by anyone else.
        let once = ["RENAME", "CREATE DATABASE"].iter().any(|word| broken.contains(word));
        let broken = filled(broken);
        if once {
            run(&server, &broken).await;
        }
        until(&server, if once { "" } else { &broken }, &expected).await;
        run(&server, &filled(mended)).await;
        until(&server, "", &[]).await;
    }
    println!("{} disorders", DISORDERS.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_that_failed_is_told_as_what_it_is() {
    let server = own_server(1);
    let mut registry = server.superuser("crm_registry").await;
    let spare = "SELECT database_id FROM databases WHERE purpose = 'spare' AND step = 'ready'";
    let start = Instant::now();
    let spare: uuid::Uuid = loop {
        if let Some(spare) = sqlx::query_scalar(spare).fetch_optional(&mut registry).await.unwrap()
        {
            break spare;
        }
        assert!(start.elapsed() < PATIENCE, "no spare is made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    until(&server, "", &[]).await;

    let fail = format!(
        "UPDATE schema_versions SET version = 0, state = 4
         WHERE service = 'contacts' AND database_id = '{spare}'"
    );
    until(&server, &fail, &[(SpareFailed, format!("tenant_{}", spare.as_simple()))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_does_not_answer_is_a_finding_and_hides_no_other() {
    let server = own_server(0);
    let other = OtherCluster::start().await;
    other.set_up().await;
    let operator = Client::operator(&server);
    let mut clusters = ClusterServiceClient::new(operator.channel(server.addresses.registry));
    let request = CreateClusterRequest {
        cluster_id: "far".to_owned(),
        cluster: Some(Cluster {
            host: "127.0.0.1".to_owned(),
            port: other.port().into(),
            tls_mode: TlsMode::Disabled.into(),
            spare_target: Some(0),
            ..Cluster::default()
        }),
        password: other.password().to_owned(),
        ..CreateClusterRequest::default()
    };
    clusters.create_cluster(operator.request(request)).await.unwrap();
    until(&server, "", &[]).await;

    other.stop().await;
    let orphan = "CREATE DATABASE crm_template_999999 ALLOW_CONNECTIONS false";
    run(&server, orphan).await;

    let unreachable = (ClusterUnreachable, "clusters/far".to_owned());
    let orphan = (DatabaseOrphan, "crm_template_999999".to_owned());
    until(&server, "", &[unreachable, orphan]).await;
    other.start_again().await;
    run(&server, "DROP DATABASE crm_template_999999").await;
    until(&server, "", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_goes_on_is_no_disorder() {
    let server = own_server(2);
    let operator = Client::operator(&server);
    let client = TenantServiceClient::new(operator.channel(server.addresses.registry));
    let sagas = join_all((0..6).map(|_| async {
        let tenant = Tenant::create_in(&server).await;
        for _ in 0..3 {
            let name = tenant.tenant.name.clone();
            let request = SuspendTenantRequest { name: name.clone(), ..Default::default() };
            client.clone().suspend_tenant(operator.request(request)).await.unwrap();
            let request = ResumeTenantRequest { name, ..Default::default() };
            client.clone().resume_tenant(operator.request(request)).await.unwrap();
        }
        tenant
    }));

    let mut reports = 0;
    let mut sagas = std::pin::pin!(sagas);
    let tenants = loop {
        tokio::select! {
            tenants = &mut sagas => break tenants,
            found = found(&server) => assert_eq!(found, []),
        }
        reports += 1;
    };

    assert!(reports > 0, "no report was made meanwhile");
    // Old, and yet not left: someone holds its lock.
    let tenant = &tenants[0];
    let lock = PgAdvisoryLock::new(format!("crm fence {}", tenant.id));
    let mut registry = server.superuser("crm_registry").await;
    let held = lock.acquire(&mut registry).await.unwrap();
    let old = format!(
        "UPDATE tenants SET is_settled = false, update_time = now() - interval '1 hour'
         WHERE tenant_id = '{}'",
        tenant.id
    );
    run(&server, &old).await;
    assert_eq!(found(&server).await, []);
    held.release_now().await.unwrap();
    // The registry settles it now.
    let settled =
        format!("UPDATE tenants SET update_time = now() WHERE tenant_id = '{}'", tenant.id);
    until(&server, &settled, &[]).await;
    println!("{reports} reports");
}

#[tokio::test]
async fn an_operator_sees_what_is_out_of_order() {
    let server = own_server(0);
    let operator = Client::operator(&server);
    let mut client = ClusterServiceClient::new(operator.channel(server.addresses.registry));
    let request = CheckClustersRequest {};

    let before = client.check_clusters(operator.request(request)).await.unwrap().into_inner();
    let orphan = format!("tenant_{}", server.clock.new_id().as_simple());
    let mut postgres = server.superuser("postgres").await;
    let create = AssertSqlSafe(format!("CREATE DATABASE {orphan}"));
    sqlx::raw_sql(create).execute(&mut postgres).await.unwrap();
    let after = client.check_clusters(operator.request(request)).await.unwrap().into_inner();

    assert_eq!(before, CheckClustersResponse::default());
    let [finding] = &after.findings[..] else { unreachable!("{after:?}") };
    assert_eq!(finding.kind(), Kind::DatabaseOrphan);
    assert_eq!((finding.cluster.as_str(), &finding.subject), ("clusters/local", &orphan));
    assert_eq!(after.finding_count, 1);
    postgres.close().await.unwrap();
}
