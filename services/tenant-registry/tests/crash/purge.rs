//! Removing a deleted tenant for good.

use std::time::Instant;

use crm_proto::registry::v1::{DeleteTenantRequest, PurgeTenantRequest};

use crate::installation::{Installation, LOOK_EVERY, PATIENCE, id, patiently};
use crate::points::cut_everything_twice;

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_purged_whatever_statement_is_cut_off() {
    let installation = Installation::start(0).await;
    let (operator, client) = installation.tenants();
    let mut tenants = Vec::new();
    for _ in 0..2 {
        let tenant = installation.create(&installation.request()).await.unwrap();
        installation.works(&tenant).await;
        let request = DeleteTenantRequest { name: tenant.name.clone(), ..Default::default() };
        client.clone().delete_tenant(operator.request(request)).await.unwrap();
        tenants.push(tenant);
    }

    let all = cut_everything_twice(&installation.link);
    let (mut start, mut cuts) = (Instant::now(), 0);
    for tenant in &tenants {
        loop {
            let request = PurgeTenantRequest {
                name: tenant.name.clone(),
                uid: id(tenant).to_string(),
                validate_only: false,
            };
            let asked = patiently(async || {
                client.clone().purge_tenant(operator.request(request.clone())).await
            });
            let certificate = asked.await.0.into_inner().certificate.unwrap();
            if certificate.purge_time.is_some() {
                break;
            }
            // It takes a round for each cut.
            let so_far = all.lock().unwrap().len();
            if so_far > cuts {
                (start, cuts) = (Instant::now(), so_far);
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{}: {:?}",
                tenant.name,
                all.lock().unwrap().last()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    installation.link.pass();

    let cuts = all.lock().unwrap().clone();
    for step in ["purge_requester = $4", "DROP DATABASE", "bury_database", "WITH gone"] {
        let count = cuts.iter().filter(|(statement, _)| statement.text.contains(step)).count();
        assert_eq!(count, if step == "DROP DATABASE" { count.max(2) } else { 2 }, "{step}");
    }
    let start = Instant::now();
    while !installation.consistency.report().await.unwrap().is_empty() {
        assert!(start.elapsed() < PATIENCE, "{:?}", installation.consistency.report().await);
    }
    println!("purge: {} cuts", cuts.len());
    installation.stop().await;
}
