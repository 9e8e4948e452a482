//! The text of a job file and places in it, for messages that point.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A line and a column of a file, both counted from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// A job file as it was read.
#[derive(Debug, Clone)]
pub struct Source {
    path: Arc<Path>,
    lines: Arc<[String]>,
}

/// A place in a job file; shows as `file:line:column`, [`Place::excerpt`] as the line with a caret below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub mark: Mark,
    line: String,
}

impl Source {
    /// Keeps the lines of `text`, shown as coming from `path`.
    pub(super) fn new(path: &Path, text: &str) -> Self {
        Source { path: path.into(), lines: text.lines().map(String::from).collect() }
    }

    /// The line of a mark; empty if there is none.
    pub(super) fn line(&self, mark: Mark) -> &str {
        mark.line.checked_sub(1).and_then(|i| self.lines.get(i)).map_or("", String::as_str)
    }

    /// The place of a mark.
    pub(super) fn place(&self, mark: Mark) -> Place {
        Place { path: self.path.to_path_buf(), mark, line: self.line(mark).to_owned() }
    }
}

impl Source {
    /// Whether a value that begins at this mark is written without quotes, on one line.
    pub(super) fn is_bare(&self, mark: Mark) -> bool {
        let line = mark.line.checked_sub(1).and_then(|i| self.lines.get(i));
        let first = line.and_then(|line| line.chars().nth(mark.column.saturating_sub(1)));
        first.is_some_and(|c| !matches!(c, '"' | '\'' | '|' | '>'))
    }
}

impl Place {
    /// Replaces the line by what `hide` makes of it.
    pub(super) fn hide(&mut self, hide: impl Fn(&str) -> String) {
        let before: String = self.line.chars().take(self.mark.column.saturating_sub(1)).collect();
        let (hidden, line) = (hide(&before), hide(&self.line));
        // The caret stays where it was if what is hidden begins before it and ends behind it.
        if line.starts_with(&hidden) {
            self.mark.column = hidden.chars().count() + 1;
        }
        self.line = line;
    }

    /// The line, numbered, and a caret under the word that starts at the column.
    pub fn excerpt(&self) -> String {
        let number = self.mark.line.to_string();
        let gutter = " ".repeat(number.len());
        let before = self.mark.column.saturating_sub(1);
        // Tabs stay tabs, so that the caret lines up however wide a terminal draws them.
        let indent: String =
            self.line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let rest: String = self.line.chars().skip(before).collect();
        let word = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                rest[1..].find(quote).map_or(1, |end| rest[..end + 2].chars().count())
            }
            _ => rest.chars().take_while(|c| !c.is_whitespace() && !matches!(c, ':' | ',' | '#')).count(),
        };
        format!("{gutter} |\n{number} | {}\n{gutter} | {indent}{}", self.line, "^".repeat(word.max(1)))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path.display(), self.mark.line, self.mark.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(text: &str, line: usize, column: usize) -> String {
        Source::new(Path::new("job.yaml"), text).place(Mark { line, column }).excerpt()
    }

    #[test]
    fn the_caret_marks_the_word() {
        assert_eq!(excerpt("a: 1\n  lr: fast # x", 2, 7), "  |\n2 |   lr: fast # x\n  |       ^^^^");
        assert_eq!(excerpt("k: \"two words\" x", 1, 4), "  |\n1 | k: \"two words\" x\n  |    ^^^^^^^^^^^");
        assert_eq!(excerpt("\tkey: 1", 1, 2), "  |\n1 | \tkey: 1\n  | \t^^^");
    }

    #[test]
    fn a_place_outside_the_text_is_no_panic() {
        assert_eq!(excerpt("", 9, 9), "  |\n9 | \n  | ^");
        assert_eq!(excerpt("größe", 1, 3), "  |\n1 | größe\n  |   ^^^");
    }
}
