//! CPU time of processes, from /proc.

use std::fs;
use std::io::{self, ErrorKind};

/// Linux counts in hundredths of a second for all programs (proc(5)).
const MICROS_PER_TICK: f64 = 10_000.0;

/// The processes that share the machine: with this one, all that matter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processes {
    /// The program under measurement.
    pub(crate) service: u32,
    /// The postmaster, whose children are its sessions.
    pub(crate) postgres: u32,
}

/// What each had used at one moment, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    service: Ticks,
    postgres: Ticks,
    client: Ticks,
}

/// What one call cost, in microseconds of CPU time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) service_user: f64,
    pub(crate) service_system: f64,
    /// All of PostgreSQL.
    pub(crate) postgres: f64,
    /// This program, or pgbench.
    pub(crate) client: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ticks {
    user: u64,
    system: u64,
}

struct Stat {
    own: Ticks,
    /// That of children which have ended.
    ended: Ticks,
}

impl Processes {
    /// What they have used by now.
    pub(crate) fn sample(self) -> io::Result<Sample> {
        let client = stat(std::process::id())?;
        Ok(Sample {
            service: stat(self.service)?.own,
            postgres: with_children(self.postgres)?,
            client: client.own.plus(client.ended),
        })
    }
}

impl Sample {
    /// What each of these calls cost since then.
    pub(crate) fn usage_since(self, before: Self, calls: u64) -> Usage {
        let each = |ticks: u64| ticks as f64 * MICROS_PER_TICK / calls.max(1) as f64;
        let service = self.service.minus(before.service);
        Usage {
            service_user: each(service.user),
            service_system: each(service.system),
            postgres: each(self.postgres.minus(before.postgres).sum()),
            client: each(self.client.minus(before.client).sum()),
        }
    }
}

impl Ticks {
    fn sum(self) -> u64 {
        self.user + self.system
    }

    fn plus(self, other: Self) -> Self {
        Self { user: self.user + other.user, system: self.system + other.system }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            user: self.user.saturating_sub(other.user),
            system: self.system.saturating_sub(other.system),
        }
    }
}

/// A process with all its children, also those that have ended.
fn with_children(pid: u32) -> io::Result<Ticks> {
    let process = stat(pid)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children = children.split_whitespace().filter_map(|child| stat(child.parse().ok()?).ok());
    let all = process.own.plus(process.ended);
    Ok(children.fold(all, |all, child| all.plus(child.own)))
}

fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse(&text).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// Fields 14 to 17 of proc(5). The second, the name in parentheses, may hold
/// anything; the third comes first behind it.
fn parse(stat: &str) -> Option<Stat> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map_while(|field| field.parse().ok());
    let mut next = || times.next();
    let own = Ticks { user: next()?, system: next()? };
    let ended = Ticks { user: next()?, system: next()? };
    Some(Stat { own, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let found = parse("7 (a) b) S 1 7 7 0 -1 0 1 2 3 4 140 25 60 5 20 0 1").unwrap();

        assert_eq!((found.own.user, found.own.system), (140, 25));
        assert_eq!((found.ended.user, found.ended.system), (60, 5));
    }
}
