//! Every token of the corpus at every listener: what is wrong with it is seen,
//! and nothing is done for its bearer.

use std::collections::BTreeMap;
use std::time::Duration;

use crm_testing::server;
use futures_util::future::join_all;
use sqlx::Connection as _;
use tokio::time::{Instant, sleep};

use crate::authorization::tell;
use crate::door::{Door, Kind, Writes};
use crate::forge::{Forge, Mutation};

fn corpus() -> Vec<Mutation> {
    let corpus: Vec<Mutation> = serde_json::from_str(include_str!("tokens.json")).unwrap();
    let names: BTreeMap<_, _> = corpus.iter().map(|line| (&line.name, &line.why)).collect();
    assert_eq!(names.len(), corpus.len(), "a name stands twice");
    assert!(names.values().all(|why| !why.is_empty()), "a line does not say why");
    corpus
}

/// The faults of one door, and how many refusals and how many consents were
/// wanted there.
#[derive(Debug, Default)]
struct Found {
    faults: Vec<String>,
    refusals: usize,
    consents: usize,
}

impl Found {
    fn expect(&mut self, what: &str, answer: &str, expected: &str) {
        match expected {
            "OK" => self.consents += 1,
            _ => self.refusals += 1,
        }
        if answer != expected {
            self.faults.push(format!("{what}: {answer}, not {expected}"));
        }
    }
}

async fn try_door(door: &Door, corpus: &[Mutation], forge: &Forge, writes: &Writes) -> Found {
    let mut found = Found::default();
    let call = |mutation: &Mutation, token: &str| {
        let mut call = door.call();
        call.set("authorization", mutation.authorization(token));
        call
    };
    for mutation in corpus.iter().filter(|mutation| mutation.concerns(door.kind)) {
        let (token, twin) = forge.tokens(mutation, door.kind);
        let what = format!("{}: {}", door.name, mutation.name);
        let pretended = door.answer(&call(mutation, &token), &writes.request(door, true)).await;
        found.expect(&what, &pretended, &mutation.answer);
        if mutation.answer == "OK" {
            continue;
        }
        let meant = door.answer(&call(mutation, &token), &writes.request(door, false)).await;
        found.expect(&format!("{what}, a write"), &meant, &mutation.answer);
        // What it was made of is good, and the listener still serves.
        let right = door.answer(&call(&corpus[0], &twin), &writes.request(door, true)).await;
        found.expect(&format!("{what}, unchanged"), &right, "OK");
    }
    let count = writes.count(door).await;
    if count != 0 {
        found.faults.push(format!("{}: {count} writes were done", door.name));
    }
    found
}

#[tokio::test]
async fn no_listener_takes_a_token_that_nobody_issued() {
    let writes = Writes::prepare().await;
    let forge = Forge::new(&writes.home).await;
    let corpus = corpus();
    let doors = Door::all().await;
    let log = writes.log().await;

    let found = join_all(doors.iter().map(|door| try_door(door, &corpus, &forge, &writes))).await;

    let faults: Vec<_> = found.iter().flat_map(|found| found.faults.clone()).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(writes.log().await, log, "something was written");
    for door in &doors {
        let (_, token) = forge.tokens(&corpus[0], door.kind);
        let mut call = door.call();
        call.set("authorization", corpus[0].authorization(&token));
        let answer = door.answer(&call, &writes.request(door, false)).await;
        assert_eq!((answer.as_str(), writes.count(door).await), ("OK", 1), "{}", door.name);
    }
    let mutations = corpus.iter().filter(|mutation| mutation.answer != "OK").count();
    let sum = |count: fn(&Found) -> usize| found.iter().map(count).sum::<usize>();
    tell(&format!(
        "{mutations} mutations of a token at {} listeners: {} refusals, {} consents",
        doors.len(),
        sum(|found| found.refusals),
        sum(|found| found.consents),
    ));
}

/// Changes a tenant's generation and access version as the registry would, and
/// tells of it.
async fn void_tokens(writes: &Writes, generation: i32, access_version: i64) {
    let mut registry = server().superuser("crm_registry").await;
    sqlx::query(
        "WITH number AS (UPDATE tenant_events SET last = last + 1 RETURNING last)
         UPDATE tenants
         SET generation = $2, access_version = $3, event = number.last
         FROM number
         WHERE tenant_id = $1",
    )
    .bind(writes.home.tenant.id)
    .bind(generation)
    .bind(access_version)
    .execute(&mut registry)
    .await
    .unwrap();
    registry.close().await.unwrap();
}

#[tokio::test]
async fn tokens_of_before_are_void_everywhere_soon_after_the_registry_says_so() {
    let writes = Writes::prepare().await;
    let forge = Forge::new(&writes.home).await;
    let all = Door::all().await;
    let doors: Vec<_> = all.iter().filter(|door| door.kind == Kind::Tenant).collect();
    let token = |generation: u32, version: u64| {
        let line = format!(
            r#"{{"name": "", "why": "", "answer": "",
                 "claims": {{"set": {{"gen": {generation}, "ver": {version}}}}}}}"#
        );
        let line: Mutation = serde_json::from_str(&line).unwrap();
        let (token, _) = forge.tokens(&line, Kind::Tenant);
        line.authorization(&token)
    };
    let answer = async |door: &Door, authorization: &[Vec<u8>], validate_only| {
        let mut call = door.call();
        call.set("authorization", authorization.to_vec());
        door.answer(&call, &writes.request(door, validate_only)).await
    };
    // The very tokens that were taken a moment ago, and are in every cache.
    let [old, newer] = [token(1, 1), token(1, 2)];
    for door in &doors {
        assert_eq!(answer(door, &old, true).await, "OK", "{}", door.name);
        assert_eq!(answer(door, &newer, true).await, "OK", "{}", door.name);
    }

    for (generation, version, void, good) in
        [(1, 2, vec![&old], &newer), (2, 2, vec![&old, &newer], &token(2, 2))]
    {
        void_tokens(&writes, generation, version).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        for door in &doors {
            while answer(door, void[void.len() - 1], true).await == "OK" {
                assert!(Instant::now() < deadline, "{} takes void tokens", door.name);
                sleep(Duration::from_millis(20)).await;
            }
            for void in &void {
                for validate_only in [true, false] {
                    let refused = answer(door, void, validate_only).await;
                    assert_eq!(refused, "Unauthenticated TOKEN_INVALID", "{}", door.name);
                }
            }
            assert_eq!(answer(door, good, true).await, "OK", "{}", door.name);
            assert_eq!(writes.count(door).await, 0, "{}", door.name);
        }
    }
}
