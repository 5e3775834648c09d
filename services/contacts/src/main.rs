//! The program `contacts`.

use std::process::ExitCode;

use crm_contacts::app::{SERVICE, start};

fn main() -> ExitCode {
    SERVICE.main(start)
}
