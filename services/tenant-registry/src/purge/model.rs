//! What is told of a tenant that is removed for good.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

/// How long the slug of a purged tenant is given to nobody.
pub(super) const SLUG_RESTS: TimeDelta = TimeDelta::days(90);

/// The certificate of a deletion.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Certificate {
    pub(crate) tenant_id: Uuid,
    pub(crate) slug: String,
    pub(crate) cluster: String,
    pub(crate) database: String,
    /// Who asked for it. `None`: its time came.
    pub(crate) requester: Option<String>,
    pub(crate) login_count: i32,
    pub(crate) delete_time: Option<DateTime<Utc>>,
    /// When the last of it was removed. `None`: not yet.
    pub(crate) purge_time: Option<DateTime<Utc>>,
    /// When the last backup with it expires.
    pub(crate) backup_expire_time: Option<DateTime<Utc>>,
    /// When another tenant may have the slug.
    pub(crate) slug_free_time: Option<DateTime<Utc>>,
}

/// A tenant that is, or may be, purged.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(super) struct Deleted {
    pub(super) tenant_id: Uuid,
    pub(super) slug: String,
    pub(super) cluster: String,
    pub(super) database: String,
    pub(super) delete_time: Option<DateTime<Utc>>,
    pub(super) is_deleted: bool,
    pub(super) is_purging: bool,
}

impl Deleted {
    /// What will be certified once it is done.
    pub(super) fn certificate(self) -> Certificate {
        Certificate {
            tenant_id: self.tenant_id,
            slug: self.slug,
            cluster: self.cluster,
            database: self.database,
            requester: None,
            login_count: 0,
            delete_time: self.delete_time,
            purge_time: None,
            backup_expire_time: None,
            slug_free_time: None,
        }
    }
}
