//! Why a server ended: the words that matter in its log, and the room on its disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::statvfs;

use super::LOG;

/// With less room than two segments of its write-ahead log a server may end. It may not even have
/// room to say so.
const LITTLE_ROOM: u64 = 32 << 20;
/// What a server says when it, or a process of its own, gives up; those of sessions name a user.
const GIVES_UP: [&str; 2] = ["] FATAL: ", "PANIC: "];

/// What a server said last, in the log in this folder from here on.
pub(super) fn last_words(folder: &Path, log_start: u64) -> String {
    let mut log = Vec::new();
    let read = File::open(folder.join(LOG)).and_then(|mut file| {
        file.seek(SeekFrom::Start(log_start))?;
        file.read_to_end(&mut log)
    });
    let said = match read {
        Ok(0) => "it said nothing".to_owned(),
        Ok(_) => cause(&String::from_utf8_lossy(&log)),
        Err(error) => format!("no log: {error}"),
    };
    match statvfs(folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)) {
        Ok(room) if room < LITTLE_ROOM => {
            format!("{said} ({} MiB are left on its disk)", room >> 20)
        }
        Ok(_) | Err(_) => said,
    }
}

/// The last line in which it gave up: what it still said then is how it ended, and not why. Or else
/// the last lines but those of sessions, which only say that it ended.
fn cause(log: &str) -> String {
    let gives_up = |line: &&str| GIVES_UP.iter().any(|word| line.contains(word));
    let is_of_session = |line: &&str| {
        let words = line.split_once("] ").map(|(_, words)| words);
        words.is_some_and(|words| words.split(' ').next().is_some_and(|who| who.contains('@')))
    };
    match log.lines().rfind(gives_up) {
        Some(line) => line.trim().to_owned(),
        None => last_lines(log.lines().filter(|line| !is_of_session(line))),
    }
}

/// The last lines, as one.
pub(super) fn last_lines<'l>(lines: impl Iterator<Item = &'l str>) -> String {
    let lines: Vec<&str> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::postgres::scratch::Scratch;

    #[test]
    fn last_words_are_why_it_ended_and_of_this_start() {
        let scratch = Scratch::new("words");
        let before = "[1] PANIC:  an earlier one\n";
        let log = "[2] LOG:  redo starts\n\
                   [3] postgres@postgres FATAL:  the database system is starting up\n\
                   [2] FATAL:  could not write to file: No space left on device\n\
                   [1] LOG:  startup process (PID 2) exited with exit code 1\n\
                   [1] LOG:  database system is shut down\n";
        fs::write(scratch.0.join(LOG), format!("{before}{log}")).unwrap();

        let words = last_words(&scratch.0, before.len() as u64);

        assert!(words.starts_with("[2] FATAL:  could not write to file: No space"), "{words}");
    }

    #[test]
    fn what_only_sessions_say_of_the_end_is_left_out() {
        let log = "[1] LOG:  database system is ready to accept connections\n\
                   [3] crm_registry@postgres FATAL:  terminating connection\n";

        assert_eq!(cause(log), "[1] LOG:  database system is ready to accept connections");
    }
}
