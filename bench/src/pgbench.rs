//! PostgreSQL's own load generator.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::Failure;
use crate::client::Login;
use crate::measure::Done;

const PROGRAM: &str = "pgbench";
const NOT_FOUND: &str = "pgbench is not on PATH: install it (Debian: `apt-get install postgresql`), \
                         or add the folder of PostgreSQL's programs to PATH";

/// The program, which is there.
#[derive(Debug)]
pub(crate) struct Pgbench(());

/// What it runs, and how.
pub(crate) struct Script<'a> {
    pub(crate) login: &'a Login,
    pub(crate) sql: &'a str,
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) clients: u32,
    pub(crate) seconds: u64,
}

impl Pgbench {
    /// Looks for the program on PATH.
    pub(crate) async fn find() -> Result<Self, Failure> {
        let found = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status().await;
        match found {
            Ok(status) if status.success() => Ok(Self(())),
            Ok(_) | Err(_) => Err(NOT_FOUND.into()),
        }
    }

    /// Runs a script; a transaction that failed is an error.
    pub(crate) async fn run(&self, folder: &Path, script: &Script<'_>) -> Result<Done, Failure> {
        let file = folder.join("pgbench.sql");
        fs::write(&file, script.sql)?;
        let login = script.login;
        let mut command = Command::new(PROGRAM);
        command.args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--host=127.0.0.1"]);
        command.arg(format!("--port={}", login.port)).arg(format!("--username={}", login.user));
        command.arg(format!("--client={}", script.clients));
        command.arg(format!("--time={}", script.seconds));
        for (name, value) in &script.variables {
            command.arg("--define").arg(format!("{name}={value}"));
        }
        command.arg("--file").arg(&file).arg(&login.database);
        command.env("PGPASSWORD", &login.password).env("PGSSLMODE", "disable");
        let answer = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let (said, complained) =
            (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        let done = answer.status.success().then(|| parse(&said)).flatten();
        done.ok_or_else(|| format!("pgbench failed: {complained}").into())
    }
}

/// Its own count and rate, which leave the connecting out; nothing where a
/// transaction failed.
fn parse(report: &str) -> Option<Done> {
    let value = |label: &str| {
        let line = report.lines().find_map(|line| line.strip_prefix(label))?;
        line.trim_start().split([' ', '/']).next()
    };
    if value("number of failed transactions:").is_some_and(|failed| failed != "0") {
        return None;
    }
    let calls = value("number of transactions actually processed:")?.parse().ok()?;
    let rate = value("tps =")?.parse().ok()?;
    Some(Done { calls, rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
number of transactions actually processed: 4321
number of failed transactions: 0 (0.000%)
latency average = 0.5 ms
initial connection time = 8.1 ms
tps = 2160.5 (without initial connection time)
";

    #[test]
    fn a_report_is_read() {
        let done = parse(REPORT).unwrap();

        assert_eq!((done.calls, done.rate), (4321, 2160.5));
    }

    #[test]
    fn a_failed_transaction_is_no_reading() {
        assert!(parse(&REPORT.replace("transactions: 0 ", "transactions: 2 ")).is_none());
    }
}
