//! Sessions whose way to the server breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crm_proto::messaging::v1::message::SenderType;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::messaging::v1::{CreateMessageRequest, Message};
use crm_proto::registry::v1::cluster::State;
use crm_testing::{OtherCluster, PostgresLink, Server, Side, Tenant, Verdict, code_and_reason};
use tonic::{Code, Status};

use super::{FIRST, addition, admin, create, set_state, suite};

/// A tenant whose services reach its server by a link.
async fn linked_tenant(server: &Server, other: &OtherCluster) -> (Tenant, PostgresLink) {
    let link = other.link().await;
    let mut request = addition("linked", other);
    request.cluster.as_mut().unwrap().port = link.port().into();
    let added = create(server, request).await.unwrap();
    set_state(server, FIRST, State::Draining).await;
    let tenant = Tenant::create_in(server).await;
    set_state(server, FIRST, State::Active).await;
    set_state(server, &added.name, State::Draining).await;
    assert_eq!(tenant.tenant.cluster, added.name);
    (tenant, link)
}

/// Sends a message to a conversation that is not there.
async fn send_to_nobody(server: &Server, tenant: &Tenant) -> Result<(), Status> {
    let admin = admin(server, tenant);
    let mut messages = MessageServiceClient::new(admin.channel(server.addresses.messaging));
    let message = Message {
        sender_type: SenderType::User.into(),
        content: "hello".to_owned(),
        ..Message::default()
    };
    let parent = format!("conversations/{}", server.clock.new_id());
    let request = CreateMessageRequest { parent, message: Some(message), ..Default::default() };
    messages.create_message(admin.request(request)).await.map(drop)
}

// The link goes on while the tenant is checked.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_fails_leaves_the_works_own_error() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let (tenant, link) = linked_tenant(server, &other).await;
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let [opened, rolled_back] = [0, 1];
    let counted = counts.clone();
    link.judge(move |statement| {
        let count = |which: usize| counted[which].fetch_add(1, Ordering::Relaxed);
        if statement.text == "ROLLBACK" {
            count(rolled_back);
            return Verdict::Cut(Side::Before);
        }
        if statement.text.starts_with("SELECT pg_backend_pid()") {
            count(opened);
        }
        Verdict::Pass
    });

    let outcomes = [send_to_nobody(server, &tenant).await, send_to_nobody(server, &tenant).await];

    let not_found = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    for outcome in outcomes {
        assert_eq!(code_and_reason(outcome), not_found);
    }
    // The second call got a session of its own.
    assert_eq!(counts.each_ref().map(|count| count.load(Ordering::Relaxed)), [2, 2]);
}
