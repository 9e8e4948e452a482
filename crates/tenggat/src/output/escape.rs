//! Control characters made visible: what files, archives and arguments bring must not steer the terminal.

use std::borrow::Cow;

/// Whether a terminal, or a reader of a log, may be led astray by this character: controls (C0, DEL, C1), and
/// the invisible ones that reorder text or break lines.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

/// One line: every unsafe character becomes an escape such as `\u{1b}`, line breaks and tabs as well.
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, |_| false, |c, shown| shown.extend(c.escape_default()))
}

/// Lines of our own making, such as a table or an excerpt of a job: as [`line()`], but line breaks and tabs
/// stay.
pub fn block(text: &str) -> Cow<'_, str> {
    replaced(text, |c| matches!(c, '\n' | '\t'), |c, shown| shown.extend(c.escape_default()))
}

/// A JSON document: what its writer has left unescaped becomes `\u009b`, so that it stays the same document.
pub fn json(text: &str) -> Cow<'_, str> {
    replaced(
        text,
        |c| c == '\n',
        |c, shown| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        },
    )
}

fn replaced(text: &str, stays: fn(char) -> bool, escape: fn(char, &mut String)) -> Cow<'_, str> {
    let goes = |c: char| is_unsafe(c) && !stays(c);
    if !text.contains(goes) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if goes(c) { escape(c, &mut shown) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_shown_and_letters_stay() {
        assert_eq!(line("\u{1b}]0;x\u{7} \u{1b}[2J"), r"\u{1b}]0;x\u{7} \u{1b}[2J");
        assert_eq!(line("a\nb\rc\td\u{7f}\u{9b}e"), r"a\nb\rc\td\u{7f}\u{9b}e");
        assert_eq!(
            line("fox\u{202e}gnp.exe \u{2066}\u{200f}\u{2028}"),
            r"fox\u{202e}gnp.exe \u{2066}\u{200f}\u{2028}"
        );
        let plain = "größe 日本 🦊 é é C:\\temp 👩\u{200d}🚀 می\u{200c}خواهم";
        assert!(matches!(line(plain), Cow::Borrowed(text) if text == plain));
    }

    #[test]
    fn blocks_keep_their_lines() {
        assert_eq!(block("a |\n\tb\u{1b}[m\r\n"), "a |\n\tb\\u{1b}[m\\r\n");
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"a\u{9b}\u{7f}": "\u{202e}\u{1b}\n🦊\u{e0041}"});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let shown = json(&text);
        assert!(!shown.contains(|c| is_unsafe(c) && c != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
