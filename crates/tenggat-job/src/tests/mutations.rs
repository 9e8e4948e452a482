//! Thousands of spoilt jobs: each is a job whose numbers are sane, or an error that says something. Nothing
//! panics.

use super::frame::{TYPICAL, file_with, parse};
use super::whole::FROM_THE_PAGE;
use crate::Job;

/// Mutants that the tests try; `TENGGAT_MUTANTS` asks for more.
const MUTANTS: u64 = 3600;

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

/// What the rest of the program may rely on.
fn assert_sane(job: &Job) {
    assert!(
        (1..=1024).contains(&job.train.batch_size) && (1..=65_536).contains(&job.train.gradient_accumulation)
    );
    assert!((1..=4096).contains(&job.network.rank) && !job.name.is_empty() && job.name.len() <= 200);
    assert!(job.train.steps != Some(0) && (0.0..=1e6).contains(&job.train.lr));
    assert!(job.train.denoising_steps.0 < job.train.denoising_steps.1);
    assert!(!job.datasets.is_empty() && !job.model.name_or_path.is_empty());
    for set in &job.datasets {
        assert!(set.resolutions.iter().all(|side| (32..=8192).contains(side)) && !set.resolutions.is_empty());
        assert!((1..=10_000).contains(&set.num_repeats) && (1..=1024).contains(&set.batch_size));
        assert!(set.scale > 0.0 && set.scale <= 100.0 && (0.0..=1.0).contains(&set.caption_dropout_rate));
    }
    for prompt in &job.sample.prompts {
        assert!((32..=8192).contains(&prompt.width) && (32..=8192).contains(&prompt.height));
        assert!(
            (1..=1000).contains(&prompt.steps)
                && prompt.guidance_scale.is_finite()
                && prompt.strength.is_finite()
        );
    }
}

#[test]
fn spoilt_jobs_are_sane_jobs_or_errors() {
    let mutants = std::env::var("TENGGAT_MUTANTS").ok().and_then(|n| n.parse().ok()).unwrap_or(MUTANTS);
    let framed = file_with("config.process[].train", "steps: 5, ");
    let seeds = [TYPICAL, FROM_THE_PAGE, &framed];
    let (mut jobs, mut errors) = (0, 0);
    for seed in 0..mutants {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed + 1).wrapping_mul(0xd134_2543_de82_ef95));
        let mut text = seeds[random.below(seeds.len())].to_owned();
        for _ in 0..1 + random.below(3) {
            random.mutate(&mut text, seeds[seed as usize % seeds.len()]);
        }
        match parse(&text) {
            Ok((job, _)) => {
                assert_sane(&job);
                jobs += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                errors += 1;
            }
        }
    }
    // Mutants that are all broken, or all whole, would show little.
    assert!(jobs > mutants / 20 && errors > mutants / 3, "{jobs} jobs and {errors} errors");
}
