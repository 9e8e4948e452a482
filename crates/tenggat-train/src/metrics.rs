//! `metrics.jsonl`: one line of JSON a step, for plots, dashboards and people.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Seconds of the run's clock between two flushes to the disk.
const SYNC_S: f64 = 10.0;

/// What is known of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done, this one included.
    pub step: u64,
    /// Seconds on the run's clock.
    pub time_s: f64,
    /// Loss; null in the file if it is not a number.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping; null in the file if it is not a number.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Seconds that the step took.
    pub s_per_step: f64,
    /// Picture size, `512x768`.
    pub bucket: String,
    /// Loss on the validation pictures, if they were measured after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
}

fn number_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Writes the file.
///
/// A line is handed to the system whole as soon as it is known, so that a killed process loses none; every
/// ten seconds the file is flushed to the disk, so that a power cut loses little.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    synced_s: f64,
}

impl Metrics {
    /// Starts an empty file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path) -> io::Result<Metrics> {
        Ok(Metrics { file: File::create(path)?, synced_s: 0.0 })
    }

    /// Goes on with a file after so many steps. Lines of later steps, which are about to be done again, and a line that
    /// a crash cut short are dropped. A missing file is started.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn resume(path: &Path, steps: u64) -> io::Result<Metrics> {
        let old = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let kept = |line: &&str| {
            line.ends_with('\n') && serde_json::from_str::<Record>(line).is_ok_and(|r| r.step <= steps)
        };
        let text: String = old.split_inclusive('\n').filter(kept).collect();
        crate::atomic::write(path, text.as_bytes())?;
        Ok(Metrics { file: OpenOptions::new().append(true).open(path)?, synced_s: 0.0 })
    }

    /// Flushes what was added to the disk.
    ///
    /// # Errors
    /// The system's reason.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Adds a step.
    ///
    /// # Errors
    /// The file cannot be written; the run need not end for that.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        self.file.write_all(line.as_bytes())?;
        if record.time_s - self.synced_s >= SYNC_S {
            self.file.sync_data()?;
            self.synced_s = record.time_s;
        }
        Ok(())
    }
}

/// Reads the whole lines of a file that may still be written.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record {
            step,
            time_s: step as f64 * 4.0,
            loss: 0.25,
            lr: 1e-4,
            grad_norm: 1.5,
            s_per_step: 4.0,
            bucket: "512x768".into(),
            val_loss: None,
        }
    }

    #[test]
    fn every_step_is_a_line_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::create(&path).unwrap();
        for step in 1..=5 {
            metrics.write(&record(step)).unwrap();
            assert_eq!(read(&path).unwrap().len() as u64, step);
        }
        let first = std::fs::read_to_string(&path).unwrap().lines().next().unwrap().to_owned();
        let expected = r#"{"step":1,"time_s":4.0,"loss":0.25,"lr":0.0001,"grad_norm":1.5,"s_per_step":4.0,"bucket":"512x768"}"#;
        assert_eq!(first, expected);
        assert_eq!(read(&path).unwrap()[4], record(5));
    }

    #[test]
    fn a_loss_that_is_no_number_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        Metrics::create(&path).unwrap().write(&Record { loss: f64::NAN, ..record(1) }).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"loss\":null"));
        assert!(read(&path).unwrap()[0].loss.is_nan());
    }

    #[test]
    fn resuming_drops_what_will_be_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::create(&path).unwrap();
        (1..=6).for_each(|step| metrics.write(&record(step)).unwrap());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 30]).unwrap();
        let mut metrics = Metrics::resume(&path, 4).unwrap();
        metrics.write(&record(5)).unwrap();
        let steps: Vec<u64> = read(&path).unwrap().iter().map(|r| r.step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5]);
        // A torn line at the end does not spoil the next one.
        std::fs::write(&path, &whole[..whole.len() - 30]).unwrap();
        Metrics::resume(&path, 100).unwrap().write(&record(6)).unwrap();
        assert_eq!(read(&path).unwrap().len(), 6);
        Metrics::resume(&folder.path().join("new.jsonl"), 0).unwrap().write(&record(1)).unwrap();
        assert_eq!(read(&folder.path().join("new.jsonl")).unwrap().len(), 1);
    }
}
