//! What is written for real where the other proofs only ask.

use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_testing::{Client, Tenant, server};
use prost_types::Timestamp;

use super::texts;
use crate::world::service_token;

/// The names of tenants that are made: each has a database.
const NAMES: [&str; 8] = [
    "statement",
    "bidi override",
    "emoji",
    "right to left",
    "decomposed",
    "header",
    "combining flood",
    "noncharacters",
];

#[tokio::test]
async fn a_tenant_of_any_name_is_made_with_a_slug_of_its_own_and_keeps_the_name() {
    let operator = Client::operator(server());
    let channel = operator.channel(server().addresses.registry);
    let mut client = TenantServiceClient::new(channel);
    let names: Vec<_> =
        texts::texts(None).into_iter().filter(|(what, _)| NAMES.contains(&&**what)).collect();
    assert_eq!(names.len(), NAMES.len());

    for (what, display_name) in names {
        let tenant = pb::Tenant {
            display_name: display_name.clone(),
            labels: [(display_name.chars().take(63).collect(), display_name.clone())].into(),
            ..pb::Tenant::default()
        };
        let request = pb::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
        let made = client.create_tenant(operator.request(request)).await;
        let made = made.unwrap_or_else(|status| panic!("{what}: {status:?}")).into_inner();
        let name = format!("tenants/{}", made.slug);
        let read = client.get_tenant(operator.request(pb::GetTenantRequest { name })).await;

        assert_eq!(read.unwrap().into_inner(), made, "{what}");
        assert_eq!(made.display_name, display_name, "{what}");
        assert_eq!(made.labels.values().collect::<Vec<_>>(), [&display_name], "{what}");
    }
}

#[tokio::test]
async fn what_a_process_reports_is_what_operators_see() {
    let tenant = Tenant::create().await;
    let reported: Vec<_> = reports(&tenant.tenant.name);
    let client = Client::new(service_token("contacts"));
    let mut leases = LeaseServiceClient::new(client.channel(server().addresses.internal));

    for report in &reported {
        leases.report_activity(client.request(report.clone())).await.unwrap();
    }

    let operator = Client::operator(server());
    let mut tenants = TenantServiceClient::new(operator.channel(server().addresses.registry));
    let name = format!("{}/activity", tenant.tenant.name);
    let request = operator.request(pb::GetTenantActivityRequest { name });
    let seen = tenants.get_tenant_activity(request).await.unwrap().into_inner();
    for report in reported {
        let process = seen.processes.iter().find(|process| process.instance == report.instance);
        let process = process.unwrap_or_else(|| panic!("{:?} is not seen", report.instance));
        let found = pb::TenantCalls {
            tenant: tenant.tenant.name.clone(),
            sessions_in_use: process.sessions_in_use,
            sessions_idle: process.sessions_idle,
            calls_waiting: process.calls_waiting,
            sessions_opened: process.sessions_opened,
            sessions_closed: process.sessions_closed,
            calls: process.calls,
            calls_refused: process.calls_refused,
            last_call_time: process.last_call_time,
        };
        assert_eq!(report.tenants, [found], "{:?}", report.instance);
    }
}

/// Reports of processes of hostile names, with the figures at their edges.
fn reports(tenant: &str) -> Vec<pb::ReportActivityRequest> {
    let texts = texts::texts(Some(200)).into_iter().map(|(_, text)| text);
    let names =
        texts.filter(|text| (1..=200).contains(&text.chars().count()) && !text.contains('\0'));
    // The server keeps microseconds.
    let times = [
        None,
        Some(Timestamp::default()),
        Some(Timestamp { seconds: -62_135_596_800, nanos: 1_000 }),
        Some(Timestamp { seconds: 253_402_300_799, nanos: 999_999_000 }),
        Some(Timestamp { seconds: -1, nanos: 1_000 }),
    ];
    let counts = [0, 1, 1_000_000_000_000];
    names
        .enumerate()
        .map(|(index, name)| {
            let count = counts[index % counts.len()];
            let sessions = [0, 1, 1_000_000][index % 3];
            let calls = pb::TenantCalls {
                tenant: tenant.to_owned(),
                sessions_in_use: sessions,
                sessions_idle: sessions,
                calls_waiting: sessions,
                sessions_opened: count,
                sessions_closed: Some(pb::SessionsClosed {
                    idle: count,
                    lifetime: count,
                    evicted: count,
                    busy: count,
                    broken: count,
                    revoked: count,
                }),
                calls: count,
                calls_refused: count,
                last_call_time: times[index % times.len()],
            };
            pb::ReportActivityRequest {
                instance: format!("{index}{name}"),
                report_number: 1,
                session_budget: 0,
                tenants: vec![calls],
            }
        })
        .collect()
}
