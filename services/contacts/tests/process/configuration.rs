//! What it does not begin with.

use std::process::Command;

use crm_testing::{Configuration, Folder};

use crate::contacts;

fn configuration() -> Configuration<impl Fn() -> Command> {
    let settings = Folder::default();
    let command = move || contacts(&settings, "http://127.0.0.1:1");
    Configuration { command, folder: Folder::default() }
}

crm_testing::configuration_tests!(configuration);
