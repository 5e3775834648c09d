//! A tenant for a test.

use crm_auth::{PLATFORM_OPERATOR, TenantClaims};
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_standalone::app::LOCAL_OPERATOR;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::client::Client;
use crate::neighbour;
use crate::server::{Server, server};

/// A tenant with a database of its own.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// As the registry answered it.
    pub tenant: pb::Tenant,
    /// Its id.
    pub id: Uuid,
}

impl Tenant {
    /// Makes a tenant, by the call that anyone would make. It has a neighbour,
    /// whose canaries nobody may ever read.
    pub async fn create() -> Self {
        neighbour::settle().await;
        Self::create_alone().await
    }

    pub(crate) async fn create_alone() -> Self {
        let server = server();
        let operator = Client::operator(server);
        let request = pb::CreateTenantRequest {
            tenant: Some(pb::Tenant {
                display_name: "Test tenant".to_owned(),
                slug: format!("test-{}", server.clock.new_id().as_simple()),
                ..pb::Tenant::default()
            }),
            ..pb::CreateTenantRequest::default()
        };
        let mut client = TenantServiceClient::new(operator.channel(server.addresses.registry));
        let tenant = client.create_tenant(operator.request(request)).await.unwrap().into_inner();
        let id = tenant.name.strip_prefix("tenants/").unwrap().parse().unwrap();
        Self { tenant, id }
    }

    /// A client with an administrator's token.
    pub fn admin(&self) -> Client {
        self.client("roles/admin", LOCAL_OPERATOR)
    }

    /// A client whose token names a role and a subject.
    pub fn client(&self, role: &str, subject: &str) -> Client {
        let claims = TenantClaims { tid: self.id, generation: 1, ver: 1 };
        let roles = vec![role.to_owned()];
        let issued = server().identity.issue(subject.to_owned(), roles, Some(claims)).unwrap();
        Client::new(issued.token)
    }

    /// A superuser's connection to its database.
    pub async fn database(&self) -> PgConnection {
        server().superuser(&self.tenant.database).await
    }

    /// What must hold after whatever was done: the log has no gap, ends at the
    /// head, and every row's revision is in it.
    pub async fn check_log(&self) {
        let mut database = self.database().await;
        let (head, newest, revisions): (i64, i64, i64) = sqlx::query_as(
            "SELECT h.revision, coalesce(max(c.revision), 0), count(DISTINCT c.revision)
             FROM platform.head AS h LEFT JOIN platform.changes AS c ON true
             GROUP BY h.revision",
        )
        .fetch_one(&mut database)
        .await
        .unwrap();
        assert_eq!((head, head), (newest, revisions), "head, newest change, number of revisions");
        let astray: i64 = sqlx::query_scalar(
            "SELECT count(*)
             FROM (
                 SELECT 'contacts/' || contact_id AS name, revision FROM contacts.contacts
                 UNION ALL
                 SELECT 'conversations/' || conversation_id, revision FROM messaging.conversations
                 UNION ALL
                 SELECT 'conversations/' || conversation_id || '/messages/' || message_id, revision
                 FROM messaging.messages
             ) AS r
             WHERE NOT EXISTS (
                 SELECT FROM platform.changes AS c
                 WHERE c.name = r.name AND c.revision = r.revision
             )",
        )
        .fetch_one(&mut database)
        .await
        .unwrap();
        assert_eq!(astray, 0, "rows whose change is not in the log");
        database.close().await.unwrap();
    }
}

impl Client {
    /// A client with the local operator's token.
    pub fn operator(server: &Server) -> Self {
        let roles = vec![PLATFORM_OPERATOR.to_owned()];
        Self::new(server.identity.issue(LOCAL_OPERATOR.to_owned(), roles, None).unwrap().token)
    }
}
