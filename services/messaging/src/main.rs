//! The program `messaging`.

use std::process::ExitCode;

use crm_messaging::app::{SERVICE, start};

fn main() -> ExitCode {
    SERVICE.main(start)
}
