//! The listeners, each with a write that the right caller may do there, and
//! calls that no gRPC client would make.

use std::net::SocketAddr;

use crm_proto::contacts::v1 as contacts;
use crm_proto::messaging::v1 as messaging;
use crm_proto::registry::v1 as registry;
use crm_testing::{reason, server};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes, BytesMut};
use serde::Deserialize;
use sqlx::Connection as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::world::Inhabited;

const CREATE_CONTACT: &str = "/crm.contacts.v1.ContactService/CreateContact";
const CREATE_MESSAGE: &str = "/crm.messaging.v1.MessageService/CreateMessage";
const CREATE_TENANT: &str = "/crm.registry.v1.TenantService/CreateTenant";
const REPORT_ACTIVITY: &str = "/crm.registry.v1.LeaseService/ReportActivity";

/// Whom a door is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Tenant,
    Platform,
    Internal,
}

/// How calls come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-web over HTTP/1.1.
    Web,
}

/// A listener, and a connection to it.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    wire: Wire,
    address: SocketAddr,
    path: &'static str,
    connection: Option<SendRequest<Bytes>>,
}

/// A call, but for its message: header lines may stand twice, or not at all.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) query: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

impl Call {
    /// Sets all lines of a header.
    pub(crate) fn set(&mut self, name: &str, values: impl IntoIterator<Item = Vec<u8>>) {
        self.headers.retain(|(header, _)| header != name);
        self.headers.extend(values.into_iter().map(|value| (name.to_owned(), value)));
    }
}

impl Door {
    /// All doors of the suite.
    pub(crate) async fn all() -> Vec<Self> {
        let at = server().addresses;
        let mut doors = Vec::new();
        for (name, kind, wire, address, path) in [
            ("registry", Kind::Platform, Wire::Grpc, at.registry, CREATE_TENANT),
            ("internal", Kind::Internal, Wire::Grpc, at.internal, REPORT_ACTIVITY),
            ("contacts", Kind::Tenant, Wire::Grpc, at.contacts, CREATE_CONTACT),
            ("messaging", Kind::Tenant, Wire::Grpc, at.messaging, CREATE_MESSAGE),
            ("edge", Kind::Tenant, Wire::Grpc, at.edge, CREATE_CONTACT),
            ("edge, gRPC-web", Kind::Tenant, Wire::Web, at.edge, CREATE_CONTACT),
        ] {
            let connection = match wire {
                Wire::Grpc => Some(connect(address).await),
                Wire::Web => None,
            };
            doors.push(Self { name, kind, wire, address, path, connection });
        }
        doors
    }

    /// The call that a client would make, without a token.
    pub(crate) fn call(&self) -> Call {
        let headers: &[(&str, &str)] = match self.wire {
            Wire::Grpc => &[("content-type", "application/grpc"), ("te", "trailers")],
            Wire::Web => &[("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")],
        };
        let headers = headers.iter().chain(&[("grpc-timeout", "30S")]);
        let headers = headers.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
        Call { method: "POST".to_owned(), query: String::new(), headers: headers.collect() }
    }

    /// Whether calls come as gRPC-web.
    pub(crate) fn is_web(&self) -> bool {
        self.wire == Wire::Web
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn path(&self) -> &'static str {
        self.path
    }

    /// The answer to a call: `OK`; code and reason; or what it was instead.
    pub(crate) async fn answer(&self, call: &Call, message: &[u8]) -> String {
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).unwrap());
        body.put(message);
        match &self.connection {
            Some(connection) => {
                let answer = self.http2(connection.clone(), call, body.freeze()).await;
                answer.unwrap_or_else(|error| match error.reason() {
                    Some(reason) => format!("reset {reason:?}"),
                    None => format!("broken: {error}"),
                })
            }
            None => self.http1(call, &body).await,
        }
    }

    async fn http2(
        &self,
        connection: SendRequest<Bytes>,
        call: &Call,
        body: Bytes,
    ) -> Result<String, h2::Error> {
        let uri = format!("http://{}{}{}", self.address, self.path, call.query);
        let mut request = Request::builder().method(call.method.as_str()).uri(uri);
        for (name, value) in &call.headers {
            request = request.header(name, HeaderValue::from_bytes(value).unwrap());
        }
        let (answer, mut sending) =
            connection.ready().await?.send_request(request.body(()).unwrap(), false)?;
        // A refusal may come before the body was taken.
        let _sent = sending.send_data(body, true);
        let (head, mut body) = answer.await?.into_parts();
        while let Some(chunk) = body.data().await {
            let length = chunk?.len();
            body.flow_control().release_capacity(length)?;
        }
        let trailers = body.trailers().await?;
        Ok(outcome(head.status, &head.headers, trailers))
    }

    async fn http1(&self, call: &Call, body: &[u8]) -> String {
        let mut request =
            format!("{} {}{} HTTP/1.1\r\n", call.method, self.path, call.query).into_bytes();
        let own = [
            ("host", self.address.to_string()),
            ("connection", "close".to_owned()),
            ("content-length", body.len().to_string()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value.into_bytes()));
        for (name, value) in own.iter().chain(&call.headers) {
            request.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body);
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        // What is refused early is not read to its end.
        let _sent = connection.write_all(&request).await;
        let mut answer = Vec::new();
        let _read = connection.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let Some(status) = status else { return format!("broken: {head:?}") };
        // The trailers come as a last frame of the body, in the same form.
        let trailers = body.find("grpc-status:").map(|at| lines(&body[at..]));
        outcome(StatusCode::from_u16(status).unwrap(), &lines(head), trailers)
    }
}

/// A new connection, of gRPC over HTTP/2.
async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The header lines in a text.
fn lines(text: &str) -> HeaderMap {
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(value.trim()).ok()?))
    };
    text.split("\r\n").filter_map(line).collect()
}

fn outcome(http: StatusCode, headers: &HeaderMap, trailers: Option<HeaderMap>) -> String {
    if http != StatusCode::OK {
        return format!("HTTP {}", http.as_u16());
    }
    let status = Status::from_header_map(headers)
        .or_else(|| Status::from_header_map(&trailers?))
        .unwrap_or_else(|| panic!("an answer without a status: {headers:?}"));
    if status.code() == Code::Ok {
        return "OK".to_owned();
    }
    format!("{:?} {}", status.code(), reason(&status))
}

/// What the calls of one test would write, and whether they did.
#[derive(Debug)]
pub(crate) struct Writes {
    pub(crate) home: Inhabited,
    /// Stands in whatever they write.
    mark: String,
}

impl Writes {
    pub(crate) async fn prepare() -> Self {
        let home = Inhabited::create().await;
        Self { mark: format!("Marked {}", server().clock.new_id()), home }
    }

    fn mark(&self, door: &Door) -> String {
        format!("{} {}", self.mark, door.name)
    }

    /// A request that writes through this door; or only pretends to, where the
    /// method knows that.
    pub(crate) fn request(&self, door: &Door, validate_only: bool) -> Vec<u8> {
        let mark = self.mark(door);
        let request_id = server().clock.new_id().to_string();
        match door.path {
            CREATE_CONTACT => {
                let email = "marked@example.com".to_owned();
                let contact = contacts::Contact { display_name: mark, email, ..Default::default() };
                let contact = Some(contact);
                contacts::CreateContactRequest { contact, request_id, validate_only }
                    .encode_to_vec()
            }
            CREATE_MESSAGE => {
                let sender_type = messaging::message::SenderType::User.into();
                let message =
                    messaging::Message { sender_type, content: mark, ..Default::default() };
                let parent = self.home.conversation.clone();
                let message = Some(message);
                messaging::CreateMessageRequest { parent, message, request_id, validate_only }
                    .encode_to_vec()
            }
            CREATE_TENANT => {
                let tenant = registry::Tenant { display_name: mark, ..Default::default() };
                let tenant = Some(tenant);
                registry::CreateTenantRequest { tenant, request_id, validate_only }.encode_to_vec()
            }
            _ => {
                let instance = if validate_only { format!("{mark}, before") } else { mark };
                let session_budget = 1;
                registry::ReportActivityRequest { instance, session_budget, ..Default::default() }
                    .encode_to_vec()
            }
        }
    }

    /// How often something was written through this door.
    pub(crate) async fn count(&self, door: &Door) -> i64 {
        let (database, statement) = match door.path {
            CREATE_CONTACT => (
                self.home.tenant.tenant.database.as_str(),
                "SELECT count(*) FROM contacts.contacts WHERE display_name = $1",
            ),
            CREATE_MESSAGE => (
                self.home.tenant.tenant.database.as_str(),
                "SELECT count(*) FROM messaging.messages WHERE content = $1",
            ),
            CREATE_TENANT => {
                ("crm_registry", "SELECT count(*) FROM tenants WHERE display_name = $1")
            }
            _ => ("crm_registry", "SELECT count(*) FROM instances WHERE instance = $1"),
        };
        let mut database = server().superuser(database).await;
        let count = sqlx::query_scalar(statement).bind(self.mark(door)).fetch_one(&mut database);
        let count = count.await.unwrap();
        database.close().await.unwrap();
        count
    }

    /// The revision of the tenant's log, and how many requests it knows.
    pub(crate) async fn log(&self) -> (i64, i64) {
        let mut database = self.home.tenant.database().await;
        let log = sqlx::query_as(
            "SELECT revision, (SELECT count(*) FROM platform.requests) FROM platform.head",
        );
        let log = log.fetch_one(&mut database).await.unwrap();
        database.close().await.unwrap();
        log
    }
}
