//! The connections of a process: how many there may be, of whom, and which give
//! way.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use metrics::Counter;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::peer::Peer;
use crate::limits;
use crate::server::Role;

/// One peer at one listener: nobody fills another listener.
type Holder = (Role, Peer);

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// In the process.
    pub(crate) total: usize,
    /// What of that is for listeners that are not public.
    pub(crate) kept: usize,
}

/// All connections that are open.
#[derive(Debug)]
pub(crate) struct Connections {
    room: Room,
    cores: usize,
    open: Mutex<Open>,
    refused: Counter,
    gave_way: Counter,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_id: HashMap<u64, Holder>,
    holders: HashMap<Holder, Held>,
    /// Those without a call until now, from the oldest on.
    silent: BTreeSet<u64>,
    ends: HashMap<u64, CancellationToken>,
}

/// What one peer has.
#[derive(Debug)]
struct Held {
    open: usize,
    /// How many of these are read at a time.
    turns: Arc<Semaphore>,
    silent: BTreeSet<u64>,
}

impl Connections {
    pub(crate) fn new(room: Room) -> Arc<Self> {
        Arc::new(Self {
            room,
            cores: available_parallelism().map_or(1, NonZero::get),
            open: Mutex::default(),
            refused: metrics::counter!("crm_admission_refused_total", "limit" => "connections"),
            gave_way: metrics::counter!("crm_connections_gave_way_total"),
        })
    }

    /// Takes a connection, as one of at most `each` of this peer. Where there is
    /// no room, the oldest that has not made a call gives way. That of a proxy
    /// may be silent as long as it likes.
    pub(crate) fn enter(
        self: &Arc<Self>,
        role: Role,
        peer: Peer,
        each: usize,
        is_proxy: bool,
    ) -> Option<Slot> {
        let kept = if role.is_public() { self.room.kept } else { 0 };
        let mut open = self.open();
        let holder = (role, peer);
        let own = open.holders.get(&holder);
        let in_the_way = if own.is_some_and(|own| own.open >= each) {
            Some(own.and_then(|own| own.silent.first().copied()))
        } else if open.by_id.len() >= self.room.total - kept {
            Some(open.silent.first().copied())
        } else {
            None
        };
        match in_the_way {
            Some(Some(oldest)) => {
                open.end(oldest);
                self.gave_way.increment(1);
            }
            Some(None) => {
                self.refused.increment(1);
                return None;
            }
            None => {}
        }
        let ended = CancellationToken::new();
        let turns = self.cores * if is_proxy { limits::TURNS_OF_A_PROXY } else { 1 };
        let (id, turns) = open.add(holder, (!is_proxy).then(|| ended.clone()), turns);
        let gauge = metrics::gauge!("crm_connections", "listener" => role.name());
        gauge.increment(1);
        Some(Slot { connections: self.clone(), id, ended, turns, gauge })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn add(
        &mut self,
        holder: Holder,
        end: Option<CancellationToken>,
        turns: usize,
    ) -> (u64, Arc<Semaphore>) {
        let id = self.next;
        self.next += 1;
        self.by_id.insert(id, holder);
        let held = self.holders.entry(holder).or_insert_with(|| Held {
            open: 0,
            turns: Arc::new(Semaphore::new(turns)),
            silent: BTreeSet::new(),
        });
        held.open += 1;
        let turns = held.turns.clone();
        if let Some(end) = end {
            held.silent.insert(id);
            self.silent.insert(id);
            self.ends.insert(id, end);
        }
        (id, turns)
    }

    /// It is not silent any more.
    fn speaks(&mut self, id: u64) -> Option<CancellationToken> {
        self.silent.remove(&id);
        if let Some(held) = self.by_id.get(&id).and_then(|holder| self.holders.get_mut(holder)) {
            held.silent.remove(&id);
        }
        self.ends.remove(&id)
    }

    fn end(&mut self, id: u64) {
        if let Some(end) = self.speaks(id) {
            end.cancel();
        }
        self.remove(id);
    }

    fn remove(&mut self, id: u64) {
        self.speaks(id);
        let Some(holder) = self.by_id.remove(&id) else { return };
        let Some(held) = self.holders.get_mut(&holder) else { return };
        held.open -= 1;
        if held.open == 0 {
            self.holders.remove(&holder);
        }
    }
}

/// The place of one connection, which it has until this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    connections: Arc<Connections>,
    id: u64,
    ended: CancellationToken,
    turns: Arc<Semaphore>,
    gauge: metrics::Gauge,
}

impl Slot {
    /// It has made a call: it does not give way any more.
    pub(crate) fn speaks(&self) {
        self.connections.open().speaks(self.id);
    }

    /// The turns that all connections of its peer have.
    pub(crate) fn turns(&self) -> Arc<Semaphore> {
        self.turns.clone()
    }

    /// Waits until it has to give way.
    pub(crate) async fn gives_way(&self) {
        self.ended.cancelled().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.open().remove(self.id);
        self.gauge.decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const EACH: usize = 3;

    fn peer(number: u8) -> Peer {
        Peer::of(Ipv4Addr::new(192, 0, 2, number).into())
    }

    fn connections() -> Arc<Connections> {
        Connections::new(Room { total: 8, kept: 2 })
    }

    fn enter(connections: &Arc<Connections>, number: u8) -> Option<Slot> {
        connections.enter(Role::Edge, peer(number), EACH, false)
    }

    #[test]
    fn whoever_has_its_share_of_connections_is_refused_and_nobody_else_is() {
        let connections = connections();
        let slots: Vec<_> = (0..EACH).map(|_| enter(&connections, 1).unwrap()).collect();
        slots.iter().for_each(Slot::speaks);

        assert!(enter(&connections, 1).is_none());
        assert!(enter(&connections, 2).is_some());
        assert!(connections.enter(Role::Service, peer(1), EACH, false).is_some());

        drop(slots);
        assert!(enter(&connections, 1).is_some());
        let open = connections.open();
        assert!(open.by_id.is_empty() && open.holders.is_empty() && open.ends.is_empty());
    }

    #[test]
    fn the_oldest_that_says_nothing_gives_way() {
        let connections = connections();
        let slots: Vec<_> = (0..EACH).map(|_| enter(&connections, 1).unwrap()).collect();
        slots[0].speaks();

        let next = enter(&connections, 1).unwrap();

        let ended: Vec<_> = slots.iter().map(|slot| slot.ended.is_cancelled()).collect();
        assert_eq!(ended, [false, true, false]);
        slots[2].speaks();
        next.speaks();
        assert!(enter(&connections, 1).is_none());
    }

    #[test]
    fn a_full_process_keeps_some_for_what_is_not_public() {
        let connections = connections();
        let slots: Vec<_> = (0..6).map(|number| enter(&connections, number).unwrap()).collect();
        slots.iter().for_each(Slot::speaks);

        assert!(enter(&connections, 9).is_none());
        let kept = connections.enter(Role::Admin, peer(9), EACH, false);
        assert!(kept.is_some());
    }

    #[test]
    fn a_proxy_may_be_silent() {
        let connections = connections();
        let slots: Vec<_> = (0..EACH)
            .map(|_| connections.enter(Role::Edge, peer(1), EACH, true).unwrap())
            .collect();

        assert!(connections.enter(Role::Edge, peer(1), EACH, true).is_none());
        assert!(slots.iter().all(|slot| !slot.ended.is_cancelled()));
    }
}
