//! Plans as text.

use std::fmt::{self, Write as _};

use super::{Course, Plan, Verdict};
use crate::budget::Phase;
use crate::cost::{MemoryPart, StepConfig};
use crate::forecast::BucketTime;
use crate::program::Program;
use crate::quantity::format_duration;
use crate::range::{Range, rough_duration};

/// Aligns the columns of a table: the first to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            let gap = if column > 0 { "  " } else { "" };
            let _ = match column {
                0 => write!(line, "{cell}{padding}"),
                _ => write!(line, "{gap}{padding}{cell}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Blocks that keep their activations, of all; where others keep some of theirs, `14+46/60`.
fn kept(config: &StepConfig) -> String {
    let some = config.partly_recomputed_blocks();
    let some = if some > 0 { format!("+{some}") } else { String::new() };
    format!("{}{some}/{}", config.keep_all, config.dims.layers)
}

fn gigabytes(bytes: f64) -> String {
    if bytes < 0.95e9 { format!("{:.0} MB", bytes / 1e6) } else { format!("{:.1} GB", bytes / 1e9) }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {}", self.program, self.machine)?;
        f.write_str(&aligned(&self.step_rows()))?;
        writeln!(f, "  {}", self.evidence)?;
        writeln!(f)?;
        f.write_str(&aligned(&self.phase_rows()))?;
        writeln!(f)?;
        f.write_str(&aligned(&self.memory_rows()))?;
        if let Some(price) = self.price {
            writeln!(f, "\nprice {price}, at the given price per hour")?;
        }
        let first = &self.first_start;
        writeln!(
            f,
            "\nin addition, the first time on a machine: {:.0} GB to fetch, {} at {:.0} MB/s; {:.0} GB of \
             disk",
            first.download_bytes / 1e9,
            rough_duration(first.download_s),
            first.download_bytes / first.download_s.max(f64::MIN_POSITIVE) / 1e6,
            first.disk_bytes / 1e9
        )?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

impl Plan {
    /// Ends of the step time's range as factors of the likely time.
    fn step_ends(&self) -> [f64; 2] {
        let Range { low, likely, high } = self.mean_step_s;
        let ends = [low / likely, high / likely];
        if ends.iter().all(|end| end.is_finite()) { ends } else { [1.0; 2] }
    }

    /// A time on the card with its range.
    fn on_card(&self, seconds: f64) -> Range {
        Range::around(seconds, self.step_ends())
    }

    fn step_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![["bucket", "tokens", "share", "per step"].map(str::to_owned).to_vec()];
        let shares: f64 = self.buckets.iter().map(|b| b.bucket.share).sum();
        for time in &self.buckets {
            rows.push(vec![
                format!("  {}×{}", time.bucket.width_px, time.bucket.height_px),
                time.image_tokens.to_string(),
                format!("{:.0} %", 100.0 * time.bucket.share / shares.max(f64::MIN_POSITIVE)),
                format!("{} s", self.on_card(time.step_s)),
            ]);
        }
        if self.buckets.len() > 1 {
            let mean = format!("{} s", self.mean_step_s);
            rows.push(vec!["  mean".into(), String::new(), String::new(), mean]);
        }
        rows
    }

    fn phase_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![vec!["phase".to_owned(), "time".to_owned()]];
        let mut row = |name: String, time: String| rows.push(vec![format!("  {name}"), time]);
        let drawn = self.training.is_some_and(|training| training.last_round_is_drawn);
        for phase in Phase::ALL {
            let seconds = self.phases.get(phase);
            match (phase, &self.training) {
                (Phase::Train, Some(training)) => {
                    for (name, time) in self.training_rows(training) {
                        row(name, time);
                    }
                }
                (Phase::FinalSample, _) if drawn => {}
                (Phase::ScoreBefore | Phase::FirstSample | Phase::FinalSample | Phase::ScoreAfter, _)
                    if seconds > 0.0 =>
                {
                    row(phase.name().to_owned(), self.on_card(seconds).as_duration());
                }
                _ if seconds > 0.0 => row(phase.name().to_owned(), rough_duration(seconds)),
                _ => {}
            }
        }
        if let Some(total) = self.total_s {
            row("total".into(), total.as_duration());
        }
        if let Some(budget_s) = self.budget_s {
            row("budget".into(), format_duration(budget_s));
        }
        if let Some(idle_s) = self.idle_s.filter(|idle_s| *idle_s > IDLE_WORTH_A_LINE_S) {
            row("of it unused".into(), rough_duration(idle_s));
        }
        rows
    }

    /// Steps, and what is done between them, apart.
    fn training_rows(&self, training: &Course) -> Vec<(String, String)> {
        let steps = match self.steps_range {
            Some([low, high]) if low < high => format!("{low} to {high} steps"),
            _ => format!("{} steps", training.steps),
        };
        let mut rows = vec![(format!("train, {steps}"), self.on_card(training.steps_s).as_duration())];
        let parts = [
            ("samples between", training.sample_rounds, training.samples_s, true),
            ("validation between", training.validations, training.validations_s, true),
            ("saves between", training.saves, training.saves_s, false),
        ];
        for (name, times, seconds, on_card) in parts.into_iter().filter(|(_, times, ..)| *times > 0) {
            let time = if on_card { self.on_card(seconds).as_duration() } else { rough_duration(seconds) };
            rows.push((format!("{name}, {times}"), time));
        }
        rows
    }

    fn memory_rows(&self) -> Vec<Vec<String>> {
        let memory = &self.fit.memory;
        let mut rows = vec![vec!["memory".to_owned(), "peak".to_owned()]];
        for (part, bytes) in &memory.parts {
            let name = match (part, self.program) {
                (MemoryPart::KeptActivations, Program::Tenggat) => {
                    format!("  {part} ({} blocks)", kept(&self.fit.config))
                }
                _ => format!("  {part}"),
            };
            rows.push(vec![name, gigabytes(*bytes)]);
        }
        rows.push(vec!["  device".into(), self.memory_bytes.as_gigabytes()]);
        rows.push(vec!["  usable".into(), gigabytes(self.fit.usable_bytes)]);
        rows.push(vec!["  host".into(), gigabytes(memory.host_bytes)]);
        rows.push(vec!["  fits".into(), self.verdict.to_string()]);
        rows
    }

    /// The bucket with the most pixels, if there is more than one bucket.
    fn largest_of_several(&self) -> Option<&BucketTime> {
        let pixels = |time: &&BucketTime| time.bucket.width_px.saturating_mul(time.bucket.height_px);
        self.buckets.iter().max_by_key(pixels).filter(|_| self.buckets.len() > 1)
    }

    /// Whether it fits, and what would if it does not.
    fn fit_cell(&self) -> String {
        match &self.fit.nearest {
            Some(nearest) if self.verdict == Verdict::TooLarge => {
                let changes: Vec<String> = nearest.changes.iter().map(ToString::to_string).collect();
                format!("no: {}", changes.join(", "))
            }
            _ => self.verdict.to_string(),
        }
    }

    /// Blocks that keep their activations; only tenggat chooses them.
    fn kept_cell(&self) -> String {
        if self.program == Program::Tenggat { kept(&self.fit.config) } else { "–".into() }
    }
}

/// Unused time of a budget that is worth a line, seconds.
const IDLE_WORTH_A_LINE_S: f64 = 60.0;

/// The same job on several machines, one line each.
#[derive(Debug, Clone, Copy)]
pub struct PlanTable<'a>(
    /// The plans, in the order of the lines.
    pub &'a [Plan],
);

impl fmt::Display for PlanTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let priced = self.0.iter().any(|plan| plan.price.is_some());
        let several = self.0.windows(2).any(|pair| pair[0].program != pair[1].program);
        let head = ["machine", "per step", "steps", "total", "memory", "kept", "fits"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        if priced {
            rows[0].insert(4, "price".to_owned());
        }
        // Next to the mean over mixed shapes, the largest one says what the same job costs at full size.
        let largest = self.0.first().and_then(Plan::largest_of_several).map(|time| time.bucket);
        if let Some(bucket) = largest {
            rows[0].insert(1, format!("at {}×{}", bucket.width_px, bucket.height_px));
            rows[0][2] = "mean step".to_owned();
        }
        for plan in self.0 {
            let name =
                if several { format!("{} · {}", plan.machine, plan.program) } else { plan.machine.clone() };
            let mut row = vec![
                name,
                format!("{} s", plan.mean_step_s),
                plan.steps.map_or("–".into(), |steps| steps.to_string()),
                plan.total_s.map_or("–".into(), |total| total.as_duration()),
                plan.memory_bytes.as_gigabytes(),
                plan.kept_cell(),
                plan.fit_cell(),
            ];
            if priced {
                row.insert(4, plan.price.map_or("–".into(), |price| price.to_string()));
            }
            if largest.is_some() {
                let at_largest = |time: &BucketTime| format!("{} s", plan.on_card(time.step_s));
                row.insert(1, plan.largest_of_several().map_or("–".into(), at_largest));
            }
            rows.push(row);
        }
        f.write_str(&aligned(&rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["b×c".to_owned(), "100".to_owned()]];
        assert_eq!(aligned(&rows), "a      1\nb×c  100\n");
    }
}
