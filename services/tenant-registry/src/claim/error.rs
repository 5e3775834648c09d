//! What can go wrong with a claim.

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::StoreError;
use uuid::Uuid;

/// Why a claim could not be made or compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("there is no such tenant")]
    NotFound,
    #[error("the cluster gave the database of {0} to another claim")]
    Taken(Uuid),
    #[error("the cluster does not answer in time")]
    TooSlow,
    #[error("the cluster refused")]
    Cluster(#[source] StoreError),
    #[error("the registry's database failed")]
    Store(#[from] StoreError),
}

impl ClaimError {
    /// Whether the cluster lacks what a newer `cluster-setup.sql` makes.
    pub(crate) fn is_of_outdated_cluster(&self) -> bool {
        matches!(self, Self::Cluster(error) if is_outdated(error))
    }
}

impl From<ClaimError> for ApiError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::NotFound => Self::not_found("tenant", ""),
            ClaimError::Taken(_) => unreconciled().with_source(error),
            ClaimError::TooSlow => Self::unavailable(error),
            ClaimError::Cluster(error) => cluster_refused(error),
            ClaimError::Store(error) => error.into(),
        }
    }
}

/// The answer where the cluster and the registry say different things.
pub(crate) fn unreconciled() -> ApiError {
    ApiError::new(
        ErrorReason::ClusterUnreconciled,
        "the cluster and the registry differ on tenants; an operator has to reconcile them",
    )
}

/// What the refusal of a function of `cluster-setup.sql` means.
pub(crate) fn cluster_refused(error: StoreError) -> ApiError {
    if error.has_state("CR011") {
        return unreconciled().with_source(error);
    }
    if is_outdated(&error) {
        return ApiError::new(
            ErrorReason::ClusterNotReady,
            "the cluster was set up for an older registry; run deploy/postgres/cluster-setup.sql \
             there",
        )
        .with_source(error);
    }
    error.into()
}

/// No such function, table or schema.
pub(crate) fn is_outdated(error: &StoreError) -> bool {
    ["42883", "42P01", "3F000"].iter().any(|state| error.has_state(state))
}
