//! How a process is told what to do: by the command line first, then by the
//! environment, then by a file, then by defaults.

use std::error::Error as _;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, FromArgMatches, value_parser};
use secrecy::SecretString;

use crate::run::EXIT_USAGE;

/// The option that names the file.
const CONFIG: &str = "config";

/// What cannot be used: the words of clap, or every fault of the values.
enum Refusal {
    Clap(clap::Error),
    Faults(Vec<String>),
}

/// Reads the configuration of a process. Where the command has
/// [`config_option`], that names a TOML file whose keys are the long names of
/// the options. A mistake ends the process with 64, and every value that is
/// missing or wrong is named with its variable. `check` makes of the options
/// what the process needs, or names what does not fit together.
pub fn parse_or_exit_usage<O: FromArgMatches, C>(
    command: Command,
    check: impl FnOnce(O) -> Result<C, Vec<String>>,
) -> C {
    let arguments: Vec<_> = std::env::args_os().collect();
    let name = command.get_name().to_owned();
    let parsed = parse(command, &arguments);
    let refusal = match parsed.and_then(|options| check(options).map_err(Refusal::Faults)) {
        Ok(config) => return config,
        Err(refusal) => refusal,
    };
    let code = match refusal {
        Refusal::Clap(error) => {
            // Where nobody listens there is nobody to tell.
            let _told = error.print();
            if error.use_stderr() { EXIT_USAGE } else { 0 }
        }
        Refusal::Faults(faults) => {
            use std::io::Write as _;
            for fault in faults {
                let _told = writeln!(std::io::stderr(), "{name}: {fault}");
            }
            EXIT_USAGE
        }
    };
    std::process::exit(i32::from(code))
}

fn parse<O: FromArgMatches>(command: Command, arguments: &[OsString]) -> Result<O, Refusal> {
    let mut faults = Vec::new();
    let mut command = command;
    if command.get_arguments().any(|option| option.get_id() == CONFIG) {
        match config_file(arguments) {
            Ok(Some(file)) => command = with_file(command, &file, &mut faults),
            Ok(None) => {}
            Err(fault) => faults.push(fault),
        }
    }
    let matches = command.clone().try_get_matches_from(arguments);
    let parsed = matches.and_then(|matches| O::from_arg_matches(&matches));
    match parsed {
        Ok(config) if faults.is_empty() => return Ok(config),
        Err(error) if !error.use_stderr() => return Err(Refusal::Clap(error)),
        Ok(_) => {}
        Err(error) => {
            // clap stops at the first fault.
            let named = command.get_arguments().filter(|arg| arg.get_id() != CONFIG);
            faults.extend(named.filter_map(|arg| fault(arg, arguments)));
            if faults.is_empty() {
                return Err(Refusal::Clap(error));
            }
            if error.kind() == ErrorKind::UnknownArgument {
                faults.push(words_of(&error));
            }
        }
    }
    Err(Refusal::Faults(faults))
}

/// The option that names the configuration's file.
pub fn config_option() -> Arg {
    Arg::new(CONFIG)
        .long(CONFIG)
        .env("CRM_CONFIG")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("A TOML file; its keys are the long names of these options, which come first, as do their variables")
}

/// What the file says, by the long names of options.
fn config_file(arguments: &[OsString]) -> Result<Option<toml::Table>, String> {
    let option = config_option();
    let path = match alone(&option).try_get_matches_from(own(&option, arguments)) {
        Ok(matches) => matches.get_one::<PathBuf>(CONFIG).cloned(),
        // The whole command line has the same fault.
        Err(_) => return Ok(None),
    };
    let Some(path) = path else { return Ok(None) };
    let told = |reason: &str| format!("CRM_CONFIG (--config): {}: {reason}", path.display());
    let text = std::fs::read_to_string(&path).map_err(|error| told(&error.to_string()))?;
    text.parse().map(Some).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().matches('\n').count() + 1;
        told(&format!("line {line}: {}", error.message()))
    })
}

/// The command with the file's values in the place of its defaults.
fn with_file(mut command: Command, file: &toml::Table, faults: &mut Vec<String>) -> Command {
    for (key, value) in file {
        let fault = |what: &str| format!("{key} in the file of CRM_CONFIG (--config) {what}");
        let known = command.get_arguments().find(|arg| {
            arg.get_long() == Some(key) && arg.get_id() != CONFIG && arg.get_id() != "help"
        });
        let Some((id, delimiter)) =
            known.map(|arg| (arg.get_id().clone(), arg.get_value_delimiter()))
        else {
            faults.push(fault("is no option"));
            continue;
        };
        match text_of(value, delimiter) {
            Some(text) => {
                command = command.mut_arg(id, |arg| arg.default_value(text).required(false));
            }
            None => faults.push(fault("is neither a text nor a number")),
        }
    }
    command
}

/// A value as the command line would give it.
fn text_of(value: &toml::Value, delimiter: Option<char>) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(is) => Some(is.to_string()),
        toml::Value::Array(values) => {
            let parts: Option<Vec<_>> = values.iter().map(|value| text_of(value, None)).collect();
            Some(parts?.join(&delimiter?.to_string()))
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// What is wrong with one option, whatever the others are.
fn fault(option: &Arg, arguments: &[OsString]) -> Option<String> {
    let error = alone(option).try_get_matches_from(own(option, arguments)).err()?;
    let words = if error.kind() == ErrorKind::MissingRequiredArgument {
        "it is not given".to_owned()
    } else if option.is_hide_env_values_set() {
        // clap's words have the value, which nobody may see.
        error.source().map_or_else(|| "it cannot be used".to_owned(), ToString::to_string)
    } else {
        words_of(&error)
    };
    let long = option.get_long().unwrap_or_default();
    let variable = option.get_env().unwrap_or_default().to_string_lossy();
    Some(format!("{variable} (--{long}): {words}"))
}

/// What clap says, without its advice.
fn words_of(error: &clap::Error) -> String {
    let words = error.render().to_string();
    let lines: Vec<_> = words.lines().take_while(|line| !line.is_empty()).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

/// A command of one option.
fn alone(option: &Arg) -> Command {
    Command::new("").no_binary_name(true).disable_help_flag(true).arg(option.clone())
}

/// The part of the command line that is one option's.
fn own(option: &Arg, arguments: &[OsString]) -> Vec<OsString> {
    let flag = format!("--{}", option.get_long().unwrap_or_default());
    let takes_value = matches!(option.get_action(), ArgAction::Set | ArgAction::Append);
    let mut own = Vec::new();
    let mut rest = arguments.iter().skip(1).take_while(|argument| *argument != "--");
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if text == flag {
            own.push(argument.clone());
            if takes_value {
                own.extend(rest.next().cloned());
            }
        } else if text.starts_with(&format!("{flag}=")) {
            own.push(argument.clone());
        }
    }
    own
}

/// Reads a secret from a file, as a value of an option: the text without the
/// white space around it. The file is its owner's alone.
///
/// # Errors
///
/// Says why the file cannot be used, and nothing of what is in it.
pub fn secret_file(path: &str) -> Result<SecretString, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mode = file.metadata().map_err(|error| error.to_string())?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err("it can be read by others; `chmod 600` it, and change the secret".to_owned());
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Err("it is empty".to_owned());
    }
    Ok(text.trim().to_owned().into())
}
