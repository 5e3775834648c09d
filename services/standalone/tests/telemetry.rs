//! What `crm` tells of itself: metrics, the log and traces, and no word of what
//! tenants keep in it.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod installation;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crm_proto::contacts::v1 as pb;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::messaging::v1 as messaging;
use crm_proto::messaging::v1::conversation_service_client::ConversationServiceClient;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use installation::{Installation, text};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};

/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a contact has, and nobody else may read.
const SECRETS: [&str; 4] = ["Canarina", "canarina@example.com", "+4915550123", "canary-token"];
/// The caller's trace, and its span there.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// The caller's id for one call.
const CALL: &str = "call-of-the-test";

/// Takes traces as a collector does.
struct Collector(Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector, and what it was sent.
async fn collector() -> (String, Receiver<ExportTraceServiceRequest>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (send, receive) = channel();
    let service = TraceServiceServer::new(Collector(send));
    let serving = Server::builder().add_service(service);
    tokio::spawn(serving.serve_with_incoming(TcpIncoming::from(listener)));
    (format!("http://{address}"), receive)
}

impl Installation {
    fn channel(&self, offset: u16) -> Channel {
        let port = self.port_base + offset;
        Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy()
    }

    fn contacts(&self) -> ContactServiceClient<Channel> {
        ContactServiceClient::new(self.channel(2))
    }

    fn admin(&self, method: &str, path: &str) -> (u16, String) {
        ask(self.port_base + 10, &format!("{method} {path} HTTP/1.1"), &[], b"")
    }

    /// Waits until a metric has a value: calls are counted when their answers
    /// have gone, and sessions once a second.
    fn wait_for(&self, metric: &str, value: u32) {
        let line = format!("{metric} {value}");
        let until = Instant::now() + PATIENCE;
        loop {
            let (_, text) = self.admin("GET", "/metrics");
            if text.lines().any(|found| found == line) {
                return;
            }
            assert!(Instant::now() < until, "no {line} in\n{text}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// One call in HTTP/1.1: its status, and the body of its answer.
fn ask(port: u16, line: &str, headers: &[&str], body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let length = format!("content-length: {}", body.len());
    let lines = [&[line, "host: localhost", "connection: close", &length], headers].concat();
    stream.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = text(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn request<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn contact() -> pb::Contact {
    let [display_name, email, phone, text] = SECRETS.map(str::to_owned);
    let value = Value { kind: Some(Kind::StringValue(text.clone())) };
    pb::Contact {
        display_name,
        email,
        phone,
        company: text.clone(),
        position: text.clone(),
        source: text.clone(),
        metadata: Some(Struct { fields: [(text, value)].into() }),
        ..pb::Contact::default()
    }
}

/// Makes a contact within the caller's trace, and some calls that are refused.
async fn call(installation: &Installation, token: &str) {
    let mut contacts = installation.contacts();
    let create = pb::CreateContactRequest { contact: Some(contact()), ..Default::default() };
    let mut create = request(token, create);
    create.metadata_mut().insert("x-request-id", CALL.parse().unwrap());
    let parent = format!("00-{TRACE}-{PARENT}-01");
    create.metadata_mut().insert("traceparent", parent.parse().unwrap());
    let created = contacts.create_contact(create).await.unwrap().into_inner();
    talk(installation, token, &created).await;

    let invalid = pb::Contact { email: format!("{}@@", SECRETS[1]), ..contact() };
    let invalid = pb::CreateContactRequest { contact: Some(invalid), ..Default::default() };
    let refused = contacts.create_contact(request(token, invalid)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let unknown =
        pb::GetContactRequest { name: "contacts/018f4d5e-0000-7000-8000-000000000000".to_owned() };
    let refused = contacts.get_contact(request(token, unknown.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = contacts.get_contact(request(SECRETS[3], unknown)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    // gRPC-web, where a good status stands in trailers, too.
    let list = pb::ListContactsRequest::default().encode_to_vec();
    let frame = [&[0][..], &u32::try_from(list.len()).unwrap().to_be_bytes(), &list].concat();
    let authorization = format!("authorization: Bearer {token}");
    let web = ["content-type: application/grpc-web+proto", "x-grpc-web: 1", &authorization];
    let path = "POST /crm.contacts.v1.ContactService/ListContacts HTTP/1.1";
    let (status, body) = ask(installation.edge_port, path, &web, &frame);
    assert!(status == 200 && body.contains("grpc-status:0"), "{status} {body:?}");
    let path = format!("POST /crm.contacts.v1.ContactService/{} HTTP/1.1", SECRETS[0]);
    ask(installation.edge_port, &path, &web, &frame);
}

/// What messaging keeps of a contact, read, changed and refused.
async fn talk(installation: &Installation, token: &str, contact: &pb::Contact) {
    let text = SECRETS[3].to_owned();
    let (contact, display_name) = (contact.name.clone(), text.clone());
    let conversation =
        Some(messaging::Conversation { contact, display_name, ..Default::default() });
    let create = messaging::CreateConversationRequest { conversation, ..Default::default() };
    let channel = installation.channel(3);
    let mut conversations = ConversationServiceClient::new(channel.clone());
    let created = conversations.create_conversation(request(token, create)).await.unwrap();
    let parent = created.into_inner().name;
    let message = messaging::Message {
        sender_type: messaging::message::SenderType::Contact.into(),
        content: text.clone(),
        ..Default::default()
    };
    let send = messaging::CreateMessageRequest {
        parent: parent.clone(),
        message: Some(message),
        ..Default::default()
    };
    let mut messages = MessageServiceClient::new(channel);
    messages.create_message(request(token, send)).await.unwrap();
    let list = messaging::ListMessagesRequest { parent, page_token: text, ..Default::default() };
    let refused = messages.list_messages(request(token, list)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

/// Counts, codes and labels.
fn check_metrics(installation: &Installation) {
    let ended = [
        ("contacts.v1.ContactService/CreateContact", "OK", 1),
        ("contacts.v1.ContactService/CreateContact", "INVALID_ARGUMENT", 1),
        ("contacts.v1.ContactService/GetContact", "NOT_FOUND", 1),
        ("contacts.v1.ContactService/GetContact", "UNAUTHENTICATED", 1),
        ("contacts.v1.ContactService/ListContacts", "OK", 1),
    ];
    for (method, code, count) in ended {
        let labels = format!(r#"service="contacts",method="crm.{method}",code="{code}""#);
        installation.wait_for(&format!("rpc_server_duration_seconds_count{{{labels}}}"), count);
    }
    for (metric, value) in [
        (
            r#"rpc_server_duration_seconds_count{service="contacts",method="other",code="UNIMPLEMENTED"}"#,
            1,
        ),
        (r#"rpc_server_requests_in_flight{service="contacts"}"#, 0),
        (r#"crm_leases{service="contacts"}"#, 1),
        (r#"crm_lease_acquire_total{service="contacts",outcome="granted"}"#, 1),
        (r#"crm_sessions_opened_total{service="contacts"}"#, 1),
    ] {
        installation.wait_for(metric, value);
    }

    let (_, text) = installation.admin("GET", "/metrics");
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(names.len() >= 7, "{names:?}");
    for name in names.iter().map(|name| name.split(' ').next().unwrap()) {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not described");
    }
    check_silence(&text);
}

fn check_admin(installation: &Installation) {
    let (status, body) = installation.admin("GET", "/readyz");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body), (200, serde_json::json!({"ready": true, "not_serving": []})));
    assert_eq!(installation.admin("GET", "/livez").0, 200);
    assert_eq!(installation.admin("POST", "/metrics").0, 405);
    assert_eq!(installation.admin("GET", "/").0, 404);
    for port in [installation.edge_port, installation.port_base + 30] {
        for path in ["/metrics", "/livez", "/readyz"] {
            let (status, body) = ask(port, &format!("GET {path} HTTP/1.1"), &[], b"");
            assert!(status != 503 && !body.contains("rpc_server") && !body.contains("ready"));
        }
    }
}

/// Every line is an object; those of one call have its ids.
fn check_log(log: &str, tenant: &str) {
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_call: Vec<_> =
        lines.iter().filter(|line| line["spans"][0]["request_id"] == CALL).collect();
    let ended = of_call.iter().find(|line| line["message"] == "the call ended").unwrap();
    assert_eq!(ended["code"], "OK");
    assert_eq!(ended["spans"][0]["trace_id"], TRACE);
    assert_eq!(ended["spans"][0]["tenant"], tenant);
    assert_eq!(ended["spans"][0]["service"], "contacts");
    // The registry was asked within the same trace.
    let asked = lines.iter().find(|line| {
        line["spans"][0]["method"] == "crm.registry.v1.LeaseService/AcquireLease"
            && line["message"] == "the call ended"
    });
    assert_eq!(asked.unwrap()["spans"][0]["trace_id"], TRACE);
    let traced = |line: &&serde_json::Value| line["spans"][0]["trace_id"].is_string();
    let calls: Vec<_> = lines.iter().filter(|line| line["message"] == "the call ended").collect();
    assert!(calls.len() >= 6 && calls.iter().all(traced), "{log}");
    check_silence(log);
}

/// The spans of a trace, on both sides of the call to the registry.
fn check_traces(requests: &[ExportTraceServiceRequest], tenant: &str) {
    let resources: Vec<_> = requests.iter().flat_map(|request| &request.resource_spans).collect();
    for resource in &resources {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        assert_eq!(attribute(attributes, "service.name"), "crm");
    }
    let scopes = resources.iter().flat_map(|resource| &resource.scope_spans);
    let spans: Vec<&Span> = scopes.flat_map(|scope| &scope.spans).collect();
    let named = |name: &str| {
        spans.iter().find(|span| span.name == name && hex(&span.trace_id) == TRACE).unwrap()
    };
    let create = named("crm.contacts.v1.ContactService/CreateContact");
    assert_eq!(hex(&create.parent_span_id), PARENT);
    let expected = [
        ("service", "contacts"),
        ("rpc.system", "grpc"),
        ("rpc.service", "crm.contacts.v1.ContactService"),
        ("rpc.method", "CreateContact"),
        ("rpc.grpc.status_code", "0"),
        ("request_id", CALL),
        ("tenant", tenant),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(&create.attributes, key), value, "{key}");
    }
    assert_eq!(named("db.contact.insert").parent_span_id, create.span_id);
    let lease = named("crm.registry.v1.LeaseService/AcquireLease");
    assert_eq!(lease.parent_span_id, create.span_id);
    let refused =
        spans.iter().find(|span| attribute(&span.attributes, "rpc.grpc.status_code") == "5");
    assert_eq!(refused.unwrap().name, "crm.contacts.v1.ContactService/GetContact");
    check_silence(&format!("{requests:?}"));
}

fn check_silence(text: &str) {
    for secret in SECRETS {
        let at = text.find(secret);
        assert!(at.is_none(), "{secret} in {}", text.lines().find(|l| l.contains(secret)).unwrap());
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.as_ref()?.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tenant in a token: the second part of it is JSON.
fn tenant_of(token: &str) -> String {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    claims["tid"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_in_metrics_log_and_traces_without_what_is_in_them() {
    let (endpoint, sent) = collector().await;
    let mut installation = Installation::new("telemetry");
    installation.variables = vec![
        ("CRM_LOG", "debug".to_owned()),
        ("CRM_LOG_FORMAT", "json".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        // Nothing is sent before the end.
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000".to_owned()),
    ];
    let mut running = installation.start();
    running.wait_until_it_serves();
    let token = text(&installation.output(&["token", "--tenant", "demo"]).stdout);
    let (token, tenant) = (token.trim(), tenant_of(token.trim()));

    call(&installation, token).await;

    check_metrics(&installation);
    check_admin(&installation);
    running.signal("INT");
    assert!(running.wait(PATIENCE).success());
    let log = std::fs::read_to_string(installation.folder.join("log")).unwrap();
    assert!(!log.contains(token), "a token is in the log");
    check_log(&log, &tenant);
    // The last spans came while it stopped.
    check_traces(&sent.try_iter().collect::<Vec<_>>(), &tenant);
}

#[tokio::test]
async fn without_a_collector_the_log_has_traces_all_the_same() {
    let mut installation = Installation::new("untraced");
    installation.variables =
        vec![("CRM_LOG", "info".to_owned()), ("CRM_LOG_FORMAT", "json".to_owned())];
    let mut running = installation.start();
    running.wait_until_it_serves();
    let token = text(&installation.output(&["token", "--tenant", "demo"]).stdout);

    call(&installation, token.trim()).await;

    running.signal("INT");
    assert!(running.wait(PATIENCE).success());
    let log = std::fs::read_to_string(installation.folder.join("log")).unwrap();
    check_log(&log, &tenant_of(token.trim()));
}

#[tokio::test]
async fn a_collector_that_does_not_answer_keeps_nobody_waiting() {
    // Connections are taken by the system, and nothing comes back.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut installation = Installation::new("silent");
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    installation.variables = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
    let mut running = installation.start();
    running.wait_until_it_serves();
    let token = text(&installation.output(&["token", "--tenant", "demo"]).stdout);

    call(&installation, token.trim()).await;

    running.signal("INT");
    assert!(running.wait(PATIENCE).success());
}
