//! `crm health`.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::app::Addresses;

/// How long one look at one server may take.
const LOOK: Duration = Duration::from_secs(2);

/// Something does not serve.
#[derive(Debug, thiserror::Error)]
#[error("{who} on {address} does not serve")]
struct NotServing {
    who: &'static str,
    address: SocketAddr,
}

/// Waits until everything serves.
///
/// # Errors
///
/// Names what does not serve when the time is over.
pub(crate) async fn wait(
    addresses: &Addresses,
    patience: Duration,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let until = Instant::now() + patience;
    loop {
        match look(addresses).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= until => return Err(error.into()),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn look(addresses: &Addresses) -> Result<(), NotServing> {
    let servers = [
        ("tenant-registry", addresses.registry),
        ("tenant-registry (leases)", addresses.internal),
        ("contacts", addresses.contacts),
        ("messaging", addresses.messaging),
        ("the edge", addresses.edge),
    ];
    for (who, address) in servers {
        if !serves(address).await {
            return Err(NotServing { who, address });
        }
    }
    Ok(())
}

async fn serves(address: SocketAddr) -> bool {
    let look = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
        let channel = endpoint.connect().await.ok()?;
        let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await.ok()?;
        Some(answer.into_inner().status)
    };
    let status = timeout(LOOK, look).await.ok().flatten();
    status == Some(ServingStatus::Serving as i32)
}
