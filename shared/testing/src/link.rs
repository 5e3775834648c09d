//! Data services whose link to the registry can be cut.

use std::net::{Ipv4Addr, SocketAddr};

use crm_clock::Clock;
use crm_service::{Admission, DataApp, DataConfig, Role, serve};
use crm_tenancy::{RegistryEndpoints, TenantSessions};
use secrecy::SecretString;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::server::Server;

/// How a replica reaches the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    /// Connections stand, new ones too, and nothing moves on them.
    Hanging,
    /// Connections end.
    Cut,
}

/// Another replica of the data services alone. They reach the registry through
/// a link that the test cuts and mends.
#[derive(Debug)]
pub struct DataReplica {
    /// Where contacts listens.
    pub contacts: SocketAddr,
    /// Where messaging listens.
    pub messaging: SocketAddr,
    link: watch::Sender<Link>,
    shutdown: CancellationToken,
    serving: Vec<JoinHandle<()>>,
    sessions: Vec<TenantSessions>,
}

impl Server {
    /// Starts another replica of contacts and messaging.
    pub async fn data_replica(&self) -> DataReplica {
        let (public, internal) = (self.addresses.registry, self.addresses.internal);
        let secrets = self.secrets();
        let secrets = [&secrets.contacts, &secrets.messaging];
        DataReplica::start(public, internal, secrets, self.clock.clone()).await
    }
}

impl DataReplica {
    /// Starts contacts and messaging, with their secrets, beside a registry that
    /// listens here.
    pub async fn start(
        public: SocketAddr,
        internal: SocketAddr,
        [contacts, messaging]: [&SecretString; 2],
        clock: Clock,
    ) -> Self {
        let (sender, link) = watch::channel(Link::Up);
        let endpoints = RegistryEndpoints {
            public: forward(public, link.clone()).await,
            internal: forward(internal, link).await,
            tls: None,
        };
        let config = |secret: &SecretString, listener: &TcpListener| DataConfig {
            registry: endpoints.clone(),
            secret: secret.clone(),
            instance: listener.local_addr().unwrap().to_string(),
            session_budget: 20,
        };
        let at_contacts = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at_messaging = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let contacts = config(contacts, &at_contacts);
        let contacts = crm_contacts::app::start(contacts, clock.clone()).await.unwrap();
        let messaging = config(messaging, &at_messaging);
        let messaging = crm_messaging::app::start(messaging, clock).await.unwrap();
        let shutdown = CancellationToken::new();
        let sessions = vec![contacts.sessions.clone(), messaging.sessions.clone()];
        let (contacts, first) = listen(contacts, at_contacts, &shutdown).await;
        let (messaging, second) = listen(messaging, at_messaging, &shutdown).await;
        let (link, serving) = (sender, vec![first, second]);
        Self { contacts, messaging, link, shutdown, serving, sessions }
    }

    /// Cuts the link: connections end, and new ones end at once.
    pub fn cut(&self) {
        self.link.send_replace(Link::Cut);
    }

    /// Lets the link hang: as with a registry that takes connections, and
    /// answers nothing.
    pub fn hang(&self) {
        self.link.send_replace(Link::Hanging);
    }

    /// Mends the link. Connections that hung end.
    pub fn mend(&self) {
        self.link.send_replace(Link::Up);
    }

    /// Stops it, and waits for its end.
    pub async fn stop(self) {
        self.shutdown.cancel();
        for serving in self.serving {
            serving.await.unwrap();
        }
        for sessions in &self.sessions {
            sessions.drain().await;
        }
    }
}

async fn listen(
    app: DataApp,
    listener: TcpListener,
    shutdown: &CancellationToken,
) -> (SocketAddr, JoinHandle<()>) {
    let address = listener.local_addr().unwrap();
    let shutdown = shutdown.clone();
    let serving = tokio::spawn(async move {
        serve(listener, app.stack, Role::Service, Admission::default(), shutdown).await.unwrap()
    });
    app.health.set(true);
    (address, serving)
}

/// Forwards connections as the link is. Answers the URL to use.
async fn forward(to: SocketAddr, link: watch::Receiver<Link>) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut link = link.clone();
            let state = *link.borrow();
            if state == Link::Cut {
                continue;
            }
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(to).await else { return };
                tokio::select! {
                    // Which side ends it is of no interest.
                    _ = copy_bidirectional(&mut near, &mut far), if state == Link::Up => {}
                    _ = link.wait_for(|link| *link != Link::Up) => {}
                }
                let _mended = link.wait_for(|link| *link != Link::Hanging).await;
            });
        }
    });
    format!("http://{address}")
}

/// An address where nobody listens.
pub async fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

/// Hands connections on, as long as it lives.
pub async fn hand_on(from: SocketAddr, to: SocketAddr) -> JoinSet<()> {
    let listener = TcpListener::bind(from).await.unwrap();
    let mut link = JoinSet::new();
    link.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ended = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    link
}
