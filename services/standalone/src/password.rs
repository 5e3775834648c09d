//! The password of the registry's login, which gets into no log.

use sqlx::{Connection as _, PgConnection};

/// The superuser's session leaves nothing of its statements in the server's log, whatever that is
/// told.
pub(crate) const UNLOGGED: [(&str, &str); 6] = [
    ("log_statement", "none"),
    ("log_min_duration_statement", "-1"),
    ("log_min_error_statement", "panic"),
    ("log_error_verbosity", "terse"),
    ("log_parameter_max_length", "0"),
    ("log_parameter_max_length_on_error", "0"),
];
/// Gives the registry's login its password. The verifier is in no statement: what a server does
/// when it ends, it may log.
pub(crate) async fn set_registry_password(
    session: &mut PgConnection,
    verifier: &str,
) -> Result<(), sqlx::Error> {
    // One transaction: of two that start at once, one waits.
    let mut transaction = session.begin().await?;
    sqlx::query(
        "SELECT pg_advisory_xact_lock(hashtextextended('crm cluster setup', 0)),
             set_config('crm.verifier', $1, true)",
    )
    .bind(verifier)
    .execute(&mut *transaction)
    .await?;
    sqlx::raw_sql(
        "DO $$ BEGIN
             EXECUTE format('ALTER ROLE crm_registry PASSWORD %L', current_setting('crm.verifier'));
         END $$",
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}
