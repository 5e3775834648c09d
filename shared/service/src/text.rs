//! Texts that people write.

use std::ops::RangeInclusive;

/// Characters that show nothing, though they are neither white space nor
/// controls: those that Unicode lets a renderer ignore (the property
/// Default_Ignorable_Code_Point, with the fillers of Hangul), marks for
/// annotations, and letters that are empty.
const INVISIBLE: [RangeInclusive<char>; 21] = [
    '\u{ad}'..='\u{ad}',
    '\u{34f}'..='\u{34f}',
    '\u{61c}'..='\u{61c}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{200b}'..='\u{200f}',
    '\u{202a}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    // Braille without a dot.
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{feff}'..='\u{feff}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{fff0}'..='\u{fffb}',
    // The blanks of Egyptian, and the filler of Khitan writing.
    '\u{13441}'..='\u{13442}',
    '\u{16fe4}'..='\u{16fe4}',
    '\u{1bca0}'..='\u{1bca3}',
    // A note without a head, and what begins and ends beams.
    '\u{1d159}'..='\u{1d159}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e0fff}',
];

/// Whether a text shows nothing. One visible character is enough, and then the
/// invisible ones beside it are right: names are written with them.
pub fn is_blank(text: &str) -> bool {
    let is_invisible = |c| INVISIBLE.iter().any(|range| range.contains(&c));
    text.chars().all(|c| c.is_whitespace() || c.is_control() || is_invisible(c))
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

    #[test]
    fn fillers_and_what_is_ignored_are_blank() {
        let fillers = ["\u{3164}", "\u{115f}\u{1160}", "\u{ffa0} \u{3164}", "\u{2800}\u{2800}"];
        let ignored = ["\u{34f}", "\u{17b4}", "\u{180e}", "\u{2061}", "\u{fe0f}", "\u{e0041}"];
        for text in fillers.into_iter().chain(ignored) {
            assert!(is_blank(text), "{text:?}");
        }
    }

    #[test]
    fn names_that_are_written_with_what_is_ignored_are_not_blank() {
        let names = [
            "नि\u{200d}खिल",
            "می\u{200c}ترا",
            "ක්\u{200d}ෂිත",
            "ᠮᠣᠩᠭᠣᠯ\u{180e}ᠠ",
            "\u{2066}Ada\u{2069}",
            "김\u{3164}",
            "👩\u{200d}🚀",
            "❤\u{fe0f}",
            "⠁\u{2800}⠃",
            "𝅘𝅥",
            "é",
        ];
        for name in names {
            assert!(!is_blank(name), "{name:?}");
        }
    }
}
