//! What callers may take of a process before it knows them, and beside each
//! other: connections, bodies that are not whole, streams that stay open.

mod body;
mod connections;
mod layer;
mod peer;
mod quota;

use std::net::IpAddr;
use std::sync::Arc;

use clap::Args;
use http::HeaderMap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub(crate) use connections::Slot;
pub(crate) use layer::{AdmitLayer, Streaming};
pub use peer::Network;
pub(crate) use peer::Peer;
pub(crate) use quota::Share;

use crate::limits;
use crate::metrics::recorder;
use crate::server::Role;
use connections::{Connections, Room};
use peer::Proxies;
use quota::{Bounds, Quota, Spent};

/// Whom a process believes.
#[derive(Clone, Debug, Default, Args)]
pub struct AdmissionOptions {
    /// The proxies that are believed whom they call for (x-forwarded-for): addresses, or networks such as 10.0.0.0/8
    #[arg(
        long = "trusted-proxies",
        env = "CRM_TRUSTED_PROXIES",
        value_name = "NETWORK",
        value_delimiter = ',',
        global = true
    )]
    pub trusted_proxies: Vec<Network>,
}

/// What all listeners of a process share. Clones are one.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    proxies: Proxies,
    connections: Arc<Connections>,
    bodies: Arc<Quota<Peer>>,
    streams: Arc<Quota<Peer>>,
}

impl Admission {
    /// Takes as many descriptors as this process may have, and shares them out.
    pub fn new(options: AdmissionOptions) -> Self {
        // Metrics are looked up once: the recorder must be there before. Whoever
        // serves them says so where there is another.
        let _recorder = recorder();
        let descriptors = raise_descriptors();
        let total = (descriptors / 5 * 4).min(limits::CONNECTIONS);
        let kept = limits::KEPT_CONNECTIONS.min(total / 4);
        let bodies = Bounds {
            total: limits::PARTIAL_BYTES,
            kept: 0,
            contended: limits::PARTIAL_BYTES_UNCONTENDED,
            each: limits::LARGEST_REQUESTS_OF_ONE * limits::MAX_MESSAGE_BYTES,
        };
        let streams =
            Bounds { total: limits::STREAMS, kept: 0, contended: 0, each: limits::STREAMS_OF_ONE };
        Self(Arc::new(Shared {
            proxies: Proxies(options.trusted_proxies),
            connections: Connections::new(Room { total, kept }),
            bodies: Quota::new("body_bytes", bodies),
            streams: Quota::new("streams", streams),
        }))
    }

    /// Takes a connection, or says that there is no room for it.
    pub(crate) fn enter(&self, role: Role, address: IpAddr) -> Option<Slot> {
        let is_proxy = self.is_proxy(address);
        let each =
            if is_proxy { limits::CONNECTIONS_OF_A_PROXY } else { limits::CONNECTIONS_OF_ONE };
        self.0.connections.enter(role, Peer::of(address), each, is_proxy)
    }

    pub(crate) fn is_proxy(&self, address: IpAddr) -> bool {
        self.0.proxies.have(address)
    }

    /// Where a call comes from.
    pub(crate) fn origin(&self, connected: IpAddr, headers: &HeaderMap) -> Origin {
        Origin { peer: self.0.proxies.caller(connected, headers), admission: self.clone() }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(AdmissionOptions::default())
    }
}

/// Where a call comes from, among the extensions of each request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    peer: Peer,
    admission: Admission,
}

impl Origin {
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// Takes room for a part of a body, which grows up to `most`.
    fn body(&self, most: usize, bytes: usize) -> Result<Share<Peer>, Spent> {
        let each = limits::LARGEST_REQUESTS_OF_ONE * most;
        self.admission.0.bodies.take_up_to(each, self.peer, bytes)
    }

    /// Takes one of the streams that anyone may open.
    fn stream(&self) -> Result<Share<Peer>, Spent> {
        self.admission.0.streams.take(self.peer, 1)
    }
}

/// Raises the limit of open descriptors as far as this process may, and answers
/// what it is. Connections would otherwise end where files do.
fn raise_descriptors() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open descriptors stays as it was");
            current
        }
    };
    // None: as many as one likes.
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
