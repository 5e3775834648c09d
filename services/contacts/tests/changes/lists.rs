//! Lists, while others write.

use crm_proto::contacts::v1::ListContactsRequest;
use crm_testing::{Tenant, field_faults};

use crate::{create, delete, deletion, list};

#[tokio::test]
async fn lists_are_filtered_and_walked_newest_first_while_others_write() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    for i in 0..30 {
        create(&admin, &format!("Contact {i}"), &format!("c{}@example.com", i % 3)).await;
    }
    let page = |token: &str| ListContactsRequest {
        page_size: 4,
        page_token: token.to_owned(),
        ..ListContactsRequest::default()
    };

    let mut walked = Vec::new();
    let mut token = String::new();
    loop {
        let listed = list(&admin, page(&token)).await.unwrap();
        assert_eq!(listed.revision, 30);
        walked.extend(listed.contacts);
        token = listed.next_page_token;
        if token.is_empty() {
            break;
        }
        // What comes meanwhile is newer than any page, and what goes was seen.
        let newest = create(&admin, "Newest", "n@example.com").await;
        delete(&admin, deletion(&newest.name)).await.unwrap();
    }

    let revisions: Vec<_> = walked.iter().map(|contact| contact.revision).collect();
    assert_eq!(revisions, (1..=30).rev().collect::<Vec<_>>());
    let filtered =
        |filter: &str| ListContactsRequest { filter: filter.to_owned(), ..Default::default() };
    let found = list(&admin, filtered("email = \"C1@EXAMPLE.com\"")).await.unwrap();
    assert_eq!(found.contacts.len(), 10);
    let none =
        list(&admin, filtered("email = \"c1@example.com\" AND phone = \"1\"")).await.unwrap();
    assert_eq!(none.contacts, []);
    for filter in ["name = 1", "email", "email = \"x\" OR phone = 1", "email = \"'; DROP TABLE"] {
        assert_eq!(field_faults(list(&admin, filtered(filter)).await)[0].0, "filter", "{filter}");
    }
    let foreign = ListContactsRequest { page_token: token, show_deleted: true, ..page("") };
    list(&admin, foreign).await.unwrap();
    tenant.check_log().await;
}

#[tokio::test]
async fn lists_are_filtered_by_phone_and_metadata_over_an_index() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let ask = |filter: &str| {
        let (admin, filter) = (admin.clone(), filter.to_owned());
        async move {
            let request = ListContactsRequest { filter, ..Default::default() };
            let found = list(&admin, request).await.unwrap().contacts;
            found.into_iter().map(|contact| contact.display_name).collect::<Vec<_>>()
        }
    };
    for (name, phone, metadata) in [
        ("Ada", "+44 (0)20 7946-0958", r#"{"tier": "gold", "visits": 7, "at": {"city": "Bath"}}"#),
        ("Bob", "+44 20 7946 0959", r#"{"tier": "7", "visits": "7", "vip": true}"#),
    ] {
        let created = create(&admin, name, "x@example.com").await;
        let mut database = tenant.database().await;
        // The columns as the service writes them.
        let written = sqlx::query(
            "UPDATE contacts.contacts SET phone = $2, metadata = $3::jsonb
             WHERE 'contacts/' || contact_id = $1",
        );
        written.bind(created.name).bind(phone).bind(metadata).execute(&mut database).await.unwrap();
    }

    assert_eq!(ask(r#"phone = "+440207946.0958""#).await, ["Ada"]);
    assert_eq!(ask(r#"phone = "0207946.0958""#).await, [""; 0]);
    assert_eq!(ask(r#"metadata.tier = "gold""#).await, ["Ada"]);
    assert_eq!(ask("metadata.tier = gold AND metadata.at.city = Bath").await, ["Ada"]);
    assert_eq!(ask("metadata.visits = 7").await, ["Ada"]);
    assert_eq!(ask(r#"metadata.visits = "7""#).await, ["Bob"]);
    assert_eq!(ask("metadata.vip = true AND metadata.tier = gold").await, [""; 0]);
    let nameless = ListContactsRequest { filter: "metadata = 1".to_owned(), ..Default::default() };
    assert_eq!(field_faults(list(&admin, nameless).await)[0].0, "filter");

    let mut database = tenant.database().await;
    sqlx::query("SET enable_seqscan = off").execute(&mut database).await.unwrap();
    for (index, condition) in [
        ("contacts_metadata_idx", r#"metadata @> '{"tier": "gold"}'"#),
        ("contacts_phone_key_idx", "translate(phone, ' ()-./', '') = '+440207946.0958'"),
        (
            "contacts_email_key_idx",
            r#"lower(email COLLATE "und-x-icu") COLLATE "C"
                = lower('x@example.com' COLLATE "und-x-icu") COLLATE "C""#,
        ),
    ] {
        let explain = format!("EXPLAIN SELECT * FROM contacts.contacts WHERE {condition}");
        let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(explain))
            .fetch_all(&mut database)
            .await
            .unwrap();
        assert!(plan.iter().any(|line| line.contains(index)), "{plan:#?}");
    }
}
