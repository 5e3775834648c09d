//! What one tenant got and another sends: page tokens, request ids, etags.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crm_proto::contacts::v1 as contacts;
use crm_proto::options::v1::Scope;
use crm_proto::registry::v1 as registry;
use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};
use serde_json::json;

use super::fields::{Kind, fields, set};
use super::{Seen, World, report, unknown};
use crate::methods::{Method, methods};
use crate::world::{bearer, outcome, service_token};

/// Methods with a field of this kind, and where it is.
fn with(kind: Kind) -> Vec<(Method, String)> {
    let of = |method: Method| {
        let fields = fields(&method.input()).into_iter();
        let paths = fields.filter(move |(_, found)| *found == kind).map(|(path, _)| path);
        paths.map(move |path| (method.clone(), path)).collect::<Vec<_>>()
    };
    methods().into_iter().flat_map(of).collect()
}

fn number(message: &mut DynamicMessage, field: &str, value: Value) {
    let field = message.descriptor().get_field_by_name(field).unwrap();
    message.set_field(&field, value);
}

/// A list of so few that another page follows, and the arguments that change it.
fn list(world: &World, method: &Method) -> (DynamicMessage, Vec<(&'static str, Value)>) {
    let mut request = world.inhabited.example(method);
    number(&mut request, "page_size", Value::I32(1));
    let text = |value: String| Value::String(value);
    let others = match method.short_name().as_str() {
        "ContactService.ListContacts" => {
            number(&mut request, "show_deleted", Value::Bool(true));
            vec![
                ("show_deleted", Value::Bool(false)),
                ("filter", text("email = \"ada@example.com\"".to_owned())),
            ]
        }
        "ConversationService.ListConversations" => vec![
            ("show_deleted", Value::Bool(true)),
            ("contact", text(world.inhabited.contact.clone())),
            ("filter", text("state = STATE_ACTIVE".to_owned())),
            ("filter", text(format!("contact = \"{}\"", world.inhabited.contact))),
            ("view", Value::EnumNumber(2)),
        ],
        "MessageService.ListMessages" => {
            vec![("parent", text(world.planted.contact.initial_conversation.clone()))]
        }
        "TenantService.ListTenants" => vec![
            ("show_deleted", Value::Bool(true)),
            ("filter", text("state = STATE_SUSPENDED".to_owned())),
        ],
        "MigrationService.ListTenantMigrations" => vec![
            ("parent", text("tenants/-".to_owned())),
            ("filter", text("service = \"contacts\"".to_owned())),
        ],
        // There is one cluster, and so one page.
        "ClusterService.ListClusters" => Vec::new(),
        other => panic!("{other} has pages: say here what its list depends on"),
    };
    (request, others)
}

/// The token of the page that follows.
async fn next_page(world: &World, method: &Method, request: &DynamicMessage) -> String {
    let answer = world.call(method, request).await.unwrap();
    let answer = DynamicMessage::decode(method.descriptor.output(), answer).unwrap();
    let token = answer.get_field_by_name("next_page_token").unwrap();
    token.as_str().unwrap().to_owned()
}

/// What can be made of a token.
fn tampered(token: &str) -> Vec<String> {
    let mut texts = vec![
        token[1..].to_owned(),
        token[..token.len() - 1].to_owned(),
        format!("{token}A"),
        format!("{token}="),
        format!("{token}{token}"),
        token.to_lowercase(),
        format!(" {token}"),
        "0".to_owned(),
        "AAAA".to_owned(),
        "e30".to_owned(),
        "../../etc/passwd".to_owned(),
        "x".repeat(1024),
    ];
    // One letter another, anywhere.
    for at in (0..token.len()).step_by(3) {
        let mut letters = token.as_bytes().to_vec();
        letters[at] = if letters[at] == b'A' { b'B' } else { b'A' };
        texts.push(String::from_utf8(letters).unwrap());
    }
    // Read, changed and written again: a checksum, and a revision with a place.
    let bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
    let (checksum, cursor) = bytes.split_at(16);
    let read: serde_json::Value = serde_json::from_slice(cursor).unwrap();
    for part in [0, 1] {
        for value in [json!(null), json!(-1), json!(1), json!("x"), json!({}), json!(i64::MAX)] {
            let mut changed = read.clone();
            changed[part] = value;
            if changed != read {
                let changed = changed.to_string();
                texts.push(URL_SAFE_NO_PAD.encode([checksum, changed.as_bytes()].concat()));
            }
        }
    }
    texts.push(URL_SAFE_NO_PAD.encode(checksum));
    texts.push(URL_SAFE_NO_PAD.encode(cursor));
    texts.push(URL_SAFE_NO_PAD.encode([&[0; 16], cursor].concat()));
    texts
}

#[tokio::test]
async fn a_page_token_is_good_for_its_own_list_alone() {
    let (own, other) = tokio::join!(World::create(), World::create());
    let lists = with(Kind::PageToken);
    let mut tokens = Vec::new();
    for (method, path) in &lists {
        for world in [&own, &other] {
            let (request, others) = list(world, method);
            // Another message, so that a conversation has two pages.
            if path == "page_token" && method.short_name() == "MessageService.ListMessages" {
                send(world).await;
            }
            let token = next_page(world, method, &request).await;
            assert_eq!(token.is_empty(), others.is_empty(), "{}", method.short_name());
            let mut good = request.clone();
            set(&mut good, path, &token);
            assert_eq!(outcome(&world.call(method, &good).await), "OK");
            tokens.push((method.path(), world.id(), token));
        }
    }
    let mut cases = 0;

    for (method, path) in &lists {
        let (request, others) = list(&own, method);
        let mut tried = Vec::new();
        for (of, tenant, token) in tokens.iter().filter(|(.., token)| !token.is_empty()) {
            // A list of the platform is the same for whoever may see it.
            let is_another_tenants = *tenant != own.id() && is_tenants(method);
            if *of != method.path() || is_another_tenants {
                tried.push((request.clone(), token.clone()));
            } else if *tenant == own.id() {
                for text in tampered(token) {
                    tried.push((request.clone(), text));
                }
                for (field, value) in &others {
                    let mut other = request.clone();
                    number(&mut other, field, value.clone());
                    tried.push((other, token.clone()));
                }
            }
        }
        let mut first = None;
        for (mut request, token) in tried {
            set(&mut request, path, &token);
            let answer = own.call(method, &request).await;
            let at = format!("{} {token}", method.short_name());
            assert_eq!(outcome(&answer), "INVALID_FIELDS", "{at}");
            let seen = Seen::of(&answer);
            assert_eq!(first.get_or_insert(seen.clone()), &seen, "{at}");
            cases += 1;
        }
    }

    report("page tokens", cases);
    assert!(cases >= 200, "cases were lost: {cases}");
}

fn is_tenants(method: &Method) -> bool {
    matches!(method.guard(), Some((Scope::Tenant, _)))
}

async fn send(world: &World) {
    let method = named("MessageService.CreateMessage");
    let mut request = world.inhabited.example(&method);
    number(&mut request, "validate_only", Value::Bool(false));
    world.call(&method, &request).await.unwrap();
}

fn named(name: &str) -> Method {
    methods().into_iter().find(|method| method.short_name() == name).unwrap()
}

#[tokio::test]
async fn a_request_id_of_another_tenant_is_new() {
    let (own, other) = tokio::join!(World::create(), World::create());
    let mut writes: Vec<_> =
        with(Kind::RequestId).into_iter().filter(|(method, _)| is_tenants(method)).collect();
    // What deletes comes last: the others need what is there.
    writes.sort_by_key(|(method, _)| method.short_name().contains(".Delete"));
    let mut cases = 0;

    for (method, path) in &writes {
        let id = unknown().to_string();
        let request = |world: &World| {
            let mut request = world.inhabited.example(method);
            number(&mut request, "validate_only", Value::Bool(false));
            set(&mut request, path, &id);
            request
        };
        let first = own.call(method, &request(&own)).await.unwrap();
        let second = other.call(method, &request(&other)).await.unwrap();
        let repeated = other.call(method, &request(&other)).await.unwrap();
        let first_again = own.call(method, &request(&own)).await.unwrap();

        let at = method.short_name();
        assert_ne!(first, second, "{at}");
        assert_eq!(first, first_again, "{at}");
        assert_eq!(second, repeated, "{at}");
        let name = |answer: prost::bytes::Bytes| {
            let answer = DynamicMessage::decode(method.descriptor.output(), answer).unwrap();
            answer.get_field_by_name("name").unwrap().as_str().unwrap().to_owned()
        };
        assert_ne!(name(first), name(second), "{at}");
        cases += 1;
    }

    own.inhabited.tenant.check_log().await;
    other.inhabited.tenant.check_log().await;
    report("request ids of another tenant", cases);
    assert_eq!(cases, 7, "a tenant's methods with a request_id");
}

#[tokio::test]
async fn an_etag_of_another_tenant_is_like_an_old_one_and_opens_no_name() {
    let (own, other) = tokio::join!(World::create(), World::create());
    // The other tenant is further on, so that no revision is the same.
    for _ in 0..10 {
        send(&other).await;
    }
    let method = named("ContactService.UpdateContact");
    let mut request = other.inhabited.example(&method);
    number(&mut request, "validate_only", Value::Bool(false));
    let answer = other.call(&method, &request).await.unwrap();
    let foreign = contacts::Contact::decode(answer).unwrap();
    let mut cases = 0;

    for (method, path) in with(Kind::Etag).iter().filter(|(method, _)| is_tenants(method)) {
        let name = format!("{}name", path.strip_suffix("etag").unwrap());
        let is_read = fields(&method.input())
            .iter()
            .any(|(path, kind)| *path == name && matches!(kind, Kind::Name(_)));
        if !is_read {
            continue;
        }
        for is_preview in [true, false] {
            let ask = async |etag: &str, named: Option<&str>| {
                let mut request = own.inhabited.example(method);
                number(&mut request, "validate_only", Value::Bool(is_preview));
                set(&mut request, path, etag);
                if let Some(named) = named {
                    set(&mut request, &name, named);
                }
                own.call(method, &request).await
            };
            let at = method.short_name();
            let answer = ask(&foreign.etag, None).await;
            assert_eq!(outcome(&answer), "CONCURRENT_CHANGE", "{at}");
            assert_eq!(Seen::of(&answer), Seen::of(&ask("\"1000000\"", None).await), "{at}");

            let collection = if at.contains("Contact") { "contacts" } else { "conversations" };
            let known = match collection {
                "contacts" => foreign.name.clone(),
                _ => other.inhabited.conversation.clone(),
            };
            let unknown = format!("{collection}/{}", unknown());
            let found = ask(&foreign.etag, Some(&known)).await;
            assert_eq!(outcome(&found), "RESOURCE_NOT_FOUND", "{at}");
            let seen = Seen::of(&found).renamed(&known, &unknown);
            assert_eq!(seen, Seen::of(&ask(&foreign.etag, Some(&unknown)).await), "{at}");
            cases += 2;
        }
    }

    report("etags of another tenant", cases);
    assert_eq!(cases, 16, "a tenant's methods with an etag");
}

#[tokio::test]
async fn a_service_gets_and_tells_what_is_its_own_alone() {
    let world = World::create().await;
    let (acquire, report, activity) = (
        named("LeaseService.AcquireLease"),
        named("LeaseService.ReportActivity"),
        named("TenantService.GetTenantActivity"),
    );
    let as_service = async |method: &Method, service: &str| {
        let request = world.inhabited.example(method).encode_to_vec();
        method.call(bearer(&service_token(service)), request.into()).await
    };
    let ours = as_service(&acquire, "contacts").await.unwrap();
    let ours = registry::AcquireLeaseResponse::decode(ours).unwrap();
    let theirs = as_service(&acquire, "messaging").await.unwrap();
    let theirs = registry::AcquireLeaseResponse::decode(theirs).unwrap();
    as_service(&report, "contacts").await.unwrap();

    let told = world.call(&activity, &world.inhabited.example(&activity)).await.unwrap();
    let told = registry::TenantActivity::decode(told).unwrap().processes;
    let told = told.iter().filter(|process| process.instance.starts_with("proof-"));
    let told: Vec<_> = told.map(|process| process.service.as_str()).collect();

    assert_eq!(told, ["services/contacts"]);
    assert_eq!(ours.database, theirs.database);
    assert!(ours.user.ends_with("_contacts_g1") && theirs.user.ends_with("_messaging_g1"));
    assert_ne!(ours.secret, theirs.secret);
    // Nobody is a service that the suite does not have.
    let unknown = as_service(&acquire, "sales").await;
    assert_eq!(outcome(&unknown), "RESOURCE_NOT_FOUND");
}
