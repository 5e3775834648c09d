//! Texts that people write.

/// Whether a text shows nothing: white space, controls, and characters without
/// width (Unicode, general category Cf, as far as it is used for nothing else).
pub fn is_blank(text: &str) -> bool {
    let invisible = |c: char| matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    text.chars().all(|c| c.is_whitespace() || c.is_control() || invisible(c))
}

/// A blank text is absent.
pub fn present(text: String) -> Option<String> {
    (!is_blank(&text)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_nothing_is_blank() {
        for text in ["", " ", "\t\r\n", "\u{1}", "\u{200b}\u{feff}", "\u{2003}\u{202e}"] {
            assert!(is_blank(text), "{text:?}");
        }
        for text in ["a", "\u{200b}a", "🦀", "."] {
            assert!(!is_blank(text), "{text:?}");
        }
    }
}
