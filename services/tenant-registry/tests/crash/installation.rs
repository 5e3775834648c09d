//! The program `tenant-registry` on a PostgreSQL that it reaches by a link, and
//! the data services beside it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crm_auth::TenantClaims;
use crm_clock::Clock;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, GetContactRequest};
use crm_proto::registry::v1::CreateTenantRequest;
use crm_proto::registry::v1::Tenant;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_tenant_registry::consistency::Consistency;
use crm_tenant_registry::identity::Identity;
use crm_tenant_registry::{
    Account, ClusterAddress, Config, MasterKey, OPERATOR, PurgeSettings, app, new_secret,
};
use crm_testing::{
    Channel, Client, DataReplica, Folder, OtherCluster, PostgresLink, Process, program, reason,
};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::PgConnection;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use uuid::Uuid;

const BIN: &str = env!("CARGO_BIN_EXE_tenant-registry");
/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a test looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One registry, which may die, and all that it needs.
pub(crate) struct Installation {
    pub(crate) link: PostgresLink,
    pub(crate) clock: Clock,
    pub(crate) identity: Identity,
    pub(crate) consistency: Consistency,
    pub(crate) public: SocketAddr,
    pub(crate) internal: SocketAddr,
    pub(crate) process: Process,
    cluster: OtherCluster,
    data: DataReplica,
    operator: Client,
    folder: Folder,
    spares: u32,
}

impl Installation {
    /// A new one, whose cluster is to have this many spares.
    pub(crate) async fn start(spares: u32) -> Self {
        let cluster = OtherCluster::start().await;
        cluster.set_up().await;
        let link = PostgresLink::to(cluster.port()).await;
        let folder = Folder::default();
        folder.write("password", cluster.password());
        let secret = |name: &str| -> SecretString {
            let secret = new_secret().unwrap();
            folder.write(name, secret.expose_secret());
            secret
        };
        let [master_key, operator, contacts, messaging] =
            ["master", "operator", "contacts", "messaging"].map(secret);
        let [public, internal] = [(); 2].map(|()| free_address());
        let process = start_process(&folder, link.port(), public, internal, spares).await;
        // The test itself asks the server, not the link.
        let config = Config {
            cluster: ClusterAddress {
                id: "local".to_owned(),
                host: "127.0.0.1".to_owned(),
                port: cluster.port(),
                verify_tls: false,
            },
            password: cluster.password().to_owned().into(),
            master_key: MasterKey::parse(&master_key).unwrap(),
            accounts: vec![Account::operator(operator)],
            session_cap: 10,
            spares,
            purge: PurgeSettings::default(),
        };
        let clock = Clock::default();
        let identity = app::identity(&config, clock.clone()).await.unwrap();
        let consistency = app::consistency(&config, clock.clone());
        let data =
            DataReplica::start(public, internal, [&contacts, &messaging], clock.clone()).await;
        let roles = vec!["roles/platform.operator".to_owned()];
        let issued = identity.issue(OPERATOR.to_owned(), roles, None).unwrap();
        let operator = Client::new(issued.token);
        Self {
            link,
            clock,
            identity,
            consistency,
            public,
            internal,
            process,
            cluster,
            data,
            operator,
            folder,
            spares,
        }
    }

    /// Waits for the end of a process that was killed, and starts the next.
    pub(crate) async fn restart(&mut self) {
        let status = self.process.ended().await;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
        self.link.pass();
        let port = self.link.port();
        self.process =
            start_process(&self.folder, port, self.public, self.internal, self.spares).await;
    }

    /// Runs one of the program's commands, and answers what it prints.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let port = self.cluster.port();
        let mut command = command(&self.folder, port, self.public, self.internal, self.spares);
        let output = command.args(words).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A client with the token of an operator.
    pub(crate) fn operator(&self) -> Client {
        self.operator.clone()
    }

    /// A client with the token of an administrator of a tenant, and where
    /// contacts is.
    pub(crate) fn admin(&self, tenant: &Tenant) -> (Client, SocketAddr) {
        let id = id(tenant);
        let claims = TenantClaims { tid: id, generation: 1, ver: 1 };
        let roles = vec!["roles/admin".to_owned()];
        let issued = self.identity.issue(format!("serviceAccounts/{id}"), roles, Some(claims));
        (Client::new(issued.unwrap().token), self.data.contacts)
    }

    /// A superuser's connection to the registry's database.
    pub(crate) async fn registry(&self) -> PgConnection {
        self.cluster.superuser("crm_registry").await
    }

    /// A superuser's connection to another.
    pub(crate) async fn database(&self, name: &str) -> PgConnection {
        self.cluster.superuser(name).await
    }

    /// Makes unfinished work as old as if some time had passed: old enough to
    /// be taken up by whoever looks for it.
    pub(crate) async fn age(&self) {
        let statement = "UPDATE databases SET create_time = create_time - interval '1 minute'
             WHERE step <> 'ready';
             UPDATE tenants SET create_time = create_time - interval '1 minute'
             WHERE state = 1";
        sqlx::raw_sql(statement).execute(&mut self.registry().await).await.unwrap();
    }

    pub(crate) fn tenants(&self) -> (Client, TenantServiceClient<Channel>) {
        let client = TenantServiceClient::new(self.operator.channel(self.public));
        (self.operator.clone(), client)
    }

    /// A request for a new tenant that may be repeated.
    pub(crate) fn request(&self) -> CreateTenantRequest {
        CreateTenantRequest {
            tenant: Some(Tenant {
                display_name: "Someone".to_owned(),
                slug: format!("crash-{}", self.clock.new_id().as_simple()),
                ..Tenant::default()
            }),
            request_id: self.clock.new_id().to_string(),
            ..CreateTenantRequest::default()
        }
    }

    pub(crate) async fn create(&self, request: &CreateTenantRequest) -> Result<Tenant, Status> {
        let (operator, mut client) = self.tenants();
        Ok(client.create_tenant(operator.request(request.clone())).await?.into_inner())
    }

    /// The id and the state of the tenant of a request, if there is one.
    pub(crate) async fn planned(&self, request: &CreateTenantRequest) -> Option<(Uuid, i16)> {
        let slug = &request.tenant.as_ref().unwrap().slug;
        let found: Vec<(Uuid, i16)> =
            sqlx::query_as("SELECT tenant_id, state FROM tenants WHERE slug = $1")
                .bind(slug)
                .fetch_all(&mut self.registry().await)
                .await
                .unwrap();
        found.into_iter().next()
    }

    /// Creates a contact, and reads it.
    pub(crate) async fn works(&self, tenant: &Tenant) {
        let (admin, contacts) = self.admin(tenant);
        let contact = Contact {
            display_name: "Ada".to_owned(),
            phone: "12345".to_owned(),
            ..Contact::default()
        };
        let request = CreateContactRequest {
            contact: Some(contact),
            request_id: self.clock.new_id().to_string(),
            ..CreateContactRequest::default()
        };
        let mut contacts = ContactServiceClient::new(admin.channel(contacts));
        let created = patiently(async || {
            let outcome = contacts.clone().create_contact(admin.request(request.clone())).await;
            Ok(outcome?.into_inner())
        });
        let created = created.await.0;
        let request = GetContactRequest { name: created.name.clone() };
        let read = contacts.get_contact(admin.request(request)).await.unwrap().into_inner();
        assert_eq!(read, created);
    }

    /// Whether one tenant is as the registry says.
    pub(crate) async fn is_consistent(&self, tenant: &Tenant) {
        assert_eq!(self.consistency.report_of(id(tenant)).await.unwrap(), []);
    }

    /// Whether everything is, once what runs has come to its end.
    pub(crate) async fn all_is_consistent(&self) {
        assert_eq!(self.consistency.report().await.unwrap(), []);
    }

    /// Stops the data services, which watch the registry.
    pub(crate) async fn stop(self) {
        self.data.stop().await;
        assert!(self.process.terminate().await.success());
    }
}

/// The id of a tenant.
pub(crate) fn id(tenant: &Tenant) -> Uuid {
    tenant.name.strip_prefix("tenants/").unwrap().parse().unwrap()
}

/// What services answer until they hear that the tenant is to be reached again.
const UNHEARD: [&str; 2] = ["TENANT_SUSPENDED", "TENANT_DELETED"];

/// Repeats a call as long as the answer is to repeat it. Answers how often it
/// was made, too.
pub(crate) async fn patiently<T>(call: impl AsyncFn() -> Result<T, Status>) -> (T, u32) {
    let start = Instant::now();
    let mut calls = 0;
    loop {
        calls += 1;
        match call().await {
            Ok(answer) => return (answer, calls),
            Err(status) => {
                let passes = status.code() == Code::Unavailable
                    || UNHEARD.contains(&reason(&status).as_str());
                assert!(passes, "{status:?}");
                assert!(start.elapsed() < PATIENCE, "{status:?}");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// An address where nobody listens.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn start_process(
    folder: &Folder,
    postgres: u16,
    public: SocketAddr,
    internal: SocketAddr,
    spares: u32,
) -> Process {
    let command = command(folder, postgres, public, internal, spares);
    let mut process = Process::start(command, folder);
    assert_eq!(process.address("tenant-registry").await, public);
    process.wait_until(public, ServingStatus::Serving).await;
    process
}

/// The program with its settings.
fn command(
    folder: &Folder,
    postgres: u16,
    public: SocketAddr,
    internal: SocketAddr,
    spares: u32,
) -> Command {
    let file = |name: &str| folder.path(name).display().to_string();
    program(
        BIN,
        &[
            ("CRM_REGISTRY_LISTEN", &public.to_string()),
            ("CRM_REGISTRY_INTERNAL_LISTEN", &internal.to_string()),
            ("CRM_REGISTRY_ADMIN_LISTEN", "127.0.0.1:0"),
            ("CRM_DATABASE_PORT", &postgres.to_string()),
            ("CRM_DATABASE_PASSWORD_FILE", &file("password")),
            ("CRM_MASTER_KEY_FILE", &file("master")),
            ("CRM_OPERATOR_SECRET_FILE", &file("operator")),
            ("CRM_CONTACTS_SECRET_FILE", &file("contacts")),
            ("CRM_MESSAGING_SECRET_FILE", &file("messaging")),
            ("CRM_SPARES", &spares.to_string()),
            // Spares stay, however many there are, unless a test says otherwise.
            ("CRM_PURGES_PER_MINUTE", if spares == 0 { "600" } else { "0" }),
        ],
    )
}
