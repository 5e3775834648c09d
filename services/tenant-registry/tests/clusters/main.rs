//! ClusterService, and more than one PostgreSQL cluster.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod hanging;
mod servers;
mod service;
mod sessions;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crm_auth::TenantClaims;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::registry::v1::cluster::{State, TlsMode};
use crm_proto::registry::v1::cluster_service_client::ClusterServiceClient;
use crm_proto::registry::v1::{
    Cluster, CreateClusterRequest, GetClusterRequest, UpdateClusterRequest,
};
use crm_testing::{Channel, Client, OtherCluster, Server, Tenant, own_server};
use tokio::sync::{Mutex, MutexGuard};
use tonic::Status;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first cluster of every installation.
const FIRST: &str = "clusters/local";

/// A suite whose clusters a test may change, for one test at a time.
async fn suite() -> (&'static Server, MutexGuard<'static, ()>) {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    (SERVER.get_or_init(|| own_server(0)), turn)
}

fn clusters(server: &Server) -> (Client, ClusterServiceClient<Channel>) {
    let operator = Client::operator(server);
    let client = ClusterServiceClient::new(operator.channel(server.addresses.registry));
    (operator, client)
}

/// A request to add a cluster, on this machine.
fn addition(id: &str, other: &OtherCluster) -> CreateClusterRequest {
    CreateClusterRequest {
        cluster_id: id.to_owned(),
        cluster: Some(Cluster {
            host: "127.0.0.1".to_owned(),
            port: other.port().into(),
            tls_mode: TlsMode::Disabled.into(),
            spare_target: Some(0),
            ..Cluster::default()
        }),
        password: other.password().to_owned(),
        ..CreateClusterRequest::default()
    }
}

async fn create(server: &Server, request: CreateClusterRequest) -> Result<Cluster, Status> {
    let (operator, mut client) = clusters(server);
    Ok(client.create_cluster(operator.request(request)).await?.into_inner())
}

async fn get(server: &Server, name: &str) -> Result<Cluster, Status> {
    let (operator, mut client) = clusters(server);
    let request = GetClusterRequest { name: name.to_owned() };
    Ok(client.get_cluster(operator.request(request)).await?.into_inner())
}

async fn update(server: &Server, request: UpdateClusterRequest) -> Result<Cluster, Status> {
    let (operator, mut client) = clusters(server);
    Ok(client.update_cluster(operator.request(request)).await?.into_inner())
}

/// A change of a cluster, by the fields that are set.
fn change(cluster: Cluster) -> UpdateClusterRequest {
    UpdateClusterRequest { cluster: Some(cluster), ..UpdateClusterRequest::default() }
}

async fn set_state(server: &Server, name: &str, state: State) {
    let cluster = Cluster { name: name.to_owned(), state: state.into(), ..Cluster::default() };
    assert_eq!(update(server, change(cluster)).await.unwrap().state(), state);
}

/// Asks until the cluster is as it should be.
async fn until(server: &Server, name: &str, is_right: impl Fn(&Cluster) -> bool) -> Cluster {
    let limit = Instant::now() + PATIENCE;
    loop {
        let cluster = get(server, name).await.unwrap();
        if is_right(&cluster) {
            return cluster;
        }
        assert!(Instant::now() < limit, "{cluster:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A client with the token of an administrator of the tenant.
fn admin(server: &Server, tenant: &Tenant) -> Client {
    let claims = TenantClaims { tid: tenant.id, generation: 1, ver: 1 };
    let subject = format!("serviceAccounts/{}", tenant.id);
    let roles = vec!["roles/admin".to_owned()];
    Client::new(server.identity.issue(subject, roles, Some(claims)).unwrap().token)
}

/// Writes into the tenant's database, through the service.
async fn write(server: &Server, tenant: &Tenant) -> Result<(), Status> {
    let admin = admin(server, tenant);
    let mut contacts = ContactServiceClient::new(admin.channel(server.addresses.contacts));
    let contact = Contact {
        display_name: "First".to_owned(),
        phone: "12345".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    contacts.create_contact(admin.request(request)).await.map(drop)
}
