//! What nobody finishes takes nobody's place.

use std::net::SocketAddr;
use std::time::Duration;

use crm_proto::contacts::v1::ListContactsRequest;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_testing::{Tenant, ask_admin, server};
use h2::SendStream;
use h2::client::ResponseFuture;
use http::Request;
use prost::bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::Endpoint;

/// More than a tenant may have at a time, and less than an address may begin.
const CONNECTIONS: usize = 6;
const CALLS: usize = 100;
/// How many calls are made beside them.
const BESIDE: usize = 50;
/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// In digits, as it is on the wire.
const DEADLINE_EXCEEDED: &str = "4";
const LIST_CONTACTS: &str = "crm.contacts.v1.ContactService/ListContacts";

#[tokio::test]
async fn calls_whose_requests_never_end_take_nobodys_place() {
    let tenant = Tenant::create().await;
    let client = tenant.admin();
    // What they take of the address is not taken from other tests.
    let replica = server().replica().await;
    let at = replica.addresses;
    let token = client.request(()).metadata().get("authorization").cloned().unwrap();
    let token = token.to_str().unwrap();
    let mut begun = Vec::new();
    for address in [at.contacts, at.edge] {
        for _ in 0..CONNECTIONS {
            begun.extend(begin(address, token).await);
        }
    }

    for address in [at.contacts, at.edge] {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let mut contacts = ContactServiceClient::new(channel);
        for _ in 0..BESIDE {
            let list = client.request(ListContactsRequest::default());
            contacts.list_contacts(list).await.unwrap();
        }
    }

    let (_, metrics) = ask_admin(at.admin, "/metrics").await;
    for limit in ["body_bytes", "calls", "streams"] {
        let line = format!("crm_admission_in_use{{limit=\"{limit}\"}}");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }

    // They were there all the time, and are answered.
    for (answer, _body) in begun {
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.headers()["grpc-status"], DEADLINE_EXCEEDED);
    }
    replica.stop().await;
}

/// A call whose request goes on.
type Begun = (ResponseFuture, SendStream<Bytes>);

/// Calls on one connection whose requests do not end.
async fn begin(address: SocketAddr, token: &str) -> Vec<Begun> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        let request = Request::post(format!("http://{address}/{LIST_CONTACTS}"))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "30S")
            .header("authorization", token);
        client = client.ready().await.unwrap();
        let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(Bytes::from_static(&[0, 0]), false).unwrap();
        calls.push((answer, body));
    }
    calls
}
