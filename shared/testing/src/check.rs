//! What must hold of every tenant when its test ends: its log is whole, and
//! the clusters are as the registry says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::{process, thread};

use crm_tenant_registry::consistency::Consistency;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnection, PgPool};
use tokio::runtime::Handle;
use tokio::task;
use uuid::Uuid;

use crate::postgres::superuser_at;
use crate::server::Server;

/// The check of one tenant, made when this is dropped.
#[derive(Debug)]
pub(crate) struct Check {
    tenant_id: Uuid,
    registry: PgPool,
    consistency: Consistency,
    runtime: Handle,
    is_given_up: AtomicBool,
}

impl Check {
    pub(crate) fn new(server: &Server, tenant_id: Uuid) -> Self {
        Self {
            tenant_id,
            registry: server.registry.clone(),
            consistency: server.consistency.clone(),
            runtime: server.runtime.clone(),
            is_given_up: AtomicBool::new(false),
        }
    }

    /// Has no check made.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        // A test that failed has said what matters already.
        if *self.is_given_up.get_mut() || thread::panicking() {
            return;
        }
        let faults = faults(self.tenant_id, self.registry.clone(), self.consistency.clone());
        let (send, receive) = mpsc::channel();
        // The suite's runtime has threads of its own: this one may wait.
        self.runtime.spawn(async move { send.send(faults.await) });
        let faults = match receive.recv() {
            Ok(Ok(faults)) => faults,
            Ok(Err(error)) => vec![format!("it cannot be checked: {error}")],
            Err(_) => vec!["it cannot be checked: the suite is gone".to_owned()],
        };
        if faults.is_empty() {
            return;
        }
        let words = format!("tenants/{} at the end of its test: {faults:#?}", self.tenant_id);
        if task::try_id().is_some() {
            // A task's panic would be its own affair, and the test would pass.
            eprintln!("{words}");
            process::abort();
        }
        panic!("{words}");
    }
}

/// All that does not hold of a tenant.
async fn faults(
    tenant_id: Uuid,
    registry: PgPool,
    consistency: Consistency,
) -> Result<Vec<String>, sqlx::Error> {
    let home = sqlx::query_as(
        "SELECT d.name, c.port
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         JOIN clusters AS c USING (cluster)
         WHERE t.tenant_id = $1",
    );
    let home: Option<(String, i32)> = home.bind(tenant_id).fetch_optional(&registry).await?;
    let Some((database, port)) = home else {
        return Ok(vec!["the registry does not know it".to_owned()]);
    };
    let superuser = superuser_at(u16::try_from(port).unwrap_or_default());
    let Some(superuser) = superuser else {
        return Ok(vec![format!("no server of this test program has port {port}")]);
    };
    let log = async {
        let mut session = PgConnection::connect_with(&superuser.database(&database)).await?;
        let faults = faults_of_log(&mut session).await?;
        session.close().await?;
        Ok::<_, sqlx::Error>(faults)
    };
    let (findings, log) = tokio::join!(consistency.report_of(tenant_id), log);
    let mut faults = match findings {
        Ok(findings) => findings.iter().map(|finding| format!("{finding:?}")).collect(),
        Err(error) => vec![format!("there is no report: {error:?}")],
    };
    match log {
        Ok(log) => faults.extend(log),
        Err(error) => faults.push(format!("its log cannot be read: {error}")),
    }
    Ok(faults)
}

/// What does not hold of the log: it has no gap, ends at the head, and has
/// every row's revision.
///
/// # Errors
///
/// When it cannot be read.
pub async fn faults_of_log(database: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let (head, newest, revisions): (i64, i64, i64) = sqlx::query_as(
        "SELECT h.revision, coalesce(max(c.revision), 0), count(DISTINCT c.revision)
         FROM platform.head AS h LEFT JOIN platform.changes AS c ON true
         GROUP BY h.revision",
    )
    .fetch_one(&mut *database)
    .await?;
    let mut faults = Vec::new();
    if (head, head) != (newest, revisions) {
        faults.push(format!(
            "the head is {head}, the newest change {newest}, the number of revisions {revisions}"
        ));
    }
    let astray: Vec<String> = sqlx::query_scalar(
        "SELECT r.name
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
         )
         LIMIT 10",
    )
    .fetch_all(database)
    .await?;
    if !astray.is_empty() {
        faults.push(format!("rows whose change is not in the log: {astray:?}"));
    }
    Ok(faults)
}
