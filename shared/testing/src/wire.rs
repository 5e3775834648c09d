//! What a server sends, frame by frame; and the streams that anyone may open.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use futures_util::stream::{self, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// How long a frame's header is (RFC 9113, section 4.1).
const HEADER: usize = 9;
/// The types of frames that tests ask for (RFC 9113, section 6).
const DATA: u8 = 0;
const GOAWAY: u8 = 7;
/// NOT_SERVING as one message of gRPC: not compressed, two bytes, the field.
const NOT_SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 2];

/// The way of one connection to a server, on which everything is noted that the
/// server sends.
#[derive(Debug)]
pub struct Wire {
    /// Where clients connect to.
    pub address: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    /// A way to this server.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::<Mutex<Vec<u8>>>::default();
        let noted = sent.clone();
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let server = TcpStream::connect(server).await.unwrap();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move {
                // Which side ends it is of no interest.
                let _ended = tokio::io::copy(&mut from_client, &mut to_server).await;
            });
            let mut part = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from_server.read(&mut part).await {
                noted.lock().unwrap().extend_from_slice(&part[..length]);
                let _gone = to_client.write_all(&part[..length]).await;
            }
        });
        Self { address, sent }
    }

    /// Whether the server said NOT_SERVING before it said that it takes no more
    /// calls on this connection, as it did.
    pub fn says_not_serving_first(&self) -> bool {
        let sent = self.sent.lock().unwrap();
        let mut rest = sent.as_slice();
        let mut is_said = false;
        while let Some((header, after)) = rest.split_at_checked(HEADER) {
            let length =
                usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            let Some((payload, after)) = after.split_at_checked(length) else { break };
            match header[3] {
                DATA => is_said |= payload == NOT_SERVING,
                GOAWAY => return is_said,
                _ => {}
            }
            rest = after;
        }
        unreachable!("the server did not say that it takes no more calls")
    }
}

/// Streams that stay open: health and reflection, watched on one connection.
#[derive(Debug)]
pub struct OpenStreams {
    health: Streaming<HealthCheckResponse>,
    reflection: Streaming<ServerReflectionResponse>,
}

impl OpenStreams {
    /// Opens them, and waits for the first answer on each.
    pub async fn open(address: SocketAddr) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let health = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await;
        let mut health = health.unwrap().into_inner();
        let first = health.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        let mut reflection = reflect(channel).await;
        assert!(reflection.message().await.unwrap().is_some());
        Self { health, reflection }
    }

    /// Waits for their ends: health said NOT_SERVING before, and each ended
    /// with a status.
    pub async fn ended(mut self) -> [Status; 2] {
        let last = self.health.message().await.unwrap().unwrap();
        assert_eq!(last.status(), ServingStatus::NotServing);
        [self.health.message().await.unwrap_err(), self.reflection.message().await.unwrap_err()]
    }
}

/// Asks for the names of services, and leaves the stream open.
async fn reflect(channel: Channel) -> Streaming<ServerReflectionResponse> {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { message_request, ..Default::default() };
    let requests = stream::iter([request]).chain(stream::pending());
    let mut client = ServerReflectionClient::new(channel);
    client.server_reflection_info(requests).await.unwrap().into_inner()
}
