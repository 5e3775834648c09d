//! Connections that can be cut.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Hands connections on to a server until it is cut.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    running: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    // Which side ends it is of no interest.
                    let _ended = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { address, running }
    }

    /// Ends the connections of both sides, whatever is under way on them.
    pub(crate) async fn cut(mut self) {
        self.running.shutdown().await;
    }
}
