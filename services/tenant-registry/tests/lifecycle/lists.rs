//! Lists of tenants.

use crm_proto::registry::v1 as pb;
use crm_testing::{Tenant, field_faults};

use crate::Verb::{Delete, Suspend};
use crate::{act, ask, list, time};

#[tokio::test]
async fn lists_are_filtered_and_paged_the_newest_first() {
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(Tenant::create().await.tenant);
    }
    act(Suspend, ask(&made[1].name)).await.unwrap();
    act(Delete, ask(&made[3].name)).await.unwrap();
    let mine = |tenants: &[pb::Tenant]| -> Vec<String> {
        let known = |tenant: &&pb::Tenant| made.iter().any(|own| own.name == tenant.name);
        tenants.iter().filter(known).map(|tenant| tenant.name.clone()).collect()
    };
    let names = |order: &[usize]| -> Vec<String> {
        order.iter().map(|index| made[*index].name.clone()).collect()
    };

    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListTenantsRequest { page_size: 2, page_token, ..Default::default() };
        let page = list(request).await.unwrap();
        assert!(page.tenants.len() <= 2);
        all.extend(page.tenants);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(all.is_sorted_by_key(|tenant| std::cmp::Reverse(time(tenant.create_time))));
    assert_eq!(mine(&all), names(&[4, 2, 1, 0]));

    let filtered = async |filter: &str, show_deleted| {
        let filter = filter.to_owned();
        let request =
            pb::ListTenantsRequest { filter, show_deleted, page_size: 1000, ..Default::default() };
        mine(&list(request).await.unwrap().tenants)
    };
    assert_eq!(filtered("", true).await, names(&[4, 3, 2, 1, 0]));
    assert_eq!(filtered("state = STATE_SUSPENDED", false).await, names(&[1]));
    assert_eq!(filtered("state = STATE_DELETED", true).await, names(&[3]));
    assert!(filtered("state = STATE_DELETED", false).await.is_empty());
    let slug = format!("slug = \"{}\" AND state = STATE_ACTIVE", made[2].slug);
    assert_eq!(filtered(&slug, false).await, names(&[2]));
}

#[tokio::test]
async fn every_fault_of_a_list_stands_in_one_answer() {
    let faults = async |request| -> Vec<String> {
        field_faults(list(request).await).into_iter().map(|fault| fault.0).collect()
    };
    let base = pb::ListTenantsRequest::default();
    let filtered =
        |filter: &str| pb::ListTenantsRequest { filter: filter.to_owned(), ..base.clone() };

    for filter in ["display_name = x", "state = ACTIVE", "state = STATE_UNSPECIFIED", "slug"] {
        let status = list(filtered(filter)).await.unwrap_err();
        let field = filter.split(' ').next().unwrap();
        let text = String::from_utf8_lossy(status.details()).into_owned();
        assert!(text.contains(field), "{filter}: {text}");
        assert_eq!(faults(filtered(filter)).await, ["filter"], "{filter}");
    }
    Tenant::create().await;
    Tenant::create().await;
    let first = list(pb::ListTenantsRequest { page_size: 1, ..base.clone() }).await.unwrap();
    let page_token = first.next_page_token;
    let other = pb::ListTenantsRequest {
        page_size: -1,
        page_token,
        filter: "state = STATE_ACTIVE".to_owned(),
        show_deleted: false,
    };
    assert_eq!(faults(other).await, ["page_size", "page_token"]);
}
