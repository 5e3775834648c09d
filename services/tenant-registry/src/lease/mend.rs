//! Mending a login that was changed in PostgreSQL: whoever has it may give it
//! another password, or settings with which no session begins or works.

use chrono::{DateTime, TimeDelta, Utc};
use crm_tenancy::StoreError;
use secrecy::SecretString;
use sqlx::Connection as _;
use uuid::Uuid;

use super::store::{FoundLogin, LoginRow};
use super::{LeaseError, Logins, login_name, open_secret, store};

/// How often one login is mended at most.
const MEND_EVERY: TimeDelta = TimeDelta::minutes(1);

impl Logins {
    /// Looks at a login that PostgreSQL refused. One that is not as it was made
    /// is taken from whoever has it, for [`Logins::ensure`] to make it anew.
    pub(super) async fn mend(&self, tenant_id: Uuid, service: &str) -> Result<(), LeaseError> {
        if cfg!(bug_login_not_mended) {
            return Ok(());
        }
        let mut registry = self.database.registry.acquire().await.map_err(StoreError::from)?;
        // Before the transaction, since it may need a connection of its own.
        let cluster =
            store::cluster(&mut registry, tenant_id).await?.ok_or(LeaseError::NotFound)?;
        let cluster = self.database.cluster(&cluster).await?;
        // One at a time, and not while it is made.
        let mut tx = registry.begin().await.map_err(StoreError::from)?;
        let now = self.clock.now();
        let row = store::hold_newest_login(&mut tx, tenant_id, service).await?;
        let Some(LoginRow { generation, secret, .. }) = row.filter(|row| row.is_due(now)) else {
            return Ok(());
        };
        let password = open_secret(&self.master_key, tenant_id, service, generation, &secret)?;
        let found = store::found_logins(cluster.pool(), Some(tenant_id)).await;
        let found = found.map_err(LeaseError::Cluster)?;
        let login = login_name(tenant_id, service, generation);
        let changes = changes(found.iter().find(|found| found.login == login), &password);
        if changes.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            target: "security",
            %tenant_id,
            service,
            login,
            changes = changes.join(", "),
            "a login was changed"
        );
        metrics::counter!("crm_logins_mended_total", "service" => service.to_owned()).increment(1);
        // Cut off before the row says so, it is a login that was changed still.
        let voided = cluster.void_login(tenant_id, service, generation);
        voided.await.map_err(LeaseError::Cluster)?;
        store::unready_login(&mut tx, tenant_id, service, generation, now).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}

impl LoginRow {
    /// Whether it was made, and may be mended.
    fn is_due(&self, now: DateTime<Utc>) -> bool {
        self.is_ready && self.mend_time.is_none_or(|at| at <= now - MEND_EVERY)
    }
}

/// What is not as it was made.
fn changes(found: Option<&FoundLogin>, password: &SecretString) -> Vec<String> {
    let Some(found) = found else { return vec!["it is gone".to_owned()] };
    let mut changes = found.settings.clone();
    if !found.has_password(password) {
        changes.push("its password".to_owned());
    }
    changes
}
