//! A session in use: lent to the work of one use case, and then given back or
//! closed.

use std::sync::Arc;
use std::time::Duration;

use crm_auth::TenantId;
use crm_error::chain;
use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::{Connection as _, FromRow, PgConnection, Postgres};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use crate::activity::Closed;
use crate::cluster::{ClusterSessions, is_settled};
use crate::error::{SessionError, StoreError};
use crate::pool::Session;
use crate::share::Size;

/// How long any work may take. Statements have timeouts of their own; this
/// catches what hangs all the same.
const WORK_TIMEOUT: Duration = Duration::from_secs(35);

/// How many rows are decoded before other work goes on.
const ROWS_AT_ONCE: usize = 64;

/// A session of the caller's tenant, for the length of one use case.
#[derive(Debug)]
pub struct TenantSession {
    session: Box<Session>,
    wrote: Option<i64>,
}

impl TenantSession {
    /// The connection, to run statements on.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.session.connection
    }

    /// The rows of a list, as they come. Other work of the same thread goes on
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// When the database refuses the statement, or a row is not of this kind.
    pub async fn rows<O>(
        &mut self,
        query: QueryAs<'_, Postgres, O, PgArguments>,
    ) -> Result<Vec<O>, StoreError>
    where
        O: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let mut rows = Vec::new();
        let mut coming = query.fetch(self.connection());
        while let Some(row) = coming.try_next().await? {
            rows.push(row);
            if rows.len().is_multiple_of(ROWS_AT_ONCE) {
                yield_now().await;
            }
        }
        Ok(rows)
    }

    /// Says which revision of the tenant's log the work wrote, for the metrics.
    pub fn wrote(&mut self, revision: i64) {
        self.wrote = Some(revision);
    }

    /// Runs work in a transaction: committed if it answers `Ok`, rolled back
    /// otherwise.
    ///
    /// # Errors
    ///
    /// The work's own error, or that of the transaction's beginning or commit.
    pub async fn transaction<T, E, W>(&mut self, work: W) -> Result<T, E>
    where
        W: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, E>> + Send,
        E: From<StoreError>,
    {
        let mut transaction = self.connection().begin().await.map_err(StoreError::from)?;
        let outcome = work(&mut transaction).await;
        match outcome {
            Ok(value) => {
                transaction.commit().await.map_err(StoreError::from)?;
                Ok(value)
            }
            Err(error) => {
                // The work's error says more than that of its end, and what a
                // session is worth is looked at when it comes back.
                if let Err(failed) = transaction.rollback().await {
                    let cause = chain(&StoreError::from(failed));
                    tracing::warn!(cause, "a transaction could not be rolled back");
                }
                Err(error)
            }
        }
    }
}

/// A permit, with the session that was opened with it.
pub(crate) struct Checkout {
    cluster: Arc<ClusterSessions>,
    tenant: TenantId,
    size: Size,
    lent: Option<TenantSession>,
    /// Until a session has been opened with the permit.
    is_opening: bool,
    /// Set before work begins and taken away only when it ended well: a
    /// session that comes back busy is closed, never reused.
    busy: bool,
}

impl Checkout {
    /// With a permit: to open a session, or of one that is open.
    pub(crate) fn new(
        cluster: Arc<ClusterSessions>,
        tenant: TenantId,
        size: Size,
        is_opening: bool,
    ) -> Self {
        Self { cluster, tenant, size, lent: None, is_opening, busy: true }
    }

    /// Whether a session is to be opened with the permit.
    pub(crate) fn is_opening(&self) -> bool {
        self.is_opening
    }

    /// Asks to open a session in the place of one that was closed.
    pub(crate) fn open_instead(&mut self) {
        self.is_opening = self.cluster.pool().open_instead(self.tenant);
    }

    /// Takes the session for the work.
    pub(crate) fn lend(&mut self, session: Box<Session>) {
        self.lent = Some(TenantSession { session, wrote: None });
        if std::mem::take(&mut self.is_opening) {
            self.cluster.pool().opened(self.tenant);
        }
    }

    /// Does the work, and gives the session back.
    pub(crate) async fn use_up<T, E, W>(mut self, work: W) -> Result<T, E>
    where
        W: for<'s> FnOnce(&'s mut TenantSession) -> BoxFuture<'s, Result<T, E>>,
        E: From<SessionError>,
    {
        let outcome = self.use_for(work).await;
        self.check_in();
        outcome
    }

    async fn use_for<T, E, W>(&mut self, work: W) -> Result<T, E>
    where
        W: for<'s> FnOnce(&'s mut TenantSession) -> BoxFuture<'s, Result<T, E>>,
        E: From<SessionError>,
    {
        let Some(lent) = &mut self.lent else { return Err(SessionError::Panicked.into()) };
        let began = Instant::now();
        let outcome = timeout(WORK_TIMEOUT, work(lent)).await;
        let connection = lent.connection();
        self.busy = match &outcome {
            Ok(Ok(_)) => connection.is_in_transaction(),
            Ok(Err(_)) => {
                let settled = is_settled(connection).await;
                if !settled {
                    self.cluster.pool().mark_broken(Instant::now());
                }
                !settled
            }
            Err(_) => true,
        };
        if let Some(revision) = lent.wrote {
            self.cluster.activity().wrote(revision);
        }
        lent.session.last_used = Instant::now();
        lent.session.known_open = began;
        outcome.unwrap_or_else(|_| Err(SessionError::TimedOut.into()))
    }

    /// Gives a clean session back; a busy or an old one is closed when this is
    /// dropped.
    fn check_in(mut self) {
        if !self.busy
            && let Some(lent) = self.lent.take_if(|lent| lent.session.closes_at > Instant::now())
        {
            self.cluster.pool().release(*lent.session, self.size);
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if !self.busy && self.lent.is_none() {
            return;
        }
        let (cluster, tenant, size) = (self.cluster.clone(), self.tenant, self.size);
        #[cfg(bug_plain_pool)]
        if let Some(lent) = self.lent.take() {
            return cluster.pool().release(*lent.session, size);
        }
        if self.is_opening {
            cluster.pool().not_opened(tenant);
        }
        let why = if self.busy { Closed::Busy } else { Closed::Lifetime };
        match self.lent.take() {
            // The permit goes back only after the server has closed.
            Some(lent) => drop(tokio::spawn(async move {
                cluster.close(*lent.session, why).await;
                cluster.pool().release_permit(tenant, size);
            })),
            None => cluster.pool().release_permit(tenant, size),
        }
    }
}
