//! `metrics.jsonl`: every step of a run, in columns.

use std::path::Path;

use serde::Deserialize;

use crate::lines::{Lines, Reader};

/// Most validation losses that are kept; of more, every second one is, and so on.
const MOST_VALIDATION: usize = 1 << 14;

/// Name of the file in the folder of a run.
pub const METRICS: &str = "metrics.jsonl";

/// Most steps that are kept in memory, 28 bytes each; of a longer run every second one is, and so on.
const MOST_STEPS: usize = 1 << 20;

/// A line of the file. Trainers other than ours tell less.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Record {
    pub step: u64,
    #[serde(default)]
    pub time_s: Option<f64>,
    #[serde(default)]
    pub loss: Option<f64>,
    #[serde(default)]
    pub lr: Option<f64>,
    #[serde(default)]
    pub grad_norm: Option<f64>,
    #[serde(default)]
    pub s_per_step: Option<f64>,
    #[serde(default)]
    pub val_loss: Option<f64>,
}

/// The steps of a run in columns of one length; what is not known is not a number.
#[derive(Debug)]
pub struct Series {
    lines: Lines,
    columns: Columns,
}

/// The columns themselves.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    /// Steps done.
    pub step: Vec<u32>,
    /// Seconds on the run's clock.
    pub time_s: Vec<f32>,
    /// Loss.
    pub loss: Vec<f32>,
    /// Learning rate.
    pub lr: Vec<f32>,
    /// Norm of the gradient.
    pub grad_norm: Vec<f32>,
    /// Seconds of the step.
    pub step_s: Vec<f32>,
    /// Loss on the validation images, at the steps where it was measured.
    pub validation: Vec<(u32, f32)>,
    /// Of so many steps one is kept.
    every: u32,
    seen: u64,
}

impl Series {
    /// The steps of the run in a folder; [`Series::follow`] reads them.
    pub fn new(folder: &Path) -> Self {
        Series { lines: Lines::new(folder.join(METRICS)), columns: Columns::default() }
    }

    /// Reads what is new; returns whether anything is.
    pub fn follow(&mut self) -> bool {
        self.lines.follow(&mut self.columns)
    }

    /// Steps that are kept.
    pub fn len(&self) -> usize {
        self.columns.step.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.columns.step.is_empty()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.columns.step.capacity() * 24 + self.columns.validation.capacity() * 8
    }

    pub(crate) fn columns(&self) -> &Columns {
        &self.columns
    }
}

impl Columns {
    fn truncate(&mut self, length: usize) {
        self.step.truncate(length);
        let columns = [&mut self.time_s, &mut self.loss, &mut self.lr, &mut self.grad_norm, &mut self.step_s];
        columns.into_iter().for_each(|column| column.truncate(length));
    }

    /// Keeps every second step.
    fn halve(&mut self) {
        half(&mut self.step);
        let columns = [&mut self.time_s, &mut self.loss, &mut self.lr, &mut self.grad_norm, &mut self.step_s];
        columns.into_iter().for_each(half);
        self.every = self.every.max(1) * 2;
    }

    fn add(&mut self, record: &Record) {
        let Ok(step) = u32::try_from(record.step) else { return };
        // A run that was resumed from an older checkpoint does steps again.
        let keep = self.step.partition_point(|&known| known < step);
        self.truncate(keep);
        while self.validation.last().is_some_and(|&(known, _)| known >= step) {
            self.validation.pop();
        }
        let value = |value: Option<f64>| value.map_or(f32::NAN, |value| value as f32);
        if record.val_loss.is_some() {
            self.validation.push((step, value(record.val_loss)));
            if self.validation.len() > MOST_VALIDATION {
                half(&mut self.validation);
            }
        }
        self.seen += 1;
        if self.every > 1 && !self.seen.is_multiple_of(u64::from(self.every)) {
            return;
        }
        self.step.push(step);
        self.time_s.push(value(record.time_s));
        self.loss.push(value(record.loss));
        self.lr.push(value(record.lr));
        self.grad_norm.push(value(record.grad_norm));
        self.step_s.push(value(record.s_per_step));
        if self.step.len() > MOST_STEPS {
            self.halve();
        }
    }
}

/// Every second value.
fn half<T: Copy>(column: &mut Vec<T>) {
    let mut i = 0;
    column.retain(|_| {
        i += 1;
        i % 2 == 0
    });
}

impl Reader for Columns {
    fn start_over(&mut self) {
        *self = Columns::default();
    }

    fn line(&mut self, line: &[u8]) {
        if let Ok(record) = serde_json::from_slice::<Record>(line) {
            self.add(&record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Series {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(METRICS), text).unwrap();
        let mut series = Series::new(folder.path());
        series.follow();
        series
    }

    #[test]
    fn steps_are_read_and_what_is_spoilt_is_left_out() {
        let text = b"{\"step\":1,\"time_s\":1.5,\"loss\":0.5,\"lr\":1e-4,\"grad_norm\":2,\"s_per_step\":0.5,\"bucket\":\"1x1\"}
{\"step\":2,\"time_s\":2,\"loss\":null,\"val_loss\":0.25}
not json
{\"step\":-1}
{\"step\":99999999999999}
{\"step\":\"3\"}
\xff\xfe
[]
{\"step\":3,\"loss\":1e400}
{\"step\":4,\"loss\":0.75}
{\"step\":5,\"lo";
        let series = read(text);
        let columns = series.columns();
        assert_eq!(columns.step, [1, 2, 4]);
        assert_eq!((columns.loss[0], columns.loss[2]), (0.5, 0.75));
        assert!(columns.loss[1].is_nan() && columns.grad_norm[1].is_nan());
        assert_eq!(columns.validation, [(2, 0.25)]);
    }

    #[test]
    fn validation_at_every_step_stays_small() {
        let count = 3 * MOST_VALIDATION;
        let line = |step: usize| format!("{{\"step\":{step},\"val_loss\":0.5}}\n");
        let series = read((1..=count).map(line).collect::<String>().as_bytes());
        let validation = &series.columns().validation;
        assert!((MOST_VALIDATION / 2..=MOST_VALIDATION).contains(&validation.len()), "{}", validation.len());
        assert!(validation.is_sorted() && validation.last().unwrap().0 as usize > count - 4);
    }

    #[test]
    fn steps_that_are_done_again_replace_those_before() {
        let line =
            |step: u64, loss: f64| format!("{{\"step\":{step},\"loss\":{loss},\"val_loss\":{loss}}}\n");
        let text: String = [line(1, 1.0), line(2, 2.0), line(3, 3.0), line(2, 4.0)].concat();
        let series = read(text.as_bytes());
        assert_eq!(series.columns().step, [1, 2]);
        assert_eq!(series.columns().loss, [1.0, 4.0]);
        assert_eq!(series.columns().validation, [(1, 1.0), (2, 4.0)]);
    }
}
