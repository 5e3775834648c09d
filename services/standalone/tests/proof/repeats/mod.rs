//! Calls that are cut off, and repeated at another replica: whatever had become
//! of the first, there is one write, and every repeat has the same answer.

mod fresh;
mod suite;

use std::time::{Duration, Instant};

use crm_testing::{Channel, reason};
use prost::bytes::Bytes;
use prost_reflect::{DynamicMessage, Value};
use tokio::time::sleep;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::methods::{Method, methods};
use suite::{Suite, Written};

/// How often each method is cut off.
const CUTS: u32 = 8;
/// How often CreateCluster is: each time takes a PostgreSQL.
const CUTS_OF_CLUSTERS: u32 = 4;
/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// When a refused repeat is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(20);
/// What docs/errors.md says to repeat as it is.
const REPEATABLE: [&str; 5] = [
    "OVERLOADED",
    "DEPENDENCY_UNAVAILABLE",
    "SESSIONS_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
];

/// A method at both replicas.
struct Subject<'s> {
    suite: &'s Suite,
    method: &'s Method,
    caller: MetadataMap,
    here: Channel,
    there: Channel,
    /// What a call takes that is not cut off.
    latency: Duration,
    /// What one write adds.
    once: Written,
    /// The states of what it answers.
    states: Vec<i32>,
}

/// What became of the cuts.
#[derive(Debug, Default)]
struct Tally {
    cuts: u32,
    /// Those that came before an answer.
    in_flight: u32,
    /// Those of them after which it was looked whether it was written already.
    looked_at: u32,
    written: u32,
    /// Repeats that had to be repeated.
    refused: u32,
}

/// The methods whose requests have a `request_id`.
fn repeatable() -> Vec<Method> {
    let methods: Vec<_> = methods()
        .into_iter()
        .filter(|method| method.input().get_field_by_name("request_id").is_some())
        .collect();
    assert!(methods.len() >= 16, "methods were lost: {}", methods.len());
    methods
}

impl<'s> Subject<'s> {
    /// Makes one call that is not cut off, to see what it takes and writes.
    async fn new(suite: &'s Suite, method: &'s Method, request: Bytes) -> Self {
        let (here, there) = suite.channels(method);
        let caller = suite.caller(method);
        let (latency, once, states) = <_>::default();
        let mut this = Self { suite, method, caller, here, there, latency, once, states };
        let before = suite.written(method).await;
        let began = Instant::now();
        let answer = this.call(&this.here, &request).await.unwrap();
        this.latency = began.elapsed();
        this.once = suite.written(method).await - before;
        assert_eq!(this.once.writes, 1, "{}", method.short_name());
        this.states = states_in(method, &answer);
        suite.keep(method, &answer);
        this
    }

    async fn call(&self, channel: &Channel, request: &Bytes) -> Result<Bytes, Status> {
        self.method.call_on(channel.clone(), self.caller.clone(), request.clone()).await
    }

    /// Cuts a call off after this time; `Some`: the answer was there before.
    async fn cut(&self, request: &Bytes, after: Duration) -> Option<Result<Bytes, Status>> {
        tokio::select! {
            biased;
            answer = self.call(&self.here, request) => Some(answer),
            () = sleep(after) => None,
        }
    }

    /// Repeats a call until it is answered, and says how often it was refused.
    async fn repeat(&self, channel: &Channel, request: &Bytes) -> (Bytes, u32) {
        let until = Instant::now() + PATIENCE;
        let mut refused = 0;
        loop {
            let status = match self.call(channel, request).await {
                Ok(answer) => return (answer, refused),
                Err(status) => status,
            };
            let name = self.method.short_name();
            assert!(REPEATABLE.contains(&reason(&status).as_str()), "{name}: {status:?}");
            assert!(Instant::now() < until, "{name} is refused again and again: {status:?}");
            refused += 1;
            sleep(REPEAT_AFTER).await;
        }
    }

    /// Cuts a call off at this part of its time, and repeats it at both
    /// replicas: in turn, after a look, or at once and together. Answers what
    /// was answered.
    async fn cut_and_repeat(
        &mut self,
        request: &Bytes,
        part: f64,
        in_turn: bool,
        tally: &mut Tally,
    ) -> Bytes {
        let before = self.suite.written(self.method).await;
        let began = Instant::now();
        let answer = self.cut(request, self.latency.mul_f64(part)).await;
        tally.cuts += 1;
        tally.in_flight += u32::from(answer.is_none());
        if answer.is_some() {
            // It takes less than it was thought to.
            self.latency = began.elapsed();
        } else if in_turn {
            let written = self.suite.written(self.method).await - before;
            tally.looked_at += 1;
            tally.written += u32::from(written.writes > 0);
        }
        let (there, here) = if in_turn {
            let there = self.repeat(&self.there, request).await;
            (there, self.repeat(&self.here, request).await)
        } else {
            tokio::join!(self.repeat(&self.there, request), self.repeat(&self.here, request))
        };
        tally.refused += there.1 + here.1;

        let name = self.method.short_name();
        assert_eq!(there.0, here.0, "{name}, cut at {part}");
        if let Some(answer) = answer {
            assert_eq!(answer.unwrap(), here.0, "{name}, answered before the cut at {part}");
        }
        let written = self.suite.written(self.method).await - before;
        assert_eq!(written, self.once, "{name}, cut at {part}");
        // As complete as if it had not been cut off.
        assert_eq!(states_in(self.method, &here.0), self.states, "{name}, cut at {part}");
        self.suite.keep(self.method, &here.0);
        here.0
    }
}

/// The values of all enums in an answer.
fn states_in(method: &Method, answer: &Bytes) -> Vec<i32> {
    fn add(message: &DynamicMessage, states: &mut Vec<i32>) {
        for (_, value) in message.fields() {
            if let Value::EnumNumber(state) = value {
                states.push(*state);
            } else if let Value::Message(inner) = value {
                add(inner, states);
            }
        }
    }
    let mut states = Vec::new();
    let output = method.descriptor.output();
    add(&DynamicMessage::decode(output, answer.clone()).unwrap(), &mut states);
    states
}

#[expect(clippy::print_stdout, reason = "what a proof covers is to be read")]
fn report(what: &str, tally: &Tally) {
    println!("{what}: {tally:?}");
}

/// Cuts calls of a method off at several parts of their time.
async fn cut_all(suite: &Suite, method: &Method) -> Tally {
    let cuts = match method.short_name().as_str() {
        "ClusterService.CreateCluster" => CUTS_OF_CLUSTERS,
        _ => CUTS,
    };
    let mut requests = suite.requests(method, cuts + 1).await.into_iter();
    let first = suite.encode(method, requests.next().unwrap(), false).await;
    let mut subject = Subject::new(suite, method, first).await;
    let measured = subject.latency;
    let before = suite.written(method).await;
    let (mut tally, mut answered) = (Tally::default(), Vec::new());
    for (cut, request) in (0..cuts).zip(requests) {
        let request = suite.encode(method, request, cut % 4 >= 2).await;
        let part = (f64::from(cut) + 0.5) / f64::from(cuts);
        let answer = subject.cut_and_repeat(&request, part, cut % 2 == 0, &mut tally).await;
        answered.push((request, answer));
    }
    // Calls that were cut off may have ended after the repeats of them.
    for (request, answer) in answered {
        let (again, refused) = subject.repeat(&subject.there, &request).await;
        assert_eq!(again, answer, "{}", method.short_name());
        tally.refused += refused;
    }
    let written = suite.written(method).await - before;
    assert_eq!(written.writes, i64::from(cuts), "{}", method.short_name());
    report(&format!("{}, which took {measured:.1?}", method.short_name()), &tally);
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_and_repeated_at_another_replica_is_written_once() {
    let suite = Suite::start().await;
    let methods = repeatable();

    let mut all = Tally::default();
    for method in &methods {
        let tally = cut_all(&suite, method).await;
        all.cuts += tally.cuts;
        all.in_flight += tally.in_flight;
        all.looked_at += tally.looked_at;
        all.written += tally.written;
        all.refused += tally.refused;
    }
    suite.stop().await;

    report(&format!("{} methods cut off and repeated elsewhere", methods.len()), &all);
    assert!(all.in_flight * 3 >= all.cuts, "most were answered before they were cut off: {all:?}");
}
