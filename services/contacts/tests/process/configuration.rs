//! What it does not begin with.

use std::process::Command;

use crm_testing::{Configuration, Folder};

use crate::contacts;

fn configuration() -> Configuration<impl Fn() -> Command> {
    let settings = Folder::default();
    let command = move || contacts(&settings, "http://127.0.0.1:1");
    Configuration { command, folder: Folder::default() }
}

#[test]
fn every_wrong_value_is_named_with_its_variable_before_anything_begins() {
    configuration().refuses_wrong_values();
}

#[test]
fn a_secret_file_that_cannot_be_used_is_named() {
    configuration().refuses_bad_secret_files();
}

#[test]
fn a_key_that_is_no_option_is_named() {
    configuration().refuses_unknown_keys();
}

#[test]
fn a_taken_port_is_named_with_the_option_that_asks_for_it() {
    configuration().refuses_taken_ports();
}
