//! However PostgreSQL ends a session, its caller may repeat the call.

use std::time::{Duration, Instant};

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::StoreError;
use crm_testing::{Server, serve_durably};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::sleep;

use crate::TURN;

/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets these statements bring a session to its end, and answers what the next
/// statement is refused with.
async fn ended_by(server: &Server, statements: &str) -> sqlx::Error {
    let mut session = server.superuser("postgres").await;
    let pid: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut session).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut session).await.unwrap();
    let mut other = server.superuser("postgres").await;
    end(&mut other, pid, statements.is_empty()).await;
    sqlx::query("SELECT 1").execute(&mut session).await.unwrap_err()
}

/// Ends a session, or waits until it ends.
async fn end(other: &mut PgConnection, pid: i32, terminate: bool) {
    if terminate {
        let ended = sqlx::query("SELECT pg_terminate_backend($1)").bind(pid);
        ended.execute(&mut *other).await.unwrap();
    }
    let until = Instant::now() + PATIENCE;
    let is_there = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
    while sqlx::query_scalar(is_there).bind(pid).fetch_one(&mut *other).await.unwrap() {
        assert!(Instant::now() < until, "it does not end");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_session_that_postgresql_ended_is_a_dependency_that_is_unavailable() {
    let _turn = TURN.lock().await;
    let server = serve_durably();

    for (statements, state) in [
        ("", "57P01"),
        ("SET idle_in_transaction_session_timeout = 1; BEGIN", "25P03"),
        ("SET idle_session_timeout = 1", "57P05"),
    ] {
        let error = ended_by(server, statements).await;

        let said = error.as_database_error().and_then(|error| error.code());
        assert_eq!(said.as_deref(), Some(state), "{error:?}");
        let reason = ApiError::from(StoreError::from(error)).reason();
        assert_eq!(reason, ErrorReason::DependencyUnavailable, "{state}");
    }
}

#[tokio::test]
async fn a_server_that_has_no_room_is_a_dependency_that_is_unavailable() {
    let _turn = TURN.lock().await;
    let mut session = serve_durably().superuser("postgres").await;

    for (condition, state) in
        [("disk_full", "53100"), ("out_of_memory", "53200"), ("too_many_connections", "53300")]
    {
        let statement = AssertSqlSafe(format!("DO 'BEGIN RAISE {condition}; END'"));
        let error = sqlx::raw_sql(statement).execute(&mut session).await.unwrap_err();

        let said = error.as_database_error().and_then(|error| error.code());
        assert_eq!(said.as_deref(), Some(state), "{error:?}");
        let reason = ApiError::from(StoreError::from(error)).reason();
        assert_eq!(reason, ErrorReason::DependencyUnavailable, "{state}");
    }
}
