//! The program `crm`.

use std::process::ExitCode;

use crm_standalone::cli::Cli;

fn main() -> ExitCode {
    Cli::parse_or_exit_usage().run()
}
