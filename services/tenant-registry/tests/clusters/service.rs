//! The methods of ClusterService.

use crm_proto::registry::v1::cluster::{State, TlsMode};
use crm_proto::registry::v1::cluster_service_client::ClusterServiceClient;
use crm_proto::registry::v1::{
    Cluster, CreateClusterRequest, GetClusterRequest, ListClustersRequest, UpdateClusterRequest,
};
use crm_testing::{OtherCluster, Tenant, code_and_reason, field_faults};
use prost::Message as _;
use prost_types::FieldMask;
use tonic::Code;

use super::{FIRST, addition, admin, change, clusters, create, get, set_state, suite, update};

#[tokio::test]
async fn a_server_that_lacks_something_is_refused_with_what_it_lacks() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    let not_ready = (Code::FailedPrecondition, "CLUSTER_NOT_READY".to_owned());

    let bare = create(server, addition("bare", &other)).await;
    assert_eq!(code_and_reason(bare), not_ready);
    other.set_up().await;
    let mut postgres = other.superuser("postgres").await;
    for (spoil, repair, lacks) in [
        (
            "ALTER ROLE crm_registry NOCREATEDB",
            "ALTER ROLE crm_registry CREATEDB",
            "create databases",
        ),
        (
            "REVOKE pg_checkpoint FROM crm_registry",
            "GRANT pg_checkpoint TO crm_registry",
            "checkpoint",
        ),
        (
            "REVOKE EXECUTE ON FUNCTION crm_cluster.ensure_service(text, text) FROM crm_registry",
            "GRANT EXECUTE ON FUNCTION crm_cluster.ensure_service(text, text) TO crm_registry",
            "ensure_service",
        ),
        (
            "GRANT CONNECT ON DATABASE template1 TO PUBLIC",
            "REVOKE CONNECT ON DATABASE template1 FROM PUBLIC",
            "template1",
        ),
        (
            "UPDATE pg_database SET encoding = 0 WHERE datname = 'template0'",
            "UPDATE pg_database SET encoding = 6 WHERE datname = 'template0'",
            "UTF-8",
        ),
    ] {
        sqlx::raw_sql(spoil).execute(&mut postgres).await.unwrap();
        let refused = create(server, addition("bare", &other)).await;
        let message = refused.as_ref().unwrap_err().message().to_owned();
        assert_eq!(code_and_reason(refused), not_ready, "{spoil}");
        assert!(message.contains(lacks), "{message}");
        sqlx::raw_sql(repair).execute(&mut postgres).await.unwrap();
    }
    let mut wrong = addition("bare", &other);
    wrong.password = "another".to_owned();
    assert_eq!(code_and_reason(create(server, wrong).await), not_ready);
    let mut encrypted = addition("bare", &other);
    encrypted.cluster.as_mut().unwrap().tls_mode = TlsMode::Unspecified.into();
    assert_eq!(code_and_reason(create(server, encrypted).await), not_ready);
    let mut nobody = addition("bare", &other);
    nobody.cluster.as_mut().unwrap().port = 1;
    assert_eq!(code_and_reason(create(server, nobody).await), not_ready);

    let dry = CreateClusterRequest { validate_only: true, ..addition("bare", &other) };
    let preview = create(server, dry).await.unwrap();
    assert_eq!((preview.etag.as_str(), preview.template), ("", 0));
    assert!(preview.reachable);
    let missing = get(server, "clusters/bare").await;
    assert_eq!(code_and_reason(missing), (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
}

#[tokio::test]
async fn a_cluster_is_added_once_and_a_repeated_request_answers_the_same() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let request_id = server.clock.new_id().to_string();
    let request = CreateClusterRequest { request_id, ..addition("once", &other) };

    let (one, two) = tokio::join!(create(server, request.clone()), create(server, request.clone()));

    assert_eq!(one.unwrap().encode_to_vec(), two.unwrap().encode_to_vec());
    let reused = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    let mut other_body = request.clone();
    other_body.cluster.as_mut().unwrap().tenant_capacity = Some(7);
    assert_eq!(code_and_reason(create(server, other_body).await), reused);
    let other_password = CreateClusterRequest { password: "another".to_owned(), ..request.clone() };
    assert_eq!(code_and_reason(create(server, other_password).await), reused);
    let exists = (Code::AlreadyExists, "CLUSTER_EXISTS".to_owned());
    let again = create(server, addition("once", &other)).await;
    assert_eq!(code_and_reason(again), exists);
    let twice = create(server, addition("twice", &other)).await;
    assert_eq!(code_and_reason(twice), exists);

    // A call that was cut off before the template was there is taken up.
    let mut registry = server.superuser("crm_registry").await;
    for statement in [
        "UPDATE clusters SET template_id = NULL WHERE cluster = 'once'",
        "UPDATE cluster_requests SET response = NULL WHERE cluster = 'once'",
    ] {
        sqlx::query(statement).execute(&mut registry).await.unwrap();
    }
    let finished = create(server, request).await.unwrap();
    assert!(finished.template > 0, "{finished:?}");

    // The password is nowhere to be read.
    let row: String = sqlx::query_scalar(
        "SELECT concat(encode(secret, 'escape'), c::text, r::text)
         FROM clusters AS c JOIN cluster_requests AS r USING (cluster)
         WHERE cluster = 'once'",
    )
    .fetch_one(&mut registry)
    .await
    .unwrap();
    assert!(!row.contains(other.password()));
    assert!(!format!("{:?}", addition("once", &other)).contains(other.password()));
    set_state(server, "clusters/once", State::Draining).await;
}

#[tokio::test]
async fn an_operator_changes_what_may_be_changed() {
    let (server, _turn) = suite().await;
    let before = get(server, FIRST).await.unwrap();
    let named = Cluster {
        name: FIRST.to_owned(),
        display_name: "The first".to_owned(),
        etag: before.etag.clone(),
        ..Cluster::default()
    };
    let request = UpdateClusterRequest {
        request_id: server.clock.new_id().to_string(),
        ..change(named.clone())
    };

    let dry = UpdateClusterRequest { validate_only: true, ..change(named.clone()) };
    let preview = update(server, dry).await.unwrap();
    assert_eq!(preview.display_name, "The first");
    assert_eq!(get(server, FIRST).await.unwrap().etag, before.etag);
    let after = update(server, request.clone()).await.unwrap();
    assert_eq!((after.display_name.as_str(), &after.host), ("The first", &before.host));
    assert_ne!(after.etag, before.etag);
    let again = update(server, request.clone()).await.unwrap();
    assert_eq!(again.etag, after.etag);

    let stale = (Code::Aborted, "CONCURRENT_CHANGE".to_owned());
    assert_eq!(code_and_reason(update(server, change(named.clone())).await), stale);
    let reused = UpdateClusterRequest { request_id: request.request_id, ..change(named.clone()) };
    let reused = UpdateClusterRequest {
        cluster: Some(Cluster { display_name: "Another".to_owned(), ..named }),
        ..reused
    };
    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(code_and_reason(update(server, reused).await), expected);
    let cleared = UpdateClusterRequest {
        update_mask: Some(FieldMask { paths: vec!["display_name".to_owned()] }),
        ..change(Cluster { name: FIRST.to_owned(), port: -1, ..Cluster::default() })
    };
    assert_eq!(update(server, cleared).await.unwrap().display_name, "");
    let unknown = Cluster { name: "clusters/none".to_owned(), ..after };
    let expected = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    let unknown = Cluster { etag: String::new(), ..unknown };
    assert_eq!(code_and_reason(update(server, change(unknown)).await), expected);
}

#[tokio::test]
async fn a_platform_that_is_full_says_so() {
    let (server, _turn) = suite().await;
    let capacity = |capacity| {
        let tenant_capacity = Some(capacity);
        change(Cluster { name: FIRST.to_owned(), tenant_capacity, ..Cluster::default() })
    };

    let held = get(server, FIRST).await.unwrap().tenant_count;
    update(server, capacity(held + 1)).await.unwrap();
    Tenant::create_in(server).await;
    let refused = Tenant::try_create_in(server).await;
    update(server, capacity(1000)).await.unwrap();

    let expected = (Code::ResourceExhausted, "CLUSTERS_FULL".to_owned());
    assert_eq!(code_and_reason(refused), expected);
    Tenant::create_in(server).await;
}

#[tokio::test]
async fn every_fault_of_a_cluster_stands_in_one_answer() {
    let (server, _turn) = suite().await;
    let request = CreateClusterRequest {
        cluster_id: "Not An Id".to_owned(),
        cluster: Some(Cluster {
            host: "/run/postgresql".to_owned(),
            port: 70_000,
            tls_mode: 9,
            spare_target: Some(-1),
            tenant_capacity: Some(-1),
            ..Cluster::default()
        }),
        request_id: "x".to_owned(),
        ..CreateClusterRequest::default()
    };

    let faults = field_faults(create(server, request).await);

    let fields: Vec<_> = faults.iter().map(|(field, _)| field.as_str()).collect();
    let expected = [
        "cluster.port",
        "cluster.tls_mode",
        "cluster.tenant_capacity",
        "cluster.spare_target",
        "password",
        "request_id",
        "cluster_id",
        "cluster.host",
    ];
    assert_eq!(fields, expected);
    let nothing = change(Cluster { name: FIRST.to_owned(), ..Cluster::default() });
    assert_eq!(field_faults(update(server, nothing).await)[0].0, "update_mask");
    let immutable = UpdateClusterRequest {
        update_mask: Some(FieldMask { paths: vec!["host".to_owned()] }),
        ..change(Cluster { name: "local".to_owned(), ..Cluster::default() })
    };
    let faults = field_faults(update(server, immutable).await);
    let fields: Vec<_> = faults.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["cluster.name", "update_mask"]);
    assert_eq!(field_faults(get(server, "clusters/A").await)[0].0, "name");
}

#[tokio::test]
async fn clusters_are_listed_in_pages() {
    let (server, _turn) = suite().await;
    let (operator, mut client) = clusters(server);
    let other = OtherCluster::start().await;
    other.set_up().await;
    create(server, addition("another", &other)).await.unwrap();
    set_state(server, "clusters/another", State::Draining).await;
    let mut names = Vec::new();
    let mut page_token = String::new();

    loop {
        let request = ListClustersRequest { page_size: 1, page_token };
        let page = client.list_clusters(operator.request(request)).await.unwrap().into_inner();
        assert!(page.clusters.len() <= 1);
        names.extend(page.clusters.into_iter().map(|cluster| cluster.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }

    assert!(names.is_sorted() && names.contains(&FIRST.to_owned()) && names.len() >= 2);
    for request in [
        ListClustersRequest { page_token: "x".to_owned(), ..ListClustersRequest::default() },
        ListClustersRequest { page_size: -1, ..ListClustersRequest::default() },
    ] {
        assert_eq!(field_faults(client.list_clusters(operator.request(request)).await).len(), 1);
    }
}

#[tokio::test]
async fn a_tenants_administrator_sees_no_clusters() {
    let (server, _turn) = suite().await;
    let tenant = Tenant::create_in(server).await;
    let admin = admin(server, &tenant);
    let mut client = ClusterServiceClient::new(admin.channel(server.addresses.registry));

    let read = client.get_cluster(admin.request(GetClusterRequest { name: FIRST.to_owned() }));
    let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
    assert_eq!(code_and_reason(read.await), expected);
    let listed = client.list_clusters(admin.request(ListClustersRequest::default())).await;
    assert_eq!(code_and_reason(listed), expected);
    let created = client.create_cluster(admin.request(CreateClusterRequest::default())).await;
    assert_eq!(code_and_reason(created), expected);
    let updated = client.update_cluster(admin.request(UpdateClusterRequest::default())).await;
    assert_eq!(code_and_reason(updated), expected);
}
