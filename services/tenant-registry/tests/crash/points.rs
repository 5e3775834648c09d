//! The points at which a saga is cut off: found by running it once.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crm_testing::{PostgresLink, Side, Statement, Verdict};

/// How long the registry's own rounds are watched: the longest is 5 s of rest
/// after its work.
const ROUND: Duration = Duration::from_secs(12);

/// A statement of a saga.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Point {
    pub(crate) statement: Statement,
    /// Of those with this text, the first (1), the second and so on.
    pub(crate) occurrence: usize,
}

impl fmt::Debug for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.statement.text.chars().take(60).collect();
        write!(f, "{text}… ({})", self.occurrence)
    }
}

impl Point {
    /// Whether the text has one of these words.
    pub(crate) fn has(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.statement.text.contains(word))
    }
}

/// What every replica does again and again without being asked.
pub(crate) async fn rounds(link: &PostgresLink) -> HashSet<Statement> {
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let shared = seen.clone();
    link.judge(move |statement| {
        shared.lock().unwrap().insert(statement.clone());
        Verdict::Pass
    });
    tokio::time::sleep(ROUND).await;
    link.pass();
    std::mem::take(&mut *seen.lock().unwrap())
}

/// Who watches tenants reads what became of them, sooner or later.
const OF_WATCHERS: &str = "WHERE event > $1";

/// The statements that a saga has executed, but for those of the rounds, of
/// watchers and of data services.
pub(crate) async fn points<T>(
    link: &PostgresLink,
    rounds: &HashSet<Statement>,
    saga: impl Future<Output = T>,
) -> (Vec<Point>, T) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shared = seen.clone();
    link.judge(move |statement| {
        shared.lock().unwrap().push(statement.clone());
        Verdict::Pass
    });
    let outcome = saga.await;
    link.pass();
    let mut counts: HashMap<Statement, usize> = HashMap::new();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let own = seen.into_iter().filter(|statement| {
        is_registrys(statement)
            && !rounds.contains(statement)
            && !statement.text.contains(OF_WATCHERS)
    });
    let points = own.map(|statement| {
        let count = counts.entry(statement.clone()).or_default();
        *count += 1;
        Point { occurrence: *count, statement }
    });
    (points.collect(), outcome)
}

/// Whether it is the registry that has it executed.
pub(crate) fn is_registrys(statement: &Statement) -> bool {
    statement.user.starts_with("crm_")
}

/// What is done at a point.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    Cut(Side),
    Kill(Side, u32),
}

/// Does it when the point comes. Tells whether it came.
pub(crate) fn harm(link: &PostgresLink, point: &Point, harm: Harm) -> Arc<AtomicBool> {
    let came = Arc::new(AtomicBool::new(false));
    let shared = came.clone();
    let (point, mut count) = (point.clone(), 0);
    link.judge(move |statement| {
        count += usize::from(*statement == point.statement);
        if *statement != point.statement || count != point.occurrence {
            return Verdict::Pass;
        }
        shared.store(true, Ordering::Relaxed);
        match harm {
            Harm::Cut(side) => Verdict::Cut(side),
            Harm::Kill(side, pid) => Verdict::Kill(side, pid),
        }
    });
    came
}

/// Cuts the registry's connections at every statement, whatever it is for: the
/// first time before it, and the second time after. Answers the list of what
/// was cut.
pub(crate) fn cut_everything_twice(link: &PostgresLink) -> Arc<Mutex<Vec<(Statement, Side)>>> {
    let cuts = Arc::new(Mutex::new(Vec::new()));
    let shared = cuts.clone();
    let mut seen: HashMap<Statement, usize> = HashMap::new();
    link.judge(move |statement| {
        if !is_registrys(statement) {
            return Verdict::Pass;
        }
        let count = seen.entry(statement.clone()).or_default();
        *count += 1;
        let side = match count {
            1 => Side::Before,
            2 => Side::After,
            _ => return Verdict::Pass,
        };
        shared.lock().unwrap().push((statement.clone(), side));
        Verdict::Cut(side)
    });
    cuts
}
