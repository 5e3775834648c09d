//! P7: calls spread over many tenants with fewer sessions than tenants, beside
//! the same calls on one of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crm_proto::contacts::v1::GetContactRequest;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use sqlx::Connection as _;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::client::{Bearer, Operator, contact_clients};
use crate::measure::{Bench, Caller};
use crate::report::{Row, quantile};
use crate::{Failure, say};

/// How often PostgreSQL's sessions are counted.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Within which time a process tells the registry what its tenants did.
const REPORTED_WITHIN: Duration = Duration::from_secs(7);
/// The exponent of Zipf's law.
const ZIPF: f64 = 1.1;

/// Reads a contact that there is not, of a tenant by chance.
#[derive(Clone)]
struct Roamer {
    client: ContactServiceClient<Channel>,
    tenants: Arc<Vec<Bearer>>,
    /// Up to which number of 0 to 1 each tenant is chosen.
    chances: Arc<Vec<f64>>,
    random: u64,
    times: Arc<Mutex<Vec<f64>>>,
}

impl Roamer {
    /// The next number of 0 to 1 (Marsaglia, Xorshift RNGs, 2003).
    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Caller for Roamer {
    async fn call(&mut self) -> Result<(), Status> {
        let chance = self.random();
        let tenant = self.chances.partition_point(|&upto| upto < chance);
        let bearer = &self.tenants[tenant.min(self.tenants.len() - 1)];
        let message = GetContactRequest { name: format!("contacts/{}", Uuid::nil()) };
        let started = Instant::now();
        match self.client.get_contact(bearer.request(message)).await {
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status),
            #[expect(clippy::disallowed_methods, reason = "what a client says, to itself")]
            Ok(_) => return Err(Status::data_loss("a new tenant has a contact")),
        }
        let millis = started.elapsed().as_secs_f64() * 1000.0;
        self.times.lock().unwrap_or_else(PoisonError::into_inner).push(millis);
        Ok(())
    }
}

/// A line for each way to spread the calls, and number of calls in flight.
pub(crate) async fn read(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let tenants = Tenants::make(bench).await?;
    bench.suite.checkpoint().await?;
    let count = bench.options.many_tenants;
    let ways = [
        ("evenly", chances(count, |_| 1.0)),
        ("by Zipf, s = 1.1", chances(count, |rank| (f64::from(rank) + 1.0).powf(-ZIPF))),
    ];
    let mut rows = Vec::new();
    for (way, chances) in ways {
        for &in_flight in &bench.options.in_flight {
            say(&format!("calls on {count} tenants, {way}, {in_flight} in flight"));
            rows.push(spread(bench, &tenants, way, chances.clone(), in_flight).await?);
        }
    }
    Ok(rows)
}

/// Tenants that have nothing.
struct Tenants {
    names: Vec<String>,
    bearers: Arc<Vec<Bearer>>,
}

impl Tenants {
    async fn make(bench: &Bench) -> Result<Self, Failure> {
        let count = bench.options.many_tenants;
        say(&format!("making {count} tenants"));
        let mut operator = Operator::connect(&bench.suite).await?;
        let (mut names, mut bearers) = (Vec::new(), Vec::new());
        for index in 0..count {
            let slug = format!("many-{index}");
            names.push(operator.create_tenant(&slug).await?);
            bearers.push(bench.suite.token(Some(&slug)).await?);
        }
        Ok(Self { names, bearers: bearers.into() })
    }

    /// How many sessions and calls they have had in all.
    async fn activity(&self, operator: &mut Operator) -> Result<(i64, i64), Failure> {
        sleep(REPORTED_WITHIN).await;
        let (mut opened, mut calls) = (0, 0);
        for name in &self.names {
            for process in operator.activity(name).await?.processes {
                opened += process.sessions_opened;
                calls += process.calls;
            }
        }
        Ok((opened, calls))
    }
}

async fn spread(
    bench: &Bench,
    tenants: &Tenants,
    way: &str,
    chances: Arc<Vec<f64>>,
    in_flight: u32,
) -> Result<Row, Failure> {
    let suite = &bench.suite;
    let mut operator = Operator::connect(suite).await?;
    let clients = contact_clients(suite.contacts(), in_flight, bench.options.channels).await?;
    let times = Arc::new(Mutex::default());
    let callers = |chances: &Arc<Vec<f64>>, times: &Arc<Mutex<Vec<f64>>>| -> Vec<Roamer> {
        let numbered = clients.iter().zip(0x9E37_79B9_7F4A_7C15..);
        let caller = |(client, random): (&ContactServiceClient<Channel>, u64)| Roamer {
            client: client.clone(),
            tenants: tenants.bearers.clone(),
            chances: chances.clone(),
            random,
            times: times.clone(),
        };
        numbered.map(caller).collect()
    };
    let one = Arc::new(vec![1.0]);

    let before = tenants.activity(&mut operator).await?;
    let done = Arc::new(AtomicBool::new(false));
    let watch = tokio::spawn(most_sessions(suite.superuser("postgres").await?, done.clone()));
    let readings = bench
        .alternate(
            async || bench.load(callers(&chances, &times)).await,
            async || bench.load(callers(&one, &Arc::default())).await,
        )
        .await?;
    done.store(true, Ordering::Relaxed);
    let (most, looks) = watch.await??;
    let after = tenants.activity(&mut operator).await?;

    // The calls on one tenant opened a few sessions, and no more.
    let times = times.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let cold = (after.0 - before.0) as f64 / times.len() as f64;
    let of_cold = |share: f64| quantile(&times, 1.0 - cold * (1.0 - share));
    let what = format!(
        "GetContact on {} tenants, {way}, {in_flight} in flight: at most {most} sessions at \
         {looks} looks, {:.1} % cold calls of p50 {:.1} ms, p95 {:.1} ms; on one tenant",
        tenants.names.len(),
        cold * 100.0,
        of_cold(0.5),
        of_cold(0.95),
    );
    Ok(Row::of_rates(what, &readings))
}

/// The most sessions of contacts at any look, and how many looks there were.
async fn most_sessions(
    mut session: sqlx::PgConnection,
    done: Arc<AtomicBool>,
) -> Result<(i64, u64), sqlx::Error> {
    let (mut most, mut looks) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crm-contacts'";
        most = most.max(sqlx::query_scalar(count).fetch_one(&mut session).await?);
        looks += 1;
        sleep(LOOK_EVERY).await;
    }
    session.close().await?;
    Ok((most, looks))
}

/// Up to which number of 0 to 1 each tenant is chosen, by its weight.
fn chances(count: u32, weight: impl Fn(u32) -> f64) -> Arc<Vec<f64>> {
    let weights: Vec<f64> = (0..count).map(weight).collect();
    let all: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let chances = weights.iter().map(|weight| {
        sum += weight / all;
        sum
    });
    Arc::new(chances.collect())
}
