//! Names: another tenant's is like one that nothing has, to the byte.

use crm_proto::options::v1::Scope;
use prost_reflect::{DynamicMessage, Value};

use super::fields::{Collection, Kind, fields, set};
use super::{Seen, World, report, unknown};
use crate::methods::{Method, methods};
use crate::world::{bearer, operator_token, outcome, service_token};

/// The refusal of a name that nothing has, and of a text that is no name.
const UNKNOWN: &str = "RESOURCE_NOT_FOUND";
const MALFORMED: &str = "INVALID_FIELDS";

/// A field of a request that names something.
struct Place {
    method: Method,
    path: String,
    kind: Kind,
    collection: Collection,
}

impl Place {
    fn all() -> Vec<Self> {
        let mut places = Vec::new();
        for method in methods() {
            for (path, kind) in fields(&method.input()) {
                let (Kind::Name(of) | Kind::Mentioned(of) | Kind::Unread(of)) = kind else {
                    continue;
                };
                places.push(Self { method: method.clone(), path, kind, collection: of });
            }
        }
        places
    }

    fn is_tenants(&self) -> bool {
        matches!(self.method.guard(), Some((Scope::Tenant, _)))
    }

    /// A request with this name. Those that write are sent as they are, too,
    /// where nothing comes of them.
    fn request(&self, world: &World, name: &str, is_real: bool) -> DynamicMessage {
        let mut request = world.inhabited.example(&self.method);
        set(&mut request, &self.path, name);
        if is_real && let Some(field) = self.method.input().get_field_by_name("validate_only") {
            request.set_field(&field, Value::Bool(false));
        }
        request
    }

    /// What the names of this collection are made of.
    fn name(&self, ids: [&str; 2]) -> String {
        let [id, child] = ids;
        match self.collection {
            Collection::Contacts => format!("contacts/{id}"),
            Collection::Conversations => format!("conversations/{id}"),
            Collection::Messages => format!("conversations/{id}/messages/{child}"),
            Collection::Tenants => format!("tenants/{id}"),
            Collection::Activities => format!("tenants/{id}/activity"),
            Collection::Migrations => format!("tenants/{id}/migrations/contacts"),
            // Their ids are chosen: 63 characters at most, the first a letter.
            Collection::Clusters => format!("clusters/c{id}"),
        }
    }

    fn unknown(&self) -> String {
        self.name([&unknown().to_string(), &unknown().to_string()])
    }

    /// What a tenant has of this collection, living and deleted; with parts of
    /// the caller's own in between.
    fn foreign(&self, own: &World, other: &World) -> Vec<String> {
        let planted = &other.planted;
        match self.collection {
            Collection::Contacts => {
                vec![planted.contact.name.clone(), planted.deleted_contact.name.clone()]
            }
            Collection::Conversations => vec![
                planted.conversation.name.clone(),
                planted.contact.initial_conversation.clone(),
                planted.deleted_contact.initial_conversation.clone(),
            ],
            Collection::Messages => {
                let [ours, theirs] = [own, other].map(|world| {
                    world.planted.message.name.split('/').map(str::to_owned).collect::<Vec<_>>()
                });
                vec![
                    planted.message.name.clone(),
                    planted.deleted_message.name.clone(),
                    self.name([&ours[1], &theirs[3]]),
                    self.name([&theirs[1], &ours[3]]),
                ]
            }
            // Operators and services know all of them.
            Collection::Tenants
            | Collection::Activities
            | Collection::Migrations
            | Collection::Clusters => Vec::new(),
        }
    }

    /// What is deleted of the caller's own.
    fn deleted(&self, own: &World) -> Option<String> {
        match self.collection {
            Collection::Contacts => Some(own.planted.deleted_contact.name.clone()),
            Collection::Conversations => {
                Some(own.planted.deleted_contact.initial_conversation.clone())
            }
            Collection::Messages => Some(own.planted.deleted_message.name.clone()),
            Collection::Tenants
            | Collection::Activities
            | Collection::Migrations
            | Collection::Clusters => None,
        }
    }
}

/// Texts that look like a name, and are none.
fn malformed(name: &str) -> Vec<String> {
    let (collection, id) = name.split_once('/').unwrap();
    let longest = "a".repeat(1024 - collection.len() - 1);
    let mut texts = vec![
        format!("people/{id}"),
        format!("{}/{id}", collection.to_uppercase()),
        format!("{collection}/{}", id.to_uppercase()),
        format!("{collection}/{{{id}}}"),
        format!("{name}/"),
        format!("/{name}"),
        format!("//crm/{name}"),
        format!(" {name}"),
        format!("{name}\n"),
        format!("{name}\0"),
        format!("{collection}//{id}"),
        format!("{collection}/../{name}"),
        format!("{name}/.."),
        format!("{name}/{name}"),
        format!("{name}?x=1"),
        format!("{name}' OR '1'='1"),
        name.replace('/', "%2F"),
        name.replace('/', "%2f"),
        name.replacen('-', "%2D", 1),
        name.replacen('-', "\u{2010}", 1),
        name.replacen('0', "\u{660}", 1),
        format!("{collection}/{longest}"),
        format!("{collection}/"),
        collection.to_owned(),
        id.to_owned(),
        "/".to_owned(),
        "..".to_owned(),
        "-".to_owned(),
        "*".to_owned(),
    ];
    // A cluster's id is no UUID, and so may lack hyphens.
    if collection != "clusters" {
        texts.push(name.replace('-', ""));
        texts.push(format!("{collection}/*"));
    }
    // Migrations of all tenants are listed so (AIP-159).
    if collection != "tenants" {
        texts.push(format!("{collection}/-"));
    }
    texts
}

#[tokio::test]
async fn another_tenants_name_is_like_an_unknown_one() {
    let (own, other) = tokio::join!(World::create(), World::create());
    let mut cases = 0;

    for place in Place::all().iter().filter(|place| place.is_tenants()) {
        for is_real in [false, true] {
            for foreign in place.foreign(&own, &other) {
                let unknown = place.unknown();
                let ask = async |name: &str| {
                    own.call(&place.method, &place.request(&own, name, is_real)).await
                };
                let (known, unknown_answer) = (ask(&foreign).await, ask(&unknown).await);

                let at = format!("{} {} {foreign}", place.method.short_name(), place.path);
                let expected = if matches!(place.kind, Kind::Unread(_)) { "OK" } else { UNKNOWN };
                assert_eq!(outcome(&known), expected, "{at}");
                if expected == UNKNOWN {
                    let seen = Seen::of(&known).renamed(&foreign, &unknown);
                    assert_eq!(seen, Seen::of(&unknown_answer), "{at}");
                } else {
                    assert_eq!(outcome(&unknown_answer), expected, "{at}");
                    let answer = String::from_utf8_lossy(known.as_ref().unwrap()).into_owned();
                    assert!(!answer.contains(&foreign), "{at}");
                }
                cases += 1;
            }
        }
    }

    own.inhabited.tenant.check_log().await;
    other.inhabited.tenant.check_log().await;
    report("names of another tenant", cases);
    assert!(cases >= 80, "cases were lost: {cases}");
}

#[tokio::test]
async fn a_name_of_nothing_is_not_found_and_what_is_deleted_says_so() {
    let world = World::create().await;
    let mut cases = 0;

    for place in Place::all() {
        let is_read = matches!(place.kind, Kind::Name(_));
        let expected = if is_read {
            UNKNOWN.to_owned()
        } else {
            // As if it had not been sent.
            let example = world.inhabited.example(&place.method);
            outcome(&world.call(&place.method, &example).await)
        };
        let request = place.request(&world, &place.unknown(), is_read);
        let answer = world.call(&place.method, &request).await;
        let at = format!("{} {}", place.method.short_name(), place.path);
        assert_eq!(outcome(&answer), expected, "{at}");
        cases += 1;

        let Some(deleted) = place.deleted(&world) else { continue };
        let request = place.request(&world, &deleted, false);
        let answer = outcome(&world.call(&place.method, &request).await);
        assert!(["OK", "RESOURCE_DELETED"].contains(&answer.as_str()), "{at}: {answer}");
        cases += 1;
    }

    report("unknown and deleted names", cases);
}

#[tokio::test]
async fn a_text_that_is_no_name_is_refused_whatever_it_is_made_of() {
    let (own, other) = tokio::join!(World::create(), World::create());
    let mut cases = 0;

    for place in Place::all() {
        if matches!(place.kind, Kind::Unread(_)) {
            continue;
        }
        let unknown = place.unknown();
        let known = place.foreign(&own, &other).into_iter().next().unwrap_or(place.unknown());
        for (made_of_known, made_of_unknown) in malformed(&known).iter().zip(malformed(&unknown)) {
            let ask =
                async |name: &str| own.call(&place.method, &place.request(&own, name, true)).await;
            let answer = ask(made_of_known).await;
            let at = format!("{} {} {made_of_known:?}", place.method.short_name(), place.path);
            assert_eq!(outcome(&answer), MALFORMED, "{at}");
            assert_eq!(Seen::of(&answer), Seen::of(&ask(&made_of_unknown).await), "{at}");
            cases += 1;
        }
    }

    report("malformed names", cases);
    assert!(cases >= 600, "cases were lost: {cases}");
}

#[tokio::test]
async fn who_may_not_call_a_method_learns_nothing_from_names() {
    let (own, other) = tokio::join!(World::create(), World::create());
    let callers = [
        (Scope::Tenant, own.inhabited.token("roles/owner")),
        (Scope::Platform, operator_token(crm_auth::PLATFORM_OPERATOR)),
        (Scope::Internal, service_token("contacts")),
    ];
    let mut cases = 0;

    for place in Place::all() {
        let (scope, _) = place.method.guard().unwrap();
        let of = |world: &World| place.foreign(world, world).into_iter().next();
        let tenant = |world: &World| place.name([&world.id().to_string(), "-"]);
        let names = [&own, &other].map(|world| of(world).unwrap_or_else(|| tenant(world)));
        for (_, token) in callers.iter().filter(|(caller, _)| *caller != scope) {
            let mut seen = Vec::new();
            for name in names.iter().chain([&place.unknown(), &"nonsense".to_owned()]) {
                let request = place.request(&own, name, true);
                let message = prost::Message::encode_to_vec(&request);
                let answer = place.method.call(bearer(token), message.into()).await;
                let at = format!("{} {} {name}", place.method.short_name(), place.path);
                // Tokens of services are for another audience.
                let outcome = outcome(&answer);
                let refused = ["PERMISSION_MISSING", "TOKEN_INVALID"].contains(&outcome.as_str());
                assert!(refused, "{at}: {outcome}");
                seen.push(Seen::of(&answer));
                cases += 1;
            }
            assert!(seen.iter().all(|answer| *answer == seen[0]), "{seen:?}");
        }
    }

    report("names in calls that are not allowed", cases);
}
