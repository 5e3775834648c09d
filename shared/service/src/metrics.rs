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

/// Every metric of this workspace. None has a label by tenant: there may be
/// many thousands.
fn describe() {
    describe_histogram!(
        "rpc_server_duration_seconds",
        Unit::Seconds,
        "The time from a call's arrival to the end of its answer, by the status of its end."
    );
    describe_gauge!(
        "rpc_server_requests_in_flight",
        Unit::Count,
        "Calls that have arrived and whose answer has not ended."
    );
    describe_gauge!(
        "crm_sessions",
        Unit::Count,
        "Database sessions in use and idle, and the calls that wait for one."
    );
    describe_counter!(
        "crm_sessions_opened_total",
        Unit::Count,
        "Database sessions that were opened."
    );
    describe_counter!(
        "crm_sessions_closed_total",
        Unit::Count,
        "Database sessions that were closed, by reason."
    );
    describe_histogram!(
        "crm_session_wait_seconds",
        Unit::Seconds,
        "The time that calls waited for a database session."
    );
    describe_gauge!("crm_leases", Unit::Count, "Leases of tenants' databases in memory.");
    describe_counter!(
        "crm_lease_acquire_total",
        Unit::Count,
        "Leases that the tenant-registry was asked for, by what came of it."
    );
}
