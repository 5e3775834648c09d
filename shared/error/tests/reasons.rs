//! `docs/errors.md` against the proto and the code: a reason without a row, or
//! with another code or meaning, fails.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use crm_error::{ErrorReason, code, name};

const PROTO: &str = include_str!("../../../proto/crm/common/v1/error_reason.proto");
const PAPER: &str = include_str!("../../../docs/errors.md");

/// The reasons of the proto in its order, each with the code and the meaning of
/// its comment (`// CODE: meaning`), but UNSPECIFIED.
fn declared() -> Vec<(String, String, String)> {
    let mut declared = Vec::new();
    let mut comment = String::new();
    for line in PROTO.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("//") {
            comment.push_str(text);
        } else if let Some((value, _)) = line.split_once(" = ") {
            let reason = value.strip_prefix("ERROR_REASON_").unwrap_or_default().to_owned();
            if reason != "UNSPECIFIED" && !reason.is_empty() {
                let (code, meaning) = comment.trim().split_once(": ").unwrap();
                declared.push((reason, code.to_owned(), meaning.to_owned()));
            }
            comment.clear();
        } else {
            comment.clear();
        }
    }
    declared
}

/// RESOURCE_EXHAUSTED of ResourceExhausted.
fn code_name(reason: ErrorReason) -> String {
    let mut name = String::new();
    for (i, c) in format!("{:?}", code(reason)).char_indices() {
        if i > 0 && c.is_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[test]
fn every_reason_says_the_code_that_it_has() {
    let known = (1..1000).filter_map(|number| ErrorReason::try_from(number).ok());
    let known: Vec<_> = known.map(|reason| (name(reason).to_owned(), code_name(reason))).collect();

    let declared: Vec<_> = declared().into_iter().map(|(reason, code, _)| (reason, code)).collect();

    assert!(known.len() > 30);
    assert_eq!(declared, known);
}

#[test]
fn every_reason_has_its_row_in_the_paper() {
    let (_, table) = PAPER.split_once("\n## Reasons\n").unwrap();

    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| `")).collect();

    let expected: Vec<_> = declared()
        .into_iter()
        .map(|(reason, code, meaning)| format!("| `{reason}` | {code} | {meaning} |"))
        .collect();

    assert_eq!(rows, expected);
}
