//! Spoilt texts of jobs. Used by the tests of this crate and, by path, of the command line.

/// Pieces that spoil a file.
const PIECES: [&str; 40] = [
    "0",
    "-1",
    "1e400",
    ".nan",
    "-.inf",
    "18446744073709551616",
    "9223372036854775808",
    "0x10",
    "1_000",
    "~",
    "null",
    "true",
    "no",
    "''",
    "\"",
    "'",
    "[]",
    "{}",
    "[",
    "}",
    ":",
    ": ",
    "- ",
    "#",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "|\n",
    ">\n",
    "---\n",
    "\t",
    "\u{0}",
    "\u{feff}",
    "\u{1b}[2J",
    "é",
    "${",
    "${DATA}",
    "[name]",
    "\r\n",
];

/// Numbers of Marsaglia's xorshift generator.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    /// A place between two characters.
    fn place(&mut self, text: &str) -> usize {
        let mut at = self.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    fn mutate(&mut self, text: &mut String, other: &str) {
        let (a, b) = (self.place(text), self.place(text));
        let (from, to) = (a.min(b), a.max(b));
        let piece = PIECES[self.below(PIECES.len())];
        match self.below(8) {
            0 => text.insert_str(from, piece),
            1 => text.truncate(from),
            2 => text.replace_range(
                from..(from + 1..=text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(from),
                piece,
            ),
            3 => text.replace_range(from..to.min(text.len()), if to - from < 40 { "" } else { piece }),
            4 => text.insert_str(from, &text[from..to].chars().take(80).collect::<String>()),
            5 => {
                let lines: Vec<&str> = text.lines().collect();
                let line = lines[self.below(lines.len())].to_owned();
                text.insert_str(from, &format!("\n{line}\n"));
            }
            6 => {
                // A value is another one.
                let colons: Vec<usize> = text.match_indices(": ").map(|(i, _)| i + 2).collect();
                let Some(&at) = colons.get(self.below(colons.len())) else { return };
                let end = text[at..].find([',', '\n', '}', ']']).map_or(text.len(), |n| at + n);
                text.replace_range(at..end, piece);
            }
            _ => {
                let lines: Vec<&str> = other.lines().collect();
                text.insert_str(from, lines[self.below(lines.len())]);
            }
        }
    }
}

/// The mutant of a number: one of the texts, spoilt in one to three places. The same number gives the same
/// mutant.
pub fn mutant(number: u64, texts: &[&str]) -> String {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (number + 1).wrapping_mul(0xd134_2543_de82_ef95));
    let mut text = texts[random.below(texts.len())].to_owned();
    for _ in 0..1 + random.below(3) {
        random.mutate(&mut text, texts[number as usize % texts.len()]);
    }
    text
}

/// How many mutants are tried: those of `TENGGAT_MUTANTS`, or a number that suits a test run.
pub fn count(default: u64) -> u64 {
    std::env::var("TENGGAT_MUTANTS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}
