//! Etags (AIP-154): the revision at which a resource was last changed.

/// The etag of a resource at a revision.
pub fn format(revision: i64) -> String {
    format!("\"{revision}\"")
}

/// The revision that an etag stands for; `None`: there is no etag. One that is
/// none of ours fits no resource: no revision is negative.
pub fn parse(etag: &str) -> Option<i64> {
    let number = |etag: &str| etag.strip_prefix('"')?.strip_suffix('"')?.parse().ok();
    // A number can be written in many ways, and an etag in one.
    let ours = |etag: &str| number(etag).filter(|revision| format(*revision) == etag);
    (!etag.is_empty()).then(|| ours(etag).unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_the_etag_of_a_revision_fits_it(
            revision in 0..=i64::MAX,
            text in r#"(W/)?"?[ +-]?[0-9]{0,20}[.e]?"?|\PC*"#,
        ) {
            prop_assert_eq!(parse(&format(revision)), Some(revision));
            if let Some(revision @ 0..) = parse(&text) {
                prop_assert_eq!(format(revision), text);
            }
        }
    }

    #[test]
    fn an_etag_is_read_back_and_a_foreign_one_fits_nothing() {
        assert_eq!(parse(&format(7)), Some(7));
        assert_eq!(parse(""), None);
        for foreign in ["7", "\"\"", "W/\"7\"", "\"x\"", "\"", "\"+7\"", "\"007\"", "\" 7\""] {
            assert_eq!(parse(foreign), Some(-1), "{foreign}");
        }
    }
}
