//! All SQL of the comparison. None of it changes anything, or waits for a lock
//! that someone has.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use crm_proto::registry::v1::tenant::State;
use crm_proto::registry::v1::tenant_migration::State as MigrationState;
use crm_tenancy::StoreError;
use sqlx::PgPool;
use uuid::Uuid;

use super::model::{
    Found, FoundDatabase, FoundRole, Known, KnownLogin, KnownTenant, Purpose, Right, Standing,
};
use crate::lease::{found_logins, login_name, open_secret};
use crate::provisioning::Step;
use crate::seal::MasterKey;

#[derive(sqlx::FromRow)]
struct KnownRow {
    database_id: Uuid,
    cluster: String,
    name: String,
    purpose: String,
    step: String,
    since: DateTime<Utc>,
    state: Option<i16>,
    is_settled: Option<bool>,
    changed: Option<DateTime<Utc>>,
    claim_id: Option<Uuid>,
    migrating_since: Option<DateTime<Utc>>,
    has_failed: bool,
}

/// The databases that the registry knows, all or one, by their clusters.
pub(super) async fn known(
    registry: &PgPool,
    master_key: &MasterKey,
    only: Option<Uuid>,
) -> Result<HashMap<String, Vec<Known>>, StoreError> {
    let rows: Vec<KnownRow> = sqlx::query_as(
        "SELECT d.database_id, d.cluster, d.name, d.purpose, d.step,
             coalesce(t.create_time, d.create_time) AS since,
             t.state, t.is_settled, t.update_time AS changed,
             CASE WHEN t.is_claimed THEN t.claim_id END AS claim_id,
             v.migrating_since, v.has_failed
         FROM databases AS d
         LEFT JOIN tenants AS t ON t.tenant_id = d.database_id
         CROSS JOIN LATERAL (
             SELECT min(v.update_time) FILTER (WHERE v.state = $2) AS migrating_since,
                 coalesce(bool_or(v.state = $3), false) AS has_failed
             FROM schema_versions AS v
             WHERE v.database_id = d.database_id AND d.purpose <> 'template'
                 AND v.version < (
                     SELECT max(m.version) FROM migrations AS m WHERE m.service = v.service
                 )
         ) AS v
         WHERE $1::uuid IS NULL OR d.database_id = $1",
    )
    .bind(only)
    .bind(MigrationState::Running as i16)
    .bind(MigrationState::Failed as i16)
    .fetch_all(registry)
    .await?;
    let mut logins = logins(registry, master_key, only).await?;
    let mut known: HashMap<_, Vec<_>> = HashMap::new();
    for row in rows {
        let logins = logins.remove(&row.database_id).unwrap_or_default();
        known.entry(row.cluster.clone()).or_default().push(row.into_known(logins));
    }
    Ok(known)
}

async fn logins(
    registry: &PgPool,
    master_key: &MasterKey,
    only: Option<Uuid>,
) -> Result<HashMap<Uuid, Vec<KnownLogin>>, StoreError> {
    let rows: Vec<(Uuid, String, i32, Vec<u8>, bool)> = sqlx::query_as(
        "SELECT tenant_id, service, generation, secret, is_ready
         FROM logins
         WHERE $1::uuid IS NULL OR tenant_id = $1",
    )
    .bind(only)
    .fetch_all(registry)
    .await?;
    let mut logins: HashMap<_, Vec<_>> = HashMap::new();
    for (id, service, generation, secret, is_ready) in rows {
        let name = login_name(id, &service, generation);
        let password = open_secret(master_key, id, &service, generation, &secret).ok();
        logins.entry(id).or_default().push(KnownLogin { service, name, is_ready, password });
    }
    Ok(logins)
}

impl KnownRow {
    fn into_known(self, logins: Vec<KnownLogin>) -> Known {
        let purpose = match self.purpose.as_str() {
            "template" => Purpose::Template,
            "spare" => Purpose::Spare,
            "spoiled" => Purpose::Spoiled,
            _ => Purpose::Tenant,
        };
        let standing = |state| match State::try_from(i32::from(state)).unwrap_or_default() {
            State::Unspecified | State::Provisioning => Standing::Provisioning,
            State::Active => Standing::Open,
            State::Suspended | State::Deleted => Standing::Fenced,
            State::Purging => Standing::Purging,
        };
        let tenant = self.state.map(|state| KnownTenant {
            standing: standing(state),
            is_settled: self.is_settled.unwrap_or_default(),
            changed: self.changed.unwrap_or(self.since),
            claim_id: self.claim_id,
        });
        Known {
            id: self.database_id,
            name: self.name,
            purpose,
            step: Step::parse(&self.step),
            since: self.since,
            tenant,
            migrating_since: self.migrating_since,
            has_failed: self.has_failed,
            logins,
        }
    }
}

/// The tenants that there are not, and what is there of them.
pub(super) async fn rows_of_no_tenant(
    registry: &PgPool,
    only: Option<Uuid>,
) -> Result<Vec<(Uuid, String)>, StoreError> {
    let rows = sqlx::query_as(
        "SELECT r.tenant_id, string_agg(DISTINCT r.source, ', ')
         FROM (
             SELECT tenant_id, 'activity' AS source FROM tenant_activity
             UNION ALL
             SELECT tenant_id, 'requests' FROM requests
         ) AS r
         WHERE ($1::uuid IS NULL OR r.tenant_id = $1)
             AND NOT EXISTS (SELECT FROM tenants AS t WHERE t.tenant_id = r.tenant_id)
         GROUP BY r.tenant_id",
    );
    Ok(rows.bind(only).fetch_all(registry).await?)
}

/// The advisory locks that someone holds in the registry's database, each by
/// its 64 bits: who does something to a database holds one.
pub(super) async fn held_locks(registry: &PgPool) -> Result<HashSet<i64>, StoreError> {
    let locks: Vec<i64> = sqlx::query_scalar(
        "SELECT (l.classid::bigint << 32) | l.objid::bigint
         FROM pg_locks AS l
         JOIN pg_database AS d ON d.oid = l.database
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
             AND d.datname = current_database()",
    )
    .fetch_all(registry)
    .await?;
    Ok(locks.into_iter().collect())
}

/// The locks of the waves on these databases, which PostgreSQL numbers.
pub(super) async fn migration_locks(
    registry: &PgPool,
    databases: &[Uuid],
) -> Result<Vec<i64>, StoreError> {
    let locks = sqlx::query_scalar(
        "SELECT hashtextextended('crm migration ' || database_id, 0)
         FROM unnest($1::uuid[]) WITH ORDINALITY AS d (database_id, n)
         ORDER BY n",
    );
    Ok(locks.bind(databases).fetch_all(registry).await?)
}

#[derive(sqlx::FromRow)]
struct DatabaseRow {
    name: String,
    owner: String,
    is_open: bool,
    is_invalid: bool,
    claim: Option<String>,
    grantees: Vec<String>,
    privileges: Vec<String>,
}

#[derive(sqlx::FromRow)]
struct RoleRow {
    name: String,
    is_open: bool,
    is_mighty: bool,
    groups: Vec<String>,
    members: Vec<String>,
}

/// What is in a cluster that is the registry's, or looks as if it were: all,
/// or what is one tenant's. The databases that all share are there, too.
pub(super) async fn found(cluster: &PgPool, only: Option<Uuid>) -> Result<Found, StoreError> {
    let hex = only.map(|id| id.as_simple().to_string());
    // PostgreSQL marks a database whose removal was cut off by its limit, -2.
    let databases: Vec<DatabaseRow> = sqlx::query_as(
        "SELECT d.datname::text AS name, o.rolname::text AS owner, d.datallowconn AS is_open,
             d.datconnlimit = -2 AS is_invalid,
             shobj_description(d.oid, 'pg_database') AS claim, r.grantees, r.privileges
         FROM pg_database AS d
         JOIN pg_roles AS o ON o.oid = d.datdba
         CROSS JOIN LATERAL (
             SELECT coalesce(array_agg(coalesce(g.rolname::text, 'PUBLIC')), '{}') AS grantees,
                 coalesce(array_agg(a.privilege_type), '{}') AS privileges
             FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a
             LEFT JOIN pg_roles AS g ON g.oid = a.grantee
             WHERE a.grantee <> d.datdba
         ) AS r
         WHERE CASE
             WHEN $1::text IS NOT NULL THEN d.datname = 'tenant_' || $1
             ELSE d.datname ~ '^(tenant_[0-9a-f]{32}|crm_template_[0-9]+)$'
                 OR d.datname IN ('postgres', 'template1')
                 OR o.rolname = current_user
         END",
    )
    .bind(&hex)
    .fetch_all(cluster)
    .await?;
    let roles: Vec<RoleRow> = sqlx::query_as(
        "SELECT r.rolname::text AS name, r.rolcanlogin AS is_open,
             r.rolsuper OR r.rolcreatedb OR r.rolcreaterole OR r.rolreplication
                 OR r.rolbypassrls AS is_mighty,
             ARRAY(
                 SELECT g.rolname::text
                 FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.roleid
                 WHERE m.member = r.oid
             ) AS groups,
             ARRAY(
                 SELECT g.rolname::text
                 FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.member
                 WHERE m.roleid = r.oid
             ) AS members
         FROM pg_roles AS r
         WHERE r.rolname ~ ('^t_' || coalesce($1, '[0-9a-f]{32}') || '_')",
    )
    .bind(&hex)
    .fetch_all(cluster)
    .await?;
    let logins = found_logins(cluster, only).await?;
    Ok(Found {
        databases: databases.into_iter().map(FoundDatabase::from).collect(),
        roles: roles.into_iter().map(FoundRole::from).collect(),
        logins: logins.into_iter().map(|found| (found.login.clone(), found)).collect(),
    })
}

impl From<DatabaseRow> for FoundDatabase {
    fn from(row: DatabaseRow) -> Self {
        let DatabaseRow { name, owner, is_open, is_invalid, claim, grantees, privileges } = row;
        let rights = grantees.into_iter().zip(privileges);
        let rights = rights.map(|(grantee, privilege)| Right { grantee, privilege }).collect();
        Self { name, owner, is_open, is_invalid, claim, rights }
    }
}

impl From<RoleRow> for FoundRole {
    fn from(row: RoleRow) -> Self {
        let RoleRow { name, is_open, is_mighty, groups, members } = row;
        Self { name, is_open, is_mighty, groups, members }
    }
}
