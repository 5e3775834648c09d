//! What it does not begin with.

use std::process::Command;

use crm_testing::{Configuration, Folder};

use crate::messaging;

fn configuration() -> Configuration<impl Fn() -> Command> {
    let settings = Folder::default();
    let command = move || messaging(&settings, ([127, 0, 0, 1], 1).into());
    Configuration { command, folder: Folder::default() }
}

crm_testing::configuration_tests!(configuration);
