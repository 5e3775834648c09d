//! The metrics of the process: where they are collected, and what each means.

use std::sync::LazyLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds in seconds: from a read out of memory to the longest deadline.
const BUCKETS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

static RECORDER: LazyLock<Result<PrometheusHandle, BuildError>> = LazyLock::new(|| {
    let builder = PrometheusBuilder::new();
    let builder =
        builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?;
    let recorder = builder.install_recorder()?;
    describe();
    Ok(recorder)
});

/// The one recorder of this process, which starts when it is first asked for.
/// What was measured before is lost.
///
/// # Errors
///
/// When the process has another recorder.
pub(crate) fn recorder() -> Result<&'static PrometheusHandle, &'static BuildError> {
    RECORDER.as_ref()
}

/// Describes every metric of this workspace. None has a label by tenant: there
/// may be many thousands.
fn describe() {
    let histograms = [
        (
            "rpc_server_duration_seconds",
            "The time from a call's arrival to the end of its answer, by the status of its end.",
        ),
        ("crm_session_wait_seconds", "The time that calls waited for a database session."),
    ];
    let gauges = [
        (
            "rpc_server_requests_in_flight",
            "Calls that have arrived and whose answer has not ended.",
        ),
        ("crm_sessions", "Database sessions in use and idle, and the calls that wait for one."),
        (
            "crm_log_revision",
            "The greatest revision that this process wrote, in whichever tenant's log.",
        ),
        ("crm_connections", "Connections that are open, by the kind of their listener."),
        (
            "crm_admission_in_use",
            "What callers have of that of which there is only so much, by limit.",
        ),
        ("crm_leases", "Leases of tenants' databases in memory."),
        ("crm_spares", "Databases that wait for a tenant, by cluster."),
        ("crm_spare_target", "Databases that should wait for a tenant, by cluster."),
        (
            "crm_claims_different",
            "Tenants on which a cluster and the registry differ, by cluster: above 0, no database \
             is given out there.",
        ),
        ("crm_tenants_to_purge", "Deleted tenants whose time to be removed for good has come."),
        ("crm_migrations", "Databases of tenants by the state of their schema, for each service."),
    ];
    let counters = [
        (
            "crm_admission_refused_total",
            "What was refused because there was no room for it, by limit.",
        ),
        (
            "crm_connections_gave_way_total",
            "Connections without a call that were ended to make room for others.",
        ),
        ("crm_writes_total", "Writes that were answered, repeats included."),
        ("crm_sessions_opened_total", "Database sessions that were opened."),
        ("crm_sessions_closed_total", "Database sessions that were closed, by reason."),
        ("crm_lease_acquire_total", "Leases that the registry was asked for, by outcome."),
        ("crm_tenants_purged_total", "Deleted tenants that were removed for good."),
        (
            "crm_logins_mended_total",
            "Logins of tenants that were changed in PostgreSQL and made anew.",
        ),
        (
            "crm_tenants_created_total",
            "Tenants that were created, by where their databases came from.",
        ),
    ];
    for (name, meaning) in histograms {
        describe_histogram!(name, Unit::Seconds, meaning);
    }
    for (name, meaning) in gauges {
        describe_gauge!(name, Unit::Count, meaning);
    }
    for (name, meaning) in counters {
        describe_counter!(name, Unit::Count, meaning);
    }
}
