//! Filters of lists (AIP-160), as far as lists support them: fields compared
//! with `=`, joined by `AND`.

use crm_error::Violations;

/// How much of a field an error shows, in characters: errors travel in
/// metadata, of which clients take little.
const MAX_SHOWN: usize = 64;

/// One comparison: the field must equal the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equals {
    /// The field's name.
    pub field: String,
    /// The value, without its quotes.
    pub value: String,
    /// Whether it stood in quotes: `"1"` is a text, and `1` a number.
    pub is_quoted: bool,
}

/// Reads a filter over these fields; `labels.*` stands for every path below
/// `labels`. A fault is a violation of `filter` that names the field or the
/// place; an empty filter has no comparison.
pub fn parse(filter: &str, fields: &[&str], violations: &mut Violations) -> Vec<Equals> {
    match comparisons(filter, fields) {
        Ok(comparisons) => comparisons,
        Err(fault) => {
            violations.add("filter", "FILTER", fault);
            Vec::new()
        }
    }
}

fn comparisons(filter: &str, fields: &[&str]) -> Result<Vec<Equals>, String> {
    let mut found: Vec<Equals> = Vec::new();
    let mut rest = filter.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_.".contains(c));
        let (field, after) = rest.split_at(end.unwrap_or(rest.len()));
        if !fields.iter().any(|known| fits(known, field)) {
            let known = fields.join(", ");
            return Err(format!(
                "`{}` is no field to filter by; these are: {known}.",
                shown(rest, field)
            ));
        }
        if found.iter().any(|earlier| earlier.field == field) {
            return Err(format!("`{}` stands twice.", short(field)));
        }
        let after = after.trim_start();
        let Some(after) = after.strip_prefix('=') else {
            return Err(format!("after `{}` only `=` is supported.", short(field)));
        };
        let after = after.trim_start();
        let is_quoted = after.starts_with('"');
        let (value, after) = value(after).ok_or_else(|| {
            let field = short(field);
            format!("after `{field} =` a value is expected, such as \"text\".")
        })?;
        found.push(Equals { field: field.to_owned(), value, is_quoted });
        rest = after.trim_start();
        if rest.is_empty() {
            break;
        }
        rest = rest
            .strip_prefix("AND")
            .filter(|rest| rest.starts_with(char::is_whitespace))
            .ok_or_else(|| format!("after the value of `{}` only AND is supported.", short(field)))?
            .trim_start();
        if rest.is_empty() {
            return Err("after AND a comparison is expected.".to_owned());
        }
    }
    Ok(found)
}

/// Whether a field is one that is known, or a path below it.
fn fits(known: &str, field: &str) -> bool {
    match known.strip_suffix('*') {
        None => known == field,
        Some(parent) => field
            .strip_prefix(parent)
            .is_some_and(|path| path.split('.').all(|step| !step.is_empty())),
    }
}

/// What to show of a place where a field is expected, or of a field. A field is
/// ASCII; what else stands there may be anything.
fn shown<'a>(rest: &'a str, field: &'a str) -> &'a str {
    if field.is_empty() { rest.get(..rest.len().min(1)).unwrap_or("…") } else { short(field) }
}

fn short(field: &str) -> &str {
    field.get(..MAX_SHOWN).unwrap_or(field)
}

/// A value and what follows: quoted, with `\"` and `\\` escaped, or a bare
/// word.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        return (!word.is_empty() && word.chars().all(plain)).then(|| (word.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => match chars.next()?.1 {
                escaped @ ('"' | '\\') => value.push(escaped),
                _ => return None,
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A filter of these comparisons.
    fn written(comparisons: &[Equals]) -> String {
        let escaped = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"");
        let written = comparisons.iter().map(|Equals { field, value, is_quoted }| {
            if *is_quoted {
                format!("{field} = \"{}\"", escaped(value))
            } else {
                format!("{field} = {value}")
            }
        });
        written.collect::<Vec<_>>().join(" AND ")
    }

    fn any_comparisons() -> impl Strategy<Value = Vec<Equals>> {
        let value = prop_oneof![
            any::<String>().prop_map(|value| (value, true)),
            "[A-Za-z0-9_./-]{1,20}".prop_map(|value| (value, false)),
        ];
        let path = r"(\.[A-Za-z0-9_]{1,8}){1,4}";
        proptest::collection::btree_map(path, value, 0..6).prop_map(|map| {
            let equals = map.into_iter().map(|(path, (value, is_quoted))| Equals {
                field: format!("metadata{path}"),
                value,
                is_quoted,
            });
            equals.collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(comparisons in any_comparisons()) {
            let read = super::comparisons(&written(&comparisons), &["metadata.*"]);

            prop_assert_eq!(read, Ok(comparisons));
        }

        #[test]
        fn no_text_is_too_odd_to_be_read_or_refused(
            text in any::<String>(),
            odd in r#"[( ]{0,6}((email|state|metadata[.a]*|é)[ =]{0,3}("[^"]*"?|[\\()'a]*) ?(AND|OR)? ?){0,4}"#,
        ) {
            for filter in [text, odd] {
                let known = ["email", "state", "metadata.*"];
                if let Ok(read) = super::comparisons(&filter, &known) {
                    // What was understood says the same in plain words.
                    prop_assert_eq!(super::comparisons(&written(&read), &known), Ok(read));
                }
            }
        }
    }

    fn read(filter: &str) -> Result<Vec<(String, String)>, String> {
        let found = comparisons(filter, &["email", "state"])?;
        Ok(found.into_iter().map(|equals| (equals.field, equals.value)).collect())
    }

    #[test]
    fn comparisons_are_read_with_their_quotes_and_escapes() {
        let pair = |field: &str, value: &str| (field.to_owned(), value.to_owned());

        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read(" email = \"a b\" "), Ok(vec![pair("email", "a b")]));
        assert_eq!(
            read(r#"email="\"\\" AND state=STATE_ACTIVE"#),
            Ok(vec![pair("email", "\"\\"), pair("state", "STATE_ACTIVE")])
        );
    }

    #[test]
    fn paths_below_a_field_are_known_and_quotes_are_told() {
        let read = |filter| comparisons(filter, &["metadata.*"]);

        let found = read(r#"metadata.tier = "gold" AND metadata.a.b = 7"#).unwrap();

        let found: Vec<_> = found.iter().map(|e| (e.field.as_str(), e.is_quoted)).collect();
        assert_eq!(found, [("metadata.tier", true), ("metadata.a.b", false)]);
        for filter in ["metadata = 1", "metadata. = 1", "metadata..a = 1", "meta.a = 1"] {
            assert!(read(filter).unwrap_err().contains("no field to filter by"), "{filter}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_a_hint() {
        for (filter, hint) in [
            ("name = 1", "name"),
            ("email", "email"),
            ("email != \"x\"", "email"),
            ("email = ", "email"),
            ("email = \"x", "email"),
            ("email = \"\\x\"", "email"),
            ("email = x' OR 1=1", "email"),
            ("email = x OR state = y", "AND"),
            ("email = x ANDstate = y", "AND"),
            ("email = x AND", "AND"),
            ("email = x AND email = y", "twice"),
            ("(email = x)", "("),
            ("é", "…"),
        ] {
            let fault = read(filter).unwrap_err();
            assert!(fault.contains(hint), "{filter}: {fault}");
        }
    }

    #[test]
    fn a_fault_shows_little_of_a_long_field() {
        let long = "a".repeat(100_000);
        let below = format!("metadata.{long}");

        for filter in [
            format!("{long} = 1"),
            below.clone(),
            format!("{below} ="),
            format!("{below} = 1 OR"),
            format!("{below} = 1 AND {below} = 1"),
        ] {
            let fault = comparisons(&filter, &["metadata.*"]).unwrap_err();
            assert!(fault.len() < 200, "{fault}");
        }
    }
}
