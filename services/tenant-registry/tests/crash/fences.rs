//! SuspendTenant, ResumeTenant, DeleteTenant, UndeleteTenant.

use std::sync::atomic::Ordering;

use crm_proto::registry::v1::Tenant;
use crm_proto::registry::v1::tenant::State;
use crm_proto::registry::v1::{
    DeleteTenantRequest, ResumeTenantRequest, SuspendTenantRequest, UndeleteTenantRequest,
};
use crm_testing::Side;
use tonic::{Code, Status};

use crate::installation::{Installation, LOOK_EVERY, PATIENCE, id, patiently};
use crate::points::{Harm, Point, harm, points, rounds};

/// What is written down for good.
const STEPS: [&str; 3] = ["COMMIT", "enforce_state", "WITH next"];

/// What is done to a tenant, and what it becomes; in this order it ends as it
/// began.
const VERBS: [(Verb, State); 4] = [
    (Verb::Suspend, State::Suspended),
    (Verb::Resume, State::Active),
    (Verb::Delete, State::Deleted),
    (Verb::Undelete, State::Active),
];

#[derive(Clone, Copy, Debug)]
enum Verb {
    Suspend,
    Resume,
    Delete,
    Undelete,
}

async fn act(
    installation: &Installation,
    verb: Verb,
    name: &str,
    request_id: &str,
) -> Result<Tenant, Status> {
    let (operator, mut client) = installation.tenants();
    let (name, request_id) = (name.to_owned(), request_id.to_owned());
    let answer = match verb {
        Verb::Suspend => {
            let message = SuspendTenantRequest { name, request_id, ..Default::default() };
            client.suspend_tenant(operator.request(message)).await
        }
        Verb::Resume => {
            let message = ResumeTenantRequest { name, request_id, ..Default::default() };
            client.resume_tenant(operator.request(message)).await
        }
        Verb::Delete => {
            let message = DeleteTenantRequest { name, request_id, ..Default::default() };
            client.delete_tenant(operator.request(message)).await
        }
        Verb::Undelete => {
            let message = UndeleteTenantRequest { name, request_id, ..Default::default() };
            client.undelete_tenant(operator.request(message)).await
        }
    };
    Ok(answer?.into_inner())
}

/// Whether each login of the tenant may log in, as PostgreSQL has it.
async fn logins(installation: &Installation, tenant: &Tenant) -> Vec<bool> {
    let logins =
        sqlx::query_scalar("SELECT rolcanlogin FROM pg_roles WHERE rolname ~ ('^t_' || $1)");
    let logins = logins.bind(id(tenant).as_simple().to_string());
    logins.fetch_all(&mut installation.database("postgres").await).await.unwrap()
}

/// Waits until what was written down is enforced, without anyone's asking.
async fn settled(installation: &Installation, tenant: &Tenant) {
    let start = std::time::Instant::now();
    let mut registry = installation.registry().await;
    loop {
        let settled = sqlx::query_scalar("SELECT is_settled FROM tenants WHERE tenant_id = $1");
        let settled: bool = settled.bind(id(tenant)).fetch_one(&mut registry).await.unwrap();
        if settled {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "nobody takes it up");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Repeats a request until it is answered, and sees that it is enforced.
async fn holds(
    installation: &Installation,
    (verb, state): (Verb, State),
    tenant: &Tenant,
    request_id: &str,
    first: Option<Tenant>,
) -> u32 {
    let (answer, calls) =
        patiently(async || act(installation, verb, &tenant.name, request_id).await).await;
    assert_eq!((answer.state(), id(&answer)), (state, id(tenant)));
    if let Some(first) = first {
        assert_eq!(answer, first);
    }
    assert_eq!(logins(installation, tenant).await, [state == State::Active; 2]);
    if state == State::Active {
        installation.works(tenant).await;
    }
    installation.is_consistent(tenant).await;
    calls
}

/// Kills the process before and after each step that is written down.
async fn kill_at_each_step(
    installation: &mut Installation,
    tenant: &Tenant,
    found: &[Vec<Point>],
) -> u32 {
    let mut kills = 0;
    for step in STEPS {
        for side in [Side::Before, Side::After] {
            for (becomes, points) in VERBS.iter().zip(found) {
                let point = points.iter().find(|point| point.has(&[step])).unwrap();
                let request_id = installation.clock.new_id().to_string();
                let pid = installation.process.id();
                let came = harm(&installation.link, point, Harm::Kill(side, pid));
                let first = act(installation, becomes.0, &tenant.name, &request_id).await;
                assert!(came.load(Ordering::Relaxed) && first.is_err(), "{side:?} {point:?}");
                installation.restart().await;
                // The others are not repeated before the registry is done.
                let is_repeated_at_once = (kills + kills / 4) % 2 == 0;
                kills += 1;
                if !is_repeated_at_once {
                    settled(installation, tenant).await;
                }
                holds(installation, *becomes, tenant, &request_id, None).await;
            }
        }
    }
    kills
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_enforced_whatever_statement_of_its_change_is_cut_off() {
    let mut installation = Installation::start(0).await;
    let tenant = installation.create(&installation.request()).await.unwrap();
    let rounds = rounds(&installation.link).await;
    let mut found = Vec::new();
    for (verb, _) in VERBS {
        let request_id = installation.clock.new_id().to_string();
        let saga = act(&installation, verb, &tenant.name, &request_id);
        found.push(points(&installation.link, &rounds, saga).await.0);
    }

    let (mut cuts, mut calls) = (0, 0);
    // As many rounds through the states as the longest way has points.
    let most = found.iter().map(Vec::len).max().unwrap();
    for index in 0..most {
        for side in [Side::Before, Side::After] {
            for (becomes, points) in VERBS.iter().zip(&found) {
                let point = &points[index.min(points.len() - 1)];
                let request_id = installation.clock.new_id().to_string();
                let came = harm(&installation.link, point, Harm::Cut(side));
                let first = act(&installation, becomes.0, &tenant.name, &request_id).await;
                installation.link.pass();
                assert!(came.load(Ordering::Relaxed), "{becomes:?} {side:?} {point:?}");
                if let Err(status) = &first {
                    let code = status.code();
                    assert_eq!(code, Code::Unavailable, "{becomes:?} {side:?} {point:?}");
                }
                calls += holds(&installation, *becomes, &tenant, &request_id, first.ok()).await;
                cuts += 1;
            }
        }
    }

    let kills = kill_at_each_step(&mut installation, &tenant, &found).await;
    installation.all_is_consistent().await;
    let points: usize = found.iter().map(Vec::len).sum();
    println!(
        "states: {points} points, {cuts} cuts, {kills} kills (every other repeated at once), \
         {calls} repeated calls after cuts"
    );
    installation.stop().await;
}
