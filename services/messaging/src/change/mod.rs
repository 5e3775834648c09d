//! Changes: reading the tenant's log.

mod error;
mod model;
mod store;

use crm_auth::TenantContext;
use crm_tenancy::TenantSessions;
use futures_util::FutureExt as _;

pub(crate) use error::ChangeError;
pub(crate) use model::{Change, ChangeFilter, ChangePage, ResourceType};

/// The use cases of changes.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    sessions: TenantSessions,
}

impl Changes {
    pub(crate) fn new(sessions: TenantSessions) -> Self {
        Self { sessions }
    }

    /// The changes of the caller's tenant after a revision, as they are to be
    /// shown.
    pub(crate) async fn list<T: Send + 'static>(
        &self,
        ctx: &TenantContext,
        filter: ChangeFilter,
        show: impl FnOnce(ChangePage) -> T + Send + 'static,
    ) -> Result<T, ChangeError> {
        self.sessions
            .list(ctx, filter.page_size, move |session| {
                async move { store::list(session, &filter).await.map(show) }.boxed()
            })
            .await
    }
}
