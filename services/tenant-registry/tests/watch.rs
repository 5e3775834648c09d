//! WatchTenants, over the wire.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::net::SocketAddr;
use std::time::Duration;

use chrono::TimeDelta;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant::State;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::watch_tenants_response::Event;
use crm_testing::{Client, Tenant, code_and_reason, server};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

/// How long a message may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn service() -> Client {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server().identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    Client::new(issued.token)
}

async fn watch(
    client: &Client,
    address: SocketAddr,
) -> Result<Streaming<pb::WatchTenantsResponse>, Status> {
    let mut leases = LeaseServiceClient::new(client.channel(address));
    let request = client.request(pb::WatchTenantsRequest {});
    Ok(leases.watch_tenants(request).await?.into_inner())
}

/// The next message. A stream ends with a status.
async fn next(stream: &mut Streaming<pb::WatchTenantsResponse>) -> Result<Event, Status> {
    let message = timeout(PATIENCE, stream.message()).await.unwrap()?;
    Ok(message.unwrap().event.unwrap())
}

/// Reads a whole snapshot.
async fn snapshot(stream: &mut Streaming<pb::WatchTenantsResponse>) -> Vec<(String, State)> {
    let mut tenants = Vec::new();
    loop {
        let event = next(stream).await.unwrap();
        let Event::Snapshot(part) = event else { unreachable!("before the snapshot: {event:?}") };
        tenants.extend(part.tenants.iter().map(|status| (status.tenant.clone(), status.state())));
        if part.complete {
            return tenants;
        }
    }
}

/// Reads until something happens to the tenant.
async fn change(
    stream: &mut Streaming<pb::WatchTenantsResponse>,
    tenant: &Tenant,
) -> pb::TenantStatus {
    loop {
        match next(stream).await.unwrap() {
            Event::Changed(status) if status.tenant == tenant.tenant.name => return status,
            Event::Changed(_) | Event::Heartbeat(_) => {}
            Event::Snapshot(_) => unreachable!("a second snapshot"),
        }
    }
}

async fn act(verb: &str, tenant: &Tenant) {
    let operator = Client::operator(server());
    let mut tenants = TenantServiceClient::new(operator.channel(server().addresses.registry));
    let name = tenant.tenant.name.clone();
    if verb == "suspend" {
        let message = pb::SuspendTenantRequest { name, ..Default::default() };
        tenants.suspend_tenant(operator.request(message)).await.unwrap();
    } else {
        let message = pb::ResumeTenantRequest { name, ..Default::default() };
        tenants.resume_tenant(operator.request(message)).await.unwrap();
    }
}

/// One test, since it moves the clock of all.
#[tokio::test]
async fn a_watcher_hears_everything_until_the_server_stops_or_its_token_dies() {
    let (before, after) = tokio::join!(Tenant::create(), Tenant::create());
    act("suspend", &before).await;
    let replica = server().replica().await;
    let client = service();

    // Two replicas tell the same.
    let mut here = watch(&client, server().addresses.internal).await.unwrap();
    let mut there = watch(&client, replica.addresses.internal).await.unwrap();
    for stream in [&mut here, &mut there] {
        let known = snapshot(stream).await;
        assert!(known.contains(&(before.tenant.name.clone(), State::Suspended)));
        assert!(known.iter().all(|(name, _)| *name != after.tenant.name));
    }
    act("suspend", &after).await;
    act("resume", &before).await;
    for stream in [&mut here, &mut there] {
        let status = change(stream, &after).await;
        assert_eq!(status.state(), State::Suspended);
        assert_eq!((status.tenant_generation, status.access_version), (1, 1));
        assert_eq!(change(stream, &before).await.state(), State::Active);
        // Other tests have tenants, too.
        while !matches!(next(stream).await.unwrap(), Event::Heartbeat(_)) {}
    }

    // It is for the services alone.
    let expected = (Code::Unauthenticated, "TOKEN_INVALID".to_owned());
    for client in [Client::operator(server()), before.admin()] {
        let outcome = watch(&client, server().addresses.internal).await;
        assert_eq!(code_and_reason(outcome), expected);
    }

    // A server that stops says so; it is not held up.
    replica.stop().await;
    let ended = loop {
        match next(&mut there).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");

    // The token of a stream that opens now has 10 seconds left.
    let client = service();
    server().clock.advance(TimeDelta::seconds(15 * 60 - 10));
    let mut short = watch(&client, server().addresses.internal).await.unwrap();
    let ended = loop {
        match next(&mut short).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    let expected = (Code::Unauthenticated, "TOKEN_EXPIRED".to_owned());
    assert_eq!(code_and_reason::<()>(Err(ended)), expected);
}
