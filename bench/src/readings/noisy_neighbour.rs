//! P8: what one tenant's calls take while another asks the same service for
//! its largest pages, beside the same calls alone.

use std::time::Duration;

use crm_proto::contacts::v1::GetContactRequest;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::get_contact::fill;
use crate::client::contact_clients;
use crate::cpu::Usage;
use crate::flood::{Flood, IN_FLIGHT, PAGE_SIZE, Pages};
use crate::measure::{Bench, Reading, Readings};
use crate::report::{Row, quantile};
use crate::{Failure, say};

const NEIGHBOUR: &str = "bench-calm";
const NOISY: &str = "bench-noisy";
/// How many callers the neighbour has.
const CALLERS: u32 = 4;
/// How often each of them calls.
const CALL_EVERY: Duration = Duration::from_millis(20);
/// How long the flood goes on before it counts.
const WARM_UP: Duration = Duration::from_secs(1);

/// One line: the times of the neighbour's calls.
pub(crate) async fn read(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut names = Vec::new();
    for slug in [NOISY, NEIGHBOUR] {
        let login = bench.tenant(slug).await?;
        let mut session = bench.suite.superuser(&login.database).await?;
        names = fill(&mut session, bench.options.contacts).await?;
    }
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    let mut pages = Pages::default();
    for round in 1..=bench.options.rounds {
        say(&format!("GetContact alone and beside a flood, round {round}"));
        alone.extend(calls(bench, &names).await?);
        let token = bench.suite.token_text(Some(NOISY)).await?;
        let flood = Flood::spawn(bench.suite.contacts(), &token).await?;
        sleep(WARM_UP).await;
        beside.extend(calls(bench, &names).await?);
        let Pages { served, refused } = flood.stop().await?;
        pages.served += served;
        pages.refused += refused;
    }
    let ratio = quantile(&beside, 0.99) / quantile(&alone, 0.99);
    let share = 100.0 * beside.len() as f64 / alone.len() as f64;
    let what = format!(
        "GetContact every {} ms by {CALLERS}, beside {IN_FLIGHT} × ListContacts of {PAGE_SIZE} of \
         another tenant ({} pages, {} refused): {ratio:.1} × the p99, {share:.1} % of the calls; \
         alone",
        CALL_EVERY.as_millis(),
        pages.served,
        pages.refused,
    );
    let readings = Readings { crm: as_readings(&beside), peer: as_readings(&alone) };
    Ok(vec![Row::of_times(&what, &readings, 99)])
}

/// What the neighbour's calls took, in milliseconds. A caller that has to wait
/// for an answer makes fewer.
async fn calls(bench: &Bench, names: &[String]) -> Result<Vec<f64>, Failure> {
    let bearer = bench.suite.token(Some(NEIGHBOUR)).await?;
    let clients = contact_clients(bench.suite.contacts(), CALLERS, CALLERS).await?;
    let end = Instant::now() + Duration::from_secs(bench.options.seconds);
    let mut callers = JoinSet::new();
    for (mut client, names) in clients.into_iter().zip(names.chunks(names.len() / 4)) {
        let (bearer, names) = (bearer.clone(), names.to_vec());
        callers.spawn(async move {
            let mut millis = Vec::new();
            let mut ticks = interval(CALL_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for name in names.iter().cycle() {
                ticks.tick().await;
                let began = Instant::now();
                if began >= end {
                    break;
                }
                let message = GetContactRequest { name: name.clone() };
                client.get_contact(bearer.request(message)).await?;
                millis.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            Ok::<_, tonic::Status>(millis)
        });
    }
    let mut all = Vec::new();
    while let Some(millis) = callers.join_next().await {
        all.extend(millis??);
    }
    Ok(all)
}

fn as_readings(millis: &[f64]) -> Vec<Reading> {
    let reading = |millis: &f64| Reading { rate: 1000.0 / millis, usage: Usage::default() };
    millis.iter().map(reading).collect()
}
