//! Who may call what: every method, every kind of token, every built-in role,
//! by what `authorization.golden` says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crm_auth::{Audience, Claims, ISSUER, SigningKey, built_in_roles};
use crm_proto::options::v1::{Permission, Scope};
use crm_testing::{reason, server};
use prost::Message as _;
use prost_reflect::prost_types::method_options::IdempotencyLevel;
use prost_reflect::{DynamicMessage, Value};
use sqlx::Connection as _;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::methods::{Method, methods};
use crate::world::{Inhabited, bearer, operator_token, outcome, service_token};

const TOKEN_MISSING: &str = "Unauthenticated TOKEN_MISSING";
const TOKEN_INVALID: &str = "Unauthenticated TOKEN_INVALID";
const TOKEN_EXPIRED: &str = "Unauthenticated TOKEN_EXPIRED";
const PERMISSION_MISSING: &str = "PermissionDenied PERMISSION_MISSING";
const METHOD_UNKNOWN: &str = "Unimplemented METHOD_UNKNOWN";
const NOT_FOUND: &str = "NotFound RESOURCE_NOT_FOUND";
/// The one line of the golden file that is not a whole method.
const AS_SYSTEM: &str = "MessageService.CreateMessage(system)";
/// Names that look like roles, and are none.
const NO_ROLES: [&str; 6] =
    ["roles/made-up", "owner", "roles/Owner", "roles/owner ", "roles/*", "roles/platform"];

/// Says how much a proof tried.
#[expect(clippy::print_stdout, reason = "how much was tried is part of the result")]
pub(crate) fn tell(what: &str) {
    println!("{what}");
}

/// What the golden file says of a method: the scope, and the roles.
type Golden = BTreeMap<&'static str, (Option<Scope>, BTreeSet<&'static str>)>;

fn golden() -> Golden {
    let mut golden = Golden::new();
    for line in include_str!("authorization.golden").lines() {
        let mut words = line.split_whitespace();
        let Some(method) = words.next().filter(|word| !word.starts_with('#')) else { continue };
        let scope = match words.next().unwrap() {
            "tenant" => Some(Scope::Tenant),
            "platform" => Some(Scope::Platform),
            "internal" => Some(Scope::Internal),
            "anyone" => None,
            other => panic!("{method}: {other} is no scope"),
        };
        assert!(golden.insert(method, (scope, words.collect())).is_none(), "{method} stands twice");
    }
    golden
}

/// A caller's token, as far as it decides.
enum Token {
    Missing,
    Invalid,
    Expired(Scope),
    Good(Scope, Vec<String>),
}

struct Caller {
    name: String,
    metadata: MetadataMap,
    token: Token,
}

fn audience(scope: Scope) -> Audience {
    if scope == Scope::Internal { Audience::Internal } else { Audience::Public }
}

fn claims(world: &Inhabited, scope: Scope, roles: &[String], age: i64) -> Claims {
    let issued = server().clock.now().timestamp() - age;
    let tenant = scope == Scope::Tenant;
    Claims {
        iss: ISSUER.to_owned(),
        aud: audience(scope),
        sub: if scope == Scope::Internal {
            "services/contacts".to_owned()
        } else {
            format!("serviceAccounts/{}", server().clock.new_id())
        },
        iat: issued,
        nbf: issued,
        exp: issued + 900,
        jti: server().clock.new_id(),
        roles: roles.to_vec(),
        tid: tenant.then_some(world.tenant.id),
        generation: tenant.then_some(1),
        ver: tenant.then_some(1),
        sid: None,
    }
}

async fn callers(world: &Inhabited) -> Vec<Caller> {
    let (kid, pkcs8) = server().signing_key().await;
    let key = SigningKey::from_pkcs8(kid, &pkcs8).unwrap();
    let sign = |claims: &Claims| bearer(&key.sign(claims).unwrap());
    let caller = |name: &str, metadata, token| Caller { name: name.to_owned(), metadata, token };
    let mut callers = vec![
        caller("nobody", MetadataMap::new(), Token::Missing),
        caller("an empty token", bearer(""), Token::Invalid),
        caller("garbage", bearer("garbage"), Token::Invalid),
    ];
    let built_in: Vec<_> = built_in_roles().map(str::to_owned).collect();
    let single = built_in.iter().cloned().chain(NO_ROLES.map(str::to_owned));
    let sets: Vec<_> = single.map(|role| vec![role]).chain([built_in.clone()]).collect();
    for scope in [Scope::Tenant, Scope::Platform, Scope::Internal] {
        let name = format!("{} expired", scope.as_str_name());
        let metadata = sign(&claims(world, scope, &built_in, 901));
        callers.push(Caller { name, metadata, token: Token::Expired(scope) });
        for roles in &sets {
            let name = format!("{} with {roles:?}", scope.as_str_name());
            let metadata = sign(&claims(world, scope, roles, 0));
            callers.push(Caller { name, metadata, token: Token::Good(scope, roles.clone()) });
        }
    }
    callers
}

/// What a caller is answered, by the golden file alone.
fn expected(golden: &Golden, line: &str, method: &Method, caller: &Caller) -> String {
    let (scope, roles) = &golden[line];
    let Some(scope) = *scope else { return of_example(method).to_owned() };
    let refusal = match &caller.token {
        Token::Missing => TOKEN_MISSING,
        Token::Expired(of) | Token::Good(of, _) if audience(*of) != audience(scope) => {
            TOKEN_INVALID
        }
        Token::Invalid => TOKEN_INVALID,
        Token::Expired(_) => TOKEN_EXPIRED,
        Token::Good(of, named) => {
            let is_enough = |role: &&str| named.contains(&format!("roles/{role}"));
            if *of == scope && roles.iter().any(is_enough) {
                return of_example(method).to_owned();
            }
            PERMISSION_MISSING
        }
    };
    refusal.to_owned()
}

/// What the examples find: nothing is suspended, deleted or failed.
fn of_example(method: &Method) -> &'static str {
    match method.short_name().as_str() {
        "ClusterService.CreateCluster" => "FailedPrecondition CLUSTER_NOT_READY",
        "MigrationService.RetryTenantMigration" => "FailedPrecondition MIGRATION_NOT_FAILED",
        "TenantService.ResumeTenant" => "FailedPrecondition TENANT_NOT_SUSPENDED",
        "TenantService.UndeleteTenant" | "TenantService.PurgeTenant" => {
            "FailedPrecondition RESOURCE_NOT_DELETED"
        }
        _ => "OK",
    }
}

fn answered<T>(answer: &Result<T, Status>) -> String {
    match answer {
        Ok(_) => "OK".to_owned(),
        Err(status) => format!("{:?} {}", status.code(), reason(status)),
    }
}

fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

/// The example of a method, to be done and not only validated. What would be
/// made by it is marked.
fn in_earnest(world: &Inhabited, method: &Method) -> DynamicMessage {
    let mut request = world.example(method);
    request.clear_field_by_name("validate_only");
    let refused = |id: &str| Value::String(format!("Refused {id}"));
    match method.short_name().as_str() {
        "TenantService.CreateTenant" => {
            let tenant = request.get_field_by_name_mut("tenant").unwrap();
            let name = refused(&world.tenant.id.to_string());
            tenant.as_message_mut().unwrap().set_field_by_name("display_name", name);
        }
        "LeaseService.ReportActivity" => {
            request.set_field_by_name("instance", refused(&world.tenant.id.to_string()));
        }
        _ => {}
    }
    request
}

/// All that a refused call could have changed.
async fn state(world: &Inhabited) -> (i64, String) {
    let mut database = world.tenant.database().await;
    let revision = sqlx::query_scalar("SELECT revision FROM platform.head");
    let revision = revision.fetch_one(&mut database).await.unwrap();
    database.close().await.unwrap();
    let mut registry = server().superuser("crm_registry").await;
    let rows = sqlx::query_scalar(
        "SELECT concat_ws(
             E'\\n',
             (SELECT t::text FROM tenants AS t WHERE tenant_id = $1),
             (SELECT count(*) FROM tenants WHERE display_name = 'Refused ' || $1),
             (SELECT count(*) FROM instances WHERE instance = 'Refused ' || $1),
             (SELECT string_agg(cluster || ' ' || display_name, ', ') FROM clusters)
         )",
    );
    let rows = rows.bind(world.tenant.id).fetch_one(&mut registry).await.unwrap();
    registry.close().await.unwrap();
    (revision, rows)
}

#[tokio::test]
async fn every_example_does_what_it_says() {
    let world = Inhabited::create().await;

    for method in methods() {
        let request = world.example(&method).encode_to_vec();
        let answer = method.call(world.right_caller(&method), request.into()).await;

        let expected = of_example(&method).rsplit(' ').next().unwrap();
        assert_eq!(outcome(&answer), expected, "{}", method.short_name());
    }
}

#[test]
fn the_golden_file_names_every_method_and_every_role_and_no_other() {
    let golden = golden();

    let named: BTreeSet<_> = golden.keys().map(|line| (*line).to_owned()).collect();
    let there =
        methods().into_iter().map(|method| method.short_name()).chain([AS_SYSTEM.to_owned()]);
    assert_eq!(named, there.collect::<BTreeSet<_>>());
    let named = golden.values().flat_map(|(_, roles)| roles.iter());
    let named: BTreeSet<_> = named.map(|role| format!("roles/{role}")).collect();
    assert_eq!(named, built_in_roles().map(str::to_owned).collect::<BTreeSet<_>>());
}

#[test]
fn what_a_method_asks_for_fits_its_verb_and_its_service() {
    for method in methods() {
        let name = method.short_name();
        let service = method.descriptor.parent_service();
        let options =
            method.descriptor.method_descriptor_proto().options.clone().unwrap_or_default();
        let reads = options.idempotency_level() == IdempotencyLevel::NoSideEffects;
        let verbs = ["Check", "Get", "List", "Summarize", "Watch"];
        let verb_reads = verbs.iter().any(|verb| method.descriptor.name().starts_with(verb));
        assert_eq!(reads, verb_reads, "{name}");

        let Some((scope, permissions)) = method.guard() else {
            assert_eq!(service.name(), "AuthService", "{name} is for anyone");
            continue;
        };
        for permission in permissions {
            let is_to_read = permission.as_str_name().ends_with("_READ")
                || *permission == Permission::TenantsWatch;
            // Between services, what is done has a name of its own.
            let is_to_write = permission.as_str_name().ends_with("_WRITE")
                || (scope == Scope::Internal && !is_to_read);
            assert_eq!((is_to_read, is_to_write), (reads, !reads), "{name}: {permission:?}");
        }
        let wanted = match service.parent_file().package_name() {
            "crm.registry.v1" if service.name() == "LeaseService" => Scope::Internal,
            "crm.registry.v1" => Scope::Platform,
            _ => Scope::Tenant,
        };
        assert_eq!(scope, wanted, "{name}");
    }
}

#[tokio::test]
async fn who_may_call_what_is_what_the_golden_file_says() {
    let world = Inhabited::create().await;
    let golden = golden();
    let callers = callers(&world).await;
    let before = state(&world).await;
    let (mut cases, mut faults) = (0, Vec::new());

    for method in methods() {
        let channel = channel(method.address());
        let mut lines =
            vec![(method.short_name(), world.example(&method), in_earnest(&world, &method))];
        if lines[0].0 == "MessageService.CreateMessage" {
            let [example, earnest] = [&lines[0].1, &lines[0].2].map(|request| {
                let mut request = request.clone();
                let message = request.get_field_by_name_mut("message").unwrap();
                let system = crm_proto::messaging::v1::message::SenderType::System;
                message
                    .as_message_mut()
                    .unwrap()
                    .set_field_by_name("sender_type", Value::EnumNumber(system.into()));
                request
            });
            lines.push((AS_SYSTEM.to_owned(), example, earnest));
        }
        for (line, example, earnest) in lines {
            for caller in &callers {
                let expected = expected(&golden, &line, &method, caller);
                let request = if expected == of_example(&method) { &example } else { &earnest };
                let request = request.encode_to_vec();
                let metadata = caller.metadata.clone();
                let answer = method.call_on(channel.clone(), metadata, request.into()).await;
                cases += 1;
                let answer = answered(&answer);
                if answer != expected {
                    faults.push(format!("{line}, {}: {answer}, not {expected}", caller.name));
                }
            }
        }
    }

    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(state(&world).await, before, "a refused call did something");
    tell(&format!("{cases} cases of a line of the golden file and a caller"));
}

#[tokio::test]
async fn a_method_is_served_by_its_listener_and_the_edge_and_unknown_elsewhere() {
    let world = Inhabited::create().await;
    let at = server().addresses;
    let listeners = [at.registry, at.internal, at.contacts, at.messaging, at.edge]
        .map(|address| (address, channel(address)));
    let tokens = [
        MetadataMap::new(),
        bearer("garbage"),
        bearer(&world.token("roles/owner")),
        bearer(&operator_token("roles/platform.operator")),
        bearer(&service_token("contacts")),
    ];
    let before = state(&world).await;
    let mut cases = 0;

    for method in methods() {
        let is_internal = method.address() == at.internal;
        for (address, channel) in &listeners {
            // Where services get leases, they get the tokens for that, too.
            let served = *address == method.address()
                || (*address == at.edge && !is_internal)
                || (*address == at.internal && method.guard().is_none());
            let (request, tokens, expected) = if served {
                let right = vec![world.right_caller(&method)];
                (world.example(&method), right, of_example(&method))
            } else {
                (in_earnest(&world, &method), tokens.to_vec(), METHOD_UNKNOWN)
            };
            for metadata in tokens {
                let request = request.encode_to_vec().into();
                let answer = method.call_on(channel.clone(), metadata, request).await;
                assert_eq!(answered(&answer), expected, "{} at {address}", method.short_name());
                cases += 1;
            }
        }
    }

    assert_eq!(state(&world).await, before, "a refused call did something");
    tell(&format!("{cases} cases of a method at a listener"));
}

#[tokio::test]
async fn another_tenants_owner_sees_and_changes_nothing() {
    let world = Inhabited::create().await;
    let other = Inhabited::create().await;
    let own = [&world.contact, &world.deleted_contact, &world.conversation, &world.message];
    let shows = |bytes: &[u8]| {
        let ids = own.iter().map(|name| name.rsplit('/').next().unwrap());
        ids.into_iter().any(|id| bytes.windows(id.len()).any(|part| part == id.as_bytes()))
    };
    let before = state(&world).await;
    let mut cases = 0;

    for method in methods() {
        if !matches!(method.guard(), Some((Scope::Tenant, _))) {
            continue;
        }
        let request = in_earnest(&world, &method).encode_to_vec();
        let names_it = shows(&request);
        let answer = method.call(bearer(&other.token("roles/owner")), request.into()).await;
        let expected = if names_it { NOT_FOUND } else { "OK" };
        assert_eq!(answered(&answer), expected, "{}", method.short_name());
        assert!(!answer.is_ok_and(|bytes| shows(&bytes)), "{}", method.short_name());
        cases += 1;
    }

    assert!(cases >= 14, "only {cases} methods are for tenants");
    assert_eq!(state(&world).await, before, "another tenant's call did something");
    tell(&format!("{cases} methods with another tenant's token"));
}
