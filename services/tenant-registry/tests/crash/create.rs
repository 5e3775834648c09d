//! CreateTenant without a spare.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crm_proto::registry::v1::tenant::State;
use crm_proto::registry::v1::{CreateTenantRequest, Tenant};
use crm_testing::{Side, Verdict};
use futures_util::future::join_all;
use tonic::Code;

use crate::installation::{Installation, LOOK_EVERY, PATIENCE, id, patiently};
use crate::points::{Harm, harm, points, rounds};

/// What is written down for good: killing a process between two of these is
/// the same anywhere.
const STEPS: [&str; 4] = ["COMMIT", "WITH stepped", "CREATE DATABASE", "UPDATE requests"];

/// How many tenants the registry makes at once.
const AT_ONCE: usize = 4;

/// Repeats a request until it is answered: it is one tenant's, which works.
/// Answers how often the call was made.
pub(crate) async fn same_tenant(
    installation: &Installation,
    request: &CreateTenantRequest,
    first: Option<Tenant>,
) -> u32 {
    let before = installation.planned(request).await;
    let (answer, calls) = patiently(async || installation.create(request).await).await;
    assert_eq!(answer.state(), State::Active);
    if let Some((planned, _)) = before {
        assert_eq!(id(&answer), planned);
    }
    if let Some(first) = first {
        assert_eq!(answer, first);
    }
    assert_eq!(installation.create(request).await.unwrap(), answer);
    installation.works(&answer).await;
    installation.is_consistent(&answer).await;
    calls
}

/// Waits until a tenant that was planned is active, without anyone's asking.
async fn taken_up(installation: &Installation, request: &CreateTenantRequest) {
    let start = Instant::now();
    while let Some((_, state)) = installation.planned(request).await
        && state != State::Active as i16
    {
        assert!(start.elapsed() < PATIENCE, "nobody takes it up");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_hangs_keeps_nobody_elses_tenant_from_being_made() {
    let installation = Installation::start(0).await;
    let requests: Vec<_> = (0..AT_ONCE).map(|_| installation.request()).collect();
    let hung = Arc::new(AtomicUsize::new(0));
    let shared = hung.clone();
    // In the saga's last step: the database is there, and not open.
    installation.link.judge(move |statement| {
        let hangs = statement.text.contains("ALTER DATABASE");
        shared.fetch_add(usize::from(hangs), Ordering::Relaxed);
        if hangs { Verdict::Hang } else { Verdict::Pass }
    });

    let hanging = join_all(requests.iter().map(|request| installation.create(request)));
    let next = async {
        let start = Instant::now();
        while hung.load(Ordering::Relaxed) < AT_ONCE {
            assert!(start.elapsed() < PATIENCE, "not all hang");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        installation.link.pass();
        let request = installation.request();
        same_tenant(&installation, &request, None).await
    };
    let (hanging, calls) = tokio::join!(hanging, next);

    for (outcome, request) in hanging.into_iter().zip(&requests) {
        assert_eq!(outcome.unwrap_err().code(), Code::Unavailable);
        same_tenant(&installation, request, None).await;
    }
    installation.all_is_consistent().await;
    println!("CreateTenant: {AT_ONCE} connections hung; {calls} calls until the next was made");
    installation.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_made_whatever_statement_of_its_making_is_cut_off() {
    let mut installation = Installation::start(0).await;
    let rounds = rounds(&installation.link).await;
    let request = installation.request();
    // What is prepared and cached on the way is there from now on.
    installation.create(&installation.request()).await.unwrap();
    let (points, made) = points(&installation.link, &rounds, installation.create(&request)).await;
    same_tenant(&installation, &request, Some(made.unwrap())).await;

    let (mut cuts, mut calls) = (0, 0);
    for point in &points {
        for side in [Side::Before, Side::After] {
            let request = installation.request();
            let came = harm(&installation.link, point, Harm::Cut(side));
            let first = installation.create(&request).await;
            installation.link.pass();
            assert!(came.load(Ordering::Relaxed), "{side:?} {point:?} did not come");
            if let Err(status) = &first {
                assert_eq!(status.code(), Code::Unavailable, "{side:?} {point:?}: {status:?}");
            }
            calls += same_tenant(&installation, &request, first.ok()).await;
            cuts += 1;
        }
    }

    let (mut kills, mut by_client) = (0, 0);
    for point in points.iter().filter(|point| point.has(&STEPS)) {
        for side in [Side::Before, Side::After] {
            let request = installation.request();
            let came = harm(&installation.link, point, Harm::Kill(side, installation.process.id()));
            let first = installation.create(&request).await;
            assert!(came.load(Ordering::Relaxed) && first.is_err(), "{side:?} {point:?}");
            kills += 1;
            if kills % 2 == 0 {
                installation.restart().await;
                by_client += 1;
            } else {
                // Nobody repeats the call before the registry itself is done.
                installation.age().await;
                installation.restart().await;
                taken_up(&installation, &request).await;
            }
            calls += same_tenant(&installation, &request, None).await;
        }
    }

    installation.all_is_consistent().await;
    println!(
        "CreateTenant: {} points, {cuts} cuts, {kills} kills ({by_client} repeated at once), \
         {calls} repeated calls",
        points.len()
    );
    assert!(points.len() > 30 && kills > 10, "{points:#?}");
    installation.stop().await;
}
