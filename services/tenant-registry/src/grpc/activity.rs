//! What processes tell of tenants, between messages and the domain.

use std::collections::HashSet;

use chrono::{DateTime, SubsecRound as _, Utc};
use crm_error::Violations;
use crm_proto::registry::v1 as pb;
use crm_service::{names, timestamp};
use prost_types::Timestamp;
use uuid::Uuid;

use super::convert::tenant_key;
use crate::activity::{Activity, ActivityRow, Report, Sums, TenantReport};
use crate::tenant::TenantKey;

/// `tenants/{uuid}/activity`, or with the slug.
pub(super) fn activity_key(name: &str, violations: &mut Violations) -> Option<TenantKey> {
    let key = name.strip_suffix("/activity").and_then(|tenant| {
        let mut unknown = Violations::default();
        tenant_key(tenant, "name", &mut unknown)
    });
    if key.is_none() && !name.is_empty() {
        violations.add("name", "RESOURCE_NAME", "`tenants/`, a UUID or a slug, and `/activity`.");
    }
    key
}

/// What a process tells.
pub(super) fn report(
    service: &str,
    message: pb::ReportActivityRequest,
    violations: &mut Violations,
) -> Report {
    let mut tenants = Vec::with_capacity(message.tenants.len());
    let mut seen = HashSet::new();
    for (index, calls) in message.tenants.into_iter().enumerate() {
        let field = format!("tenants[{index}].tenant");
        let Some(tenant_id) = names::parse_field("tenants", &calls.tenant, &field, violations)
        else {
            continue;
        };
        if !seen.insert(tenant_id) {
            violations.add(field, "DUPLICATE", "Each tenant once.");
            continue;
        }
        let closed = calls.sessions_closed.unwrap_or_default();
        tenants.push(TenantReport {
            tenant_id,
            sessions_in_use: calls.sessions_in_use,
            sessions_idle: calls.sessions_idle,
            calls_waiting: calls.calls_waiting,
            sums: Sums {
                sessions_opened: calls.sessions_opened,
                closed_idle: closed.idle,
                closed_lifetime: closed.lifetime,
                closed_evicted: closed.evicted,
                closed_busy: closed.busy,
                closed_broken: closed.broken,
                closed_revoked: closed.revoked,
                calls: calls.calls,
                calls_refused: calls.calls_refused,
                last_call_time: calls.last_call_time.and_then(last_call_time),
            },
        });
    }
    Report {
        service: service.to_owned(),
        instance: message.instance,
        number: message.report_number,
        session_budget: i32::try_from(message.session_budget).unwrap_or(i32::MAX),
        tenants,
    }
}

/// PostgreSQL would round what it does not keep, beyond the year 9999.
fn last_call_time(time: Timestamp) -> Option<DateTime<Utc>> {
    let time = DateTime::from_timestamp(time.seconds, time.nanos.unsigned_abs())?;
    Some(time.trunc_subsecs(6))
}

pub(super) fn activity(tenant_id: Uuid, activity: Activity) -> pb::TenantActivity {
    pb::TenantActivity {
        name: format!("tenants/{tenant_id}/activity"),
        processes: activity.processes.into_iter().map(pb::ProcessActivity::from).collect(),
        session_count: activity.session_count,
        size_bytes: activity.size_bytes,
    }
}

impl From<ActivityRow> for pb::ProcessActivity {
    fn from(row: ActivityRow) -> Self {
        let sums = row.sums;
        Self {
            service: format!("services/{}", row.service),
            instance: row.instance,
            sessions_in_use: row.sessions_in_use.unsigned_abs(),
            sessions_idle: row.sessions_idle.unsigned_abs(),
            calls_waiting: row.calls_waiting.unsigned_abs(),
            sessions_opened: sums.sessions_opened,
            sessions_closed: Some(pb::SessionsClosed {
                idle: sums.closed_idle,
                lifetime: sums.closed_lifetime,
                evicted: sums.closed_evicted,
                busy: sums.closed_busy,
                broken: sums.closed_broken,
                revoked: sums.closed_revoked,
            }),
            calls: sums.calls,
            calls_refused: sums.calls_refused,
            last_call_time: sums.last_call_time.map(timestamp),
            report_time: Some(timestamp(row.report_time)),
        }
    }
}
