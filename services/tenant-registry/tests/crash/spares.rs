//! Spares: their making, and CreateTenant from one.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crm_tenant_registry::consistency::FindingKind;
use crm_testing::Side;
use sqlx::Connection as _;
use tonic::Code;
use uuid::Uuid;

use crate::create::same_tenant;
use crate::installation::{Installation, LOOK_EVERY, PATIENCE};
use crate::points::{Harm, Point, cut_everything_twice, harm, is_registrys, points, rounds};

/// More than this test makes: the registry never stops making them.
const ENDLESS: u32 = 1000;
/// More than the tenants that this test makes of them.
const ENOUGH: usize = 34;
/// How many spares must be made in a row without a cut.
const UNDISTURBED: usize = 3;

/// The spares that can be claimed, and how many are in the making.
async fn spares(installation: &Installation) -> (HashSet<Uuid>, usize) {
    let mut registry = installation.registry().await;
    let all: Vec<(Uuid, bool)> =
        sqlx::query_as("SELECT database_id, step = 'ready' FROM databases WHERE purpose = 'spare'")
            .fetch_all(&mut registry)
            .await
            .unwrap();
    registry.close().await.unwrap();
    let ready: HashSet<_> = all.iter().filter(|spare| spare.1).map(|spare| spare.0).collect();
    let making = all.len() - ready.len();
    (ready, making)
}

/// Has no more spares made once there are enough.
async fn stop_making(installation: &Installation) {
    let (mut start, mut made) = (Instant::now(), 0);
    loop {
        let ready = spares(installation).await.0.len();
        if ready >= ENOUGH {
            break;
        }
        if ready > made {
            (start, made) = (Instant::now(), ready);
        }
        assert!(start.elapsed() < PATIENCE, "no spares are made");
        installation.age().await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut registry = installation.registry().await;
    let stop = "UPDATE clusters SET spare_target = 0";
    sqlx::raw_sql(stop).execute(&mut registry).await.unwrap();
    let start = Instant::now();
    while spares(installation).await.1 > 0 {
        assert!(start.elapsed() < PATIENCE, "a spare is not finished");
        installation.age().await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_is_made_whatever_statement_of_its_making_is_cut_off() {
    let mut installation = Installation::start(ENDLESS).await;

    // Whatever the registry does, and each round in it.
    let all = cut_everything_twice(&installation.link);
    let (mut cuts, mut undisturbed, mut ready) = (0, 0, HashSet::new());
    let mut start = Instant::now();
    while undisturbed < UNDISTURBED {
        assert!(start.elapsed() < PATIENCE, "no spare is made: {:?}", all.lock().unwrap().last());
        // What was cut off is taken up as if it had been so for long.
        installation.age().await;
        let (now, _) = spares(&installation).await;
        let made = now.difference(&ready).count();
        let so_far = all.lock().unwrap().len();
        undisturbed = if so_far == cuts { undisturbed + made } else { 0 };
        if made > 0 || so_far > cuts {
            start = Instant::now();
        }
        (cuts, ready) = (so_far, now);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    installation.link.pass();
    let texts: HashSet<_> = all.lock().unwrap().iter().map(|(cut, _)| cut.text.clone()).collect();
    for step in ["refill_time", "CREATE DATABASE", "REVOKE ALL", "ensure_login", "ALTER DATABASE"] {
        assert!(texts.iter().any(|text| text.contains(step)), "{step} was not cut");
    }

    let kills = kill_at_each_step(&mut installation).await;
    stop_making(&installation).await;
    let (ready, _) = spares(&installation).await;
    installation.all_is_consistent().await;
    println!("spares: {} statements, {cuts} cuts, {kills} kills", texts.len());

    let spoiled = claims(&mut installation, ready).await;
    let findings = installation.consistency.report().await.unwrap();
    let told = findings.iter().map(|finding| (finding.kind, finding.subject.clone()));
    let spoiled = spoiled.iter().map(|id| format!("tenant_{}", id.as_simple()));
    let expected: HashSet<_> = spoiled.map(|name| (FindingKind::SpareSpoiled, name)).collect();
    assert_eq!(told.collect::<HashSet<_>>(), expected);
    installation.stop().await;
}

/// Kills the process before and after each step that it writes down, and sees
/// the next process finish the spare.
async fn kill_at_each_step(installation: &mut Installation) -> u32 {
    let mut kills = 0;
    for occurrence in 1..=4 {
        for side in [Side::Before, Side::After] {
            let statement = crm_testing::Statement {
                user: "crm_registry".to_owned(),
                text: stepped(installation).await,
            };
            let point = Point { statement, occurrence };
            let pid = installation.process.id();
            let came = harm(&installation.link, &point, Harm::Kill(side, pid));
            let start = Instant::now();
            while !came.load(Ordering::Relaxed) {
                assert!(start.elapsed() < PATIENCE, "{side:?} {point:?} did not come");
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let before = spares(installation).await;
            installation.age().await;
            installation.restart().await;
            let start = Instant::now();
            while spares(installation).await.0.len() <= before.0.len() {
                assert!(start.elapsed() < PATIENCE, "{side:?} {point:?}: nobody takes it up");
                tokio::time::sleep(LOOK_EVERY).await;
            }
            kills += 1;
        }
    }
    kills
}

/// The text of the statement that writes a step down.
async fn stepped(installation: &Installation) -> String {
    let found = std::sync::Arc::new(std::sync::Mutex::new(None));
    let shared = found.clone();
    installation.link.judge(move |statement| {
        if is_registrys(statement) && statement.text.contains("WITH stepped") {
            *shared.lock().unwrap() = Some(statement.text.clone());
        }
        crm_testing::Verdict::Pass
    });
    let start = Instant::now();
    loop {
        if let Some(text) = found.lock().unwrap().take() {
            return text;
        }
        assert!(start.elapsed() < PATIENCE, "no spare is made");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Creates tenants from spares, each cut off at another statement. Answers the
/// spares that were claimed for tenants which there are not.
async fn claims(installation: &mut Installation, mut ready: HashSet<Uuid>) -> Vec<Uuid> {
    let rounds = rounds(&installation.link).await;
    installation.create(&installation.request()).await.unwrap();
    let request = installation.request();
    let (points, made) = points(&installation.link, &rounds, installation.create(&request)).await;
    same_tenant(installation, &request, Some(made.unwrap())).await;

    let (mut cuts, mut calls, mut kills) = (0, 0, 0);
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
            calls += same_tenant(installation, &request, first.ok()).await;
            cuts += 1;
        }
    }
    for side in [Side::Before, Side::After] {
        let point = points.iter().find(|point| point.has(&["COMMIT"])).unwrap();
        let request = installation.request();
        let pid = installation.process.id();
        let came = harm(&installation.link, point, Harm::Kill(side, pid));
        assert!(installation.create(&request).await.is_err() && came.load(Ordering::Relaxed));
        installation.restart().await;
        calls += same_tenant(installation, &request, None).await;
        let (planned, _) = installation.planned(&request).await.unwrap();
        assert!(ready.contains(&planned), "it is no spare's");
        kills += 1;
    }
    println!(
        "CreateTenant from a spare: {} points, {cuts} cuts, {kills} kills, {calls} repeated calls",
        points.len()
    );
    let left = spares(installation).await.0;
    let spoiled = "SELECT database_id FROM databases WHERE purpose = 'spoiled'";
    let spoiled: Vec<Uuid> =
        sqlx::query_scalar(spoiled).fetch_all(&mut installation.registry().await).await.unwrap();
    // After the claim, before the commit, and killed there.
    assert_eq!(spoiled.len(), 3, "{spoiled:?}");
    ready.retain(|spare| !spoiled.contains(spare));
    // One each: what was cut off before its claim took none.
    assert_eq!(ready.len() - left.len(), cuts + kills + 2, "spares were lost");
    spoiled
}
