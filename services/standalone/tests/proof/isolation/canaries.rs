//! Everything is called, by everyone, with canaries in everything: whose client
//! gets another's, and what the log has of any, `crm_testing` looks at. Here it
//! gets something to look at.

use crm_proto::contacts::v1 as contacts;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::options::v1::Scope;
use crm_testing::{canary, registry_canary, server, watched};
use prost_reflect::{DynamicMessage, Value};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::task::JoinSet;

use super::fields::{Kind, fields, set};
use super::{World, report};
use crate::methods::{Method, methods};
use crate::world::{bearer, operator_token, outcome};

/// How often everything is called.
const ROUNDS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_at_once_get_nothing_of_each_other() {
    let before = watched();
    let (one, two) = tokio::join!(World::create(), World::create());
    let mut calls = JoinSet::new();

    for (own, other) in [(&one, &two), (&two, &one)] {
        for method in methods() {
            let requests = requests(own, other, &method);
            let callers = [
                own.inhabited.right_caller(&method),
                bearer(&own.inhabited.token("roles/viewer")),
                bearer(&operator_token(crm_auth::PLATFORM_OPERATOR)),
            ];
            for request in requests {
                let message = prost::Message::encode_to_vec(&request);
                for caller in &callers {
                    let (method, caller, message) =
                        (method.clone(), caller.clone(), message.clone());
                    calls.spawn(async move {
                        for _ in 0..ROUNDS {
                            let answer = method.call(caller.clone(), message.clone().into()).await;
                            let outcome = outcome(&answer);
                            assert_ne!(outcome, "INTERNAL", "{}", method.short_name());
                        }
                    });
                    // As many at once as a small machine takes well.
                    while calls.len() >= 16 {
                        calls.join_next().await.unwrap().unwrap();
                    }
                }
            }
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }

    let after = watched();
    report("answers looked at", usize::try_from(after.answers - before.answers).unwrap());
    report("names in them", usize::try_from(after.names - before.names).unwrap());
    report("events and spans", usize::try_from(after.records - before.records).unwrap());
    assert!(after.answers - before.answers >= 3000);
}

/// What a tenant has, what the other one has, and a canary in each text.
fn requests(own: &World, other: &World, method: &Method) -> Vec<DynamicMessage> {
    let mut requests = vec![own.inhabited.example(method), other.inhabited.example(method)];
    let text = match method.guard() {
        Some((Scope::Tenant, _)) => canary(own.id()),
        _ => registry_canary(own.id()),
    };
    for (path, kind) in fields(&method.input()) {
        let is_map = ["metadata", "labels"].iter().any(|map| path.ends_with(map));
        // The SQL of migrations is a service's, and stands in its log.
        if kind == Kind::Text && !is_map && method.short_name() != "LeaseService.RegisterSchema" {
            let mut request = own.inhabited.example(method);
            set(&mut request, &path, &text);
            requests.push(request);
        }
    }
    for (field, value) in [("show_deleted", Value::Bool(true)), ("view", Value::EnumNumber(2))] {
        if let Some(field) = method.input().get_field_by_name(field) {
            let mut request = own.inhabited.example(method);
            request.set_field(&field, value);
            requests.push(request);
        }
    }
    requests
}

/// What PostgreSQL says of a row that it refuses has the row's values in it.
#[tokio::test]
async fn what_the_database_refuses_is_not_told_with_its_values() {
    let world = World::create().await;
    let admin = world.inhabited.tenant.admin();
    let text = canary(world.id());
    let refusals = [
        "CREATE UNIQUE INDEX once ON contacts.contacts (email) WHERE company = 'once'",
        "ALTER TABLE contacts.contacts ADD CHECK (company <> 'check')",
        "CREATE FUNCTION contacts.refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM NEW.display_name::bigint; RETURN NEW; END $$;
         GRANT EXECUTE ON FUNCTION contacts.refuse() TO PUBLIC;
         CREATE TRIGGER refuse BEFORE INSERT ON contacts.contacts FOR EACH ROW
             WHEN (NEW.company = 'cast') EXECUTE FUNCTION contacts.refuse()",
    ];
    let mut database = world.inhabited.tenant.database().await;
    for refusal in refusals {
        sqlx::raw_sql(AssertSqlSafe(refusal)).execute(&mut database).await.unwrap();
    }
    database.close().await.unwrap();
    let create = async |company: &str| {
        let contact = contacts::Contact {
            display_name: text.clone(),
            email: format!("{text}@example.com"),
            company: company.to_owned(),
            ..Default::default()
        };
        let request =
            contacts::CreateContactRequest { contact: Some(contact), ..Default::default() };
        let mut client = ContactServiceClient::new(admin.channel(server().addresses.contacts));
        outcome(&client.create_contact(admin.request(request)).await)
    };
    let before = watched().records;

    assert_eq!(create("once").await, "OK");
    for company in ["once", "check", "cast"] {
        assert_eq!(create(company).await, "INTERNAL", "{company}");
    }

    assert!(watched().records > before, "nothing was told");
    world.inhabited.tenant.check_log().await;
}
