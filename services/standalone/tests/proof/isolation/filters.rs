//! What is asked by its value: filters, and the names of accounts. Another
//! tenant's value fits as much as one that nobody has.

use crm_testing::canary;
use prost_reflect::DynamicMessage;

use super::fields::{Kind, fields, set};
use super::{Seen, World, report, unknown};
use crate::methods::{Method, methods};
use crate::world::outcome;

/// The filters that name what a tenant has, each with another tenant's value
/// and with one of nobody; and what is no filter of this list.
fn filters(method: &Method, other: &World) -> (Vec<[String; 2]>, Vec<String>) {
    let (text, nobody) = (canary(other.id()), canary(unknown()));
    let contact = |name: &str| format!("contact = \"{name}\"");
    let no_contact = || contact(&format!("contacts/{}", unknown()));
    match method.short_name().as_str() {
        "ContactService.ListContacts" => (
            vec![
                [&text, &nobody].map(|text| format!("email = \"{text}@example.com\"")),
                [&text, &nobody].map(|text| format!("email = \"{text}@EXAMPLE.com\"")),
                [&text, &nobody].map(|text| format!("metadata.canary = \"{text}\"")),
                [&other.planted.contact.phone, "+1 555 01234567"]
                    .map(|phone| format!("phone = \"{phone}\" AND email = \"{text}@example.com\"")),
            ],
            vec![format!("name = \"{}\"", other.inhabited.contact), "email ~ \"%\"".to_owned()],
        ),
        "ConversationService.ListConversations" => (
            vec![
                [contact(&other.inhabited.contact), no_contact()],
                [contact(&other.inhabited.deleted_contact), no_contact()],
                [
                    contact(&other.inhabited.contact) + " AND state = STATE_ACTIVE",
                    no_contact() + " AND state = STATE_ACTIVE",
                ],
            ],
            vec![
                contact(&other.inhabited.conversation),
                contact(&other.inhabited.contact.to_uppercase()),
                contact("contacts/-"),
                contact("tenants/../contacts"),
            ],
        ),
        // They name types of resources, and states.
        "ChangeService.ListChanges" => (vec![], vec![contact(&other.inhabited.contact)]),
        // Operators may know every tenant.
        "TenantService.ListTenants" | "MigrationService.ListTenantMigrations" => (vec![], vec![]),
        other => panic!("{other} has a filter: say here what that can name"),
    }
}

#[tokio::test]
async fn another_tenants_value_fits_nothing() {
    let (own, other) = tokio::join!(World::create(), World::create());
    let mut cases = 0;

    for method in methods() {
        let texts = fields(&method.input()).into_iter();
        for (path, _) in texts.filter(|(_, kind)| *kind == Kind::Filter) {
            let (known, malformed) = filters(&method, &other);
            let ask = async |filter: &str| {
                let mut request = own.inhabited.example(&method);
                set(&mut request, &path, filter);
                own.call(&method, &request).await
            };
            for [known, unknown] in &known {
                let answer = ask(known).await;
                assert_eq!(outcome(&answer), "OK", "{known}");
                assert_eq!(Seen::of(&answer), Seen::of(&ask(unknown).await), "{known}");
                cases += 1;
            }
            for text in &malformed {
                assert_eq!(outcome(&ask(text).await), "INVALID_FIELDS", "{text}");
                cases += 1;
            }
        }
    }

    report("filters", cases);
    assert!(cases >= 14, "cases were lost: {cases}");
}

#[tokio::test]
async fn an_account_that_is_not_there_is_like_a_wrong_secret() {
    let world = World::create().await;
    let mut cases = 0;

    for method in methods() {
        let texts = fields(&method.input()).into_iter();
        for (path, _) in texts.filter(|(_, kind)| *kind == Kind::Account) {
            let mut seen: Vec<Seen> = Vec::new();
            let nobody = format!("serviceAccounts/{}", unknown());
            let accounts = [
                "services/contacts",
                "services/messaging",
                crm_standalone::app::LOCAL_OPERATOR,
                &nobody,
                "services/unknown",
                "services/-",
                "nonsense",
                "../services/contacts",
            ];
            for account in accounts {
                let mut request: DynamicMessage = world.inhabited.example(&method);
                set(&mut request, &path, account);
                request.set_field_by_name(
                    "client_secret",
                    prost_reflect::Value::String("x".repeat(43)),
                );
                let answer = world.call(&method, &request).await;
                assert_eq!(outcome(&answer), "CREDENTIALS_INVALID", "{account}");
                seen.push(Seen::of(&answer));
                cases += 1;
            }
            assert!(seen.iter().all(|answer| *answer == seen[0]), "{seen:?}");
        }
    }

    report("accounts", cases);
    assert!(cases >= 8, "cases were lost: {cases}");
}
