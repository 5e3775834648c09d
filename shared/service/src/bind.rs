//! Taking an address.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

/// How long a port is waited for that a connection holds: a closed one holds it
/// for a minute (RFC 9293, TIME-WAIT).
const LINGERING_PORT: Duration = Duration::from_secs(70);
/// How long whoever listens there may take to say so.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// How often it is tried again.
const BIND_EVERY: Duration = Duration::from_millis(500);
/// Takes an address. One where nobody listens, but that an outgoing connection
/// holds or held a moment ago, is waited for: the system gives every port from
/// its ephemeral range to such connections, and frees it a minute after their
/// end.
///
/// # Errors
///
/// Names the address, who asks for it, and the setting that changes it.
pub async fn bind(address: SocketAddr, who: &str, setting: &str) -> io::Result<TcpListener> {
    let until = Instant::now() + LINGERING_PORT;
    let mut is_told = false;
    loop {
        let error = match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::AddrInUse
            || Instant::now() >= until
            || someone_listens(address).await
        {
            return Err(io::Error::new(
                error.kind(),
                format!(
                    "{who} cannot listen on {address} ({error}); {setting} changes the address"
                ),
            ));
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(%address, "waiting for a port that a connection still holds");
        }
        tokio::time::sleep(BIND_EVERY).await;
    }
}

/// Whether someone takes connections there, or is too busy to take more.
async fn someone_listens(address: SocketAddr) -> bool {
    let connected = timeout(ANSWERS_WITHIN, TcpStream::connect(address)).await;
    connected.is_err() || connected.is_ok_and(|connected| connected.is_ok())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpSocket;

    use super::*;

    #[tokio::test]
    async fn a_port_that_a_connection_holds_is_waited_for() -> io::Result<()> {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let client = TcpSocket::new_v4()?;
        client.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        client.set_zero_linger()?;
        let client = client.connect(server.local_addr()?).await?;
        let address = client.local_addr()?;
        assert!(TcpListener::bind(address).await.is_err(), "the connection does not hold the port");

        let bound = tokio::spawn(bind(address, "the test", "nothing"));
        tokio::time::sleep(BIND_EVERY / 2).await;
        drop(client);

        assert_eq!(bound.await??.local_addr()?, address);
        Ok(())
    }

    #[tokio::test]
    async fn a_port_where_someone_listens_is_refused_at_once() -> io::Result<()> {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = other.local_addr()?;

        let refused = bind(address, "the test", "--port").await.map_err(|error| error.to_string());

        assert!(refused.is_err_and(|words| words.contains("--port changes the address")));
        Ok(())
    }

    #[tokio::test]
    async fn a_port_where_someone_listens_and_takes_nobody_is_refused_at_once() -> io::Result<()> {
        let other = TcpSocket::new_v4()?;
        other.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let other = other.listen(1)?;
        let address = other.local_addr()?;
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(ANSWERS_WITHIN, TcpStream::connect(address)).await {
            waiting.push(connected?);
        }

        let asked = Instant::now();
        let refused = bind(address, "the test", "--port").await.map_err(|error| error.to_string());

        assert!(refused.is_err_and(|words| words.contains("--port changes the address")));
        assert!(asked.elapsed() < LINGERING_PORT / 2);
        Ok(())
    }
}
