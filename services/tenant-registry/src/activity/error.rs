//! What can go wrong with activity.

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};

/// Why a report was not taken in, or activity could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivityError {
    #[error("{needed} connections are needed, and a cluster takes {connections}")]
    BudgetExceeded { needed: i64, connections: i64 },
    #[error("the registry's database failed")]
    Store(#[from] StoreError),
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<ActivityError> for ApiError {
    fn from(error: ActivityError) -> Self {
        match error {
            ActivityError::BudgetExceeded { needed, connections } => Self::new(
                ErrorReason::SessionBudgetExceeded,
                format!(
                    "all processes together would need {needed} connections, the reserve \
                     included; max_connections allows {connections}"
                ),
            ),
            ActivityError::Store(error) => error.into(),
            ActivityError::Task(error) => error.into(),
        }
    }
}
