//! The program `tenant-registry`.

use std::process::ExitCode;

fn main() -> ExitCode {
    crm_tenant_registry::cli::main()
}
