//! Its PostgreSQL ends: it is started again, and nothing else ends.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crm_testing::{Traffic, ask_admin, code_and_reason};
use sqlx::AssertSqlSafe;
use tonic::Code;

use crate::installation::{Installation, text};
use crate::stop::{CALLERS, LOOK_EVERY, STOPS_WITHIN, create, created};
use crate::{PATIENCE, postmaster};

impl Installation {
    /// Waits until `/readyz` answers with this status.
    async fn answers(&self, status: u16) {
        let admin = ([127, 0, 0, 1], self.port_base + 10).into();
        let until = Instant::now() + PATIENCE;
        while ask_admin(admin, "/readyz").await.0 != status {
            assert!(Instant::now() < until, "not {status}: {}", self.told());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until these words are in its log.
    async fn says(&self, words: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.told().contains(words) {
            assert!(Instant::now() < until, "{words} is not in {}", self.told());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn told(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }
}

/// Ends PostgreSQL, which cannot start on data that says another version.
fn end_for_longer(data: &Path, by: &str) {
    fs::write(data.join("postgres/data/PG_VERSION"), "9\n").unwrap();
    let pid = postmaster(data);
    assert!(Command::new("kill").args(["-s", by, &pid]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn its_postgresql_is_started_again_and_nothing_that_was_acknowledged_is_lost() {
    let installation = Installation::new("outage");
    let mut running = installation.start();
    running.wait_until_it_serves();
    let data = installation.folder.join("data");
    let version = fs::read(data.join("postgres/data/PG_VERSION")).unwrap();
    let admin = installation.admin();
    let contacts = installation.channel(&admin, installation.port_base + 2);
    let (client, channel) = (admin.clone(), contacts.clone());
    let traffic = Traffic::start(CALLERS, move |number| {
        let made = create(client.clone(), channel.clone(), number.to_string());
        async { made.await.map(drop) }
    });
    traffic.flows(4 * CALLERS).await;

    end_for_longer(&data, "KILL");

    // Away: it says so, says why, and refuses by name.
    let outcomes = traffic.ended().await;
    installation.answers(503).await;
    installation.says("is of PostgreSQL 9").await;
    let refused = code_and_reason(create(admin.clone(), contacts.clone(), "away".into()).await);
    assert_eq!(refused, (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned()));

    // Back: all by itself.
    fs::write(data.join("postgres/data/PG_VERSION"), version).unwrap();
    installation.answers(200).await;
    let there = created(&admin, contacts.clone(), "").await;
    assert!(outcomes.answered.is_subset(&there), "{:?}", outcomes.answered.difference(&there));
    create(admin, contacts, "back".to_owned()).await.unwrap();

    fail_with_passwords(&installation).await;

    // Told to wait for its sessions, it would refuse new ones for good. A stop
    // does not wait until it is back.
    end_for_longer(&data, "TERM");
    installation.answers(503).await;
    running.signal("INT");
    assert!(running.wait(STOPS_WITHIN).success(), "{}", installation.told());
    let left = Command::new("pgrep").arg("-f").arg(&data).output().unwrap();
    assert_eq!(text(&left.stdout), "");
}

/// Statements with a password fail, and one is cut off as PostgreSQL goes down:
/// its log has what became of them, and not what they were.
async fn fail_with_passwords(installation: &Installation) {
    const PASSWORD: &str = "never-to-be-logged";
    let mut superuser = installation.superuser("postgres").await;
    let statement = format!("ALTER ROLE crm_registry PASSWORD '{PASSWORD}'");
    let quoted = statement.replace('\'', "''");
    for statement in [&statement, &format!("DO $$ BEGIN EXECUTE '{quoted}'; END $$")] {
        let failing = format!("BEGIN READ ONLY; {statement}");
        sqlx::raw_sql(AssertSqlSafe(failing)).execute(&mut superuser).await.unwrap_err();
        sqlx::raw_sql("ROLLBACK").execute(&mut superuser).await.unwrap();
    }
    let pid: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut superuser).await.unwrap();
    let cut_off = format!("SELECT pg_sleep(600), '{PASSWORD}'");
    let sleeping = tokio::spawn(async move {
        sqlx::raw_sql(AssertSqlSafe(cut_off)).execute(&mut superuser).await.unwrap_err();
    });
    let mut other = installation.superuser("postgres").await;
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    while 0 == sqlx::query_scalar::<_, i64>(sleeps).fetch_one(&mut other).await.unwrap() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut kill = Command::new("kill");
    assert!(kill.args(["-s", "KILL", &pid.to_string()]).status().unwrap().success());
    sleeping.await.unwrap();

    let log =
        || fs::read_to_string(installation.folder.join("data/postgres/postgres.log")).unwrap();
    let until = Instant::now() + PATIENCE;
    while !log().contains("was terminated by signal 9") {
        assert!(Instant::now() < until, "{}", log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    assert_eq!(log().matches("in a read-only transaction").count(), 2, "{}", log());
    assert!(!log().contains(PASSWORD), "{}", log());
}
