//! Plans as text.

use std::fmt::{self, Write as _};

use super::{BucketTime, Plan};
use crate::budget::Phase;
use crate::cost::MemoryPart;
use crate::cost::StepConfig;
use crate::quantity::format_duration;

/// Aligns the columns of a table: the first to the left, the others to the right.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
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
    format!("{}{some}/{}", config.kept_blocks, config.dims.layers)
}

fn gigabytes(bytes: f64) -> String {
    if bytes < 0.95e9 { format!("{:.0} MB", bytes / 1e6) } else { format!("{:.1} GB", bytes / 1e9) }
}

/// Seconds per step: two or three significant digits.
fn step_time(seconds: f64) -> String {
    if seconds < 1.0 { format!("{seconds:.3} s") } else { format!("{seconds:.2} s") }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {}", self.trainer, self.machine)?;
        f.write_str(&aligned(&self.step_rows()))?;
        writeln!(f)?;
        f.write_str(&aligned(&self.phase_rows()))?;
        writeln!(f)?;
        f.write_str(&aligned(&self.memory_rows()))?;
        if let Some(price) = self.price {
            writeln!(f, "\nprice {price:.2}")?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

impl Plan {
    fn step_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![["bucket", "tokens", "share", "per step"].map(str::to_owned).to_vec()];
        let shares: f64 = self.buckets.iter().map(|b| b.bucket.share).sum();
        for time in &self.buckets {
            rows.push(vec![
                format!("  {}×{}", time.bucket.width_px, time.bucket.height_px),
                time.image_tokens.to_string(),
                format!("{:.0} %", 100.0 * time.bucket.share / shares.max(f64::MIN_POSITIVE)),
                step_time(time.step_s),
            ]);
        }
        if self.buckets.len() > 1 {
            rows.push(vec!["  mean".into(), String::new(), String::new(), step_time(self.step_s)]);
        }
        rows
    }

    fn phase_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![vec!["phase".to_owned(), "time".to_owned()]];
        for phase in Phase::ALL {
            let seconds =
                if phase == Phase::Train { self.training_s.unwrap_or(0.0) } else { self.phases.get(phase) };
            if seconds <= 0.0 {
                continue;
            }
            let name = match (phase, self.steps) {
                (Phase::Train, Some(steps)) => format!("  train, {steps} steps"),
                _ => format!("  {}", phase.name()),
            };
            rows.push(vec![name, format_duration(seconds)]);
        }
        if let Some(total_s) = self.total_s {
            rows.push(vec!["  total".into(), format_duration(total_s)]);
        }
        if let Some(budget_s) = self.budget_s {
            rows.push(vec!["  budget".into(), format_duration(budget_s)]);
        }
        rows
    }

    fn memory_rows(&self) -> Vec<Vec<String>> {
        let memory = &self.fit.memory;
        let mut rows = vec![vec!["memory".to_owned(), "peak".to_owned()]];
        for (part, bytes) in &memory.parts {
            let name = match part {
                MemoryPart::KeptActivations => format!("  {part} ({} blocks)", kept(&self.fit.config)),
                _ => format!("  {part}"),
            };
            rows.push(vec![name, gigabytes(*bytes)]);
        }
        rows.push(vec!["  device".into(), gigabytes(memory.device_bytes())]);
        rows.push(vec!["  usable".into(), gigabytes(self.fit.usable_bytes)]);
        rows.push(vec!["  host".into(), gigabytes(memory.host_bytes)]);
        rows
    }

    /// The bucket with the most pixels, if there is more than one bucket.
    fn largest_of_several(&self) -> Option<&BucketTime> {
        let pixels = |time: &&BucketTime| time.bucket.width_px.saturating_mul(time.bucket.height_px);
        self.buckets.iter().max_by_key(pixels).filter(|_| self.buckets.len() > 1)
    }

    /// One line: memory, and whether it fits.
    fn fit_cell(&self) -> String {
        if self.fit.fits {
            return "yes".to_owned();
        }
        match &self.fit.nearest {
            Some(nearest) => {
                let changes: Vec<String> = nearest.changes.iter().map(ToString::to_string).collect();
                format!("no: {}", changes.join(", "))
            }
            None => "no".to_owned(),
        }
    }
}

/// The same job on several machines, one line each.
#[derive(Debug, Clone, Copy)]
pub struct PlanTable<'a>(
    /// The plans, in the order of the lines.
    pub &'a [Plan],
);

impl fmt::Display for PlanTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let priced = self.0.iter().any(|plan| plan.price.is_some());
        let several = self.0.windows(2).any(|pair| pair[0].trainer != pair[1].trainer);
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
                if several { format!("{} · {}", plan.machine, plan.trainer) } else { plan.machine.clone() };
            let mut row = vec![
                name,
                step_time(plan.step_s),
                plan.steps.map_or("–".into(), |steps| steps.to_string()),
                plan.total_s.map_or("–".into(), format_duration),
                gigabytes(plan.fit.memory.device_bytes()),
                kept(&plan.fit.config),
                plan.fit_cell(),
            ];
            if priced {
                row.insert(4, plan.price.map_or("–".into(), |price| format!("{price:.2}")));
            }
            if largest.is_some() {
                row.insert(1, plan.largest_of_several().map_or("–".into(), |time| step_time(time.step_s)));
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
