//! `metrics.jsonl`, in the format of `tenggat train`: one line of JSON for each time that the trainer shows a
//! new step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What is known of one step; what the trainer does not tell is null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done, this one included.
    pub step: u64,
    /// Seconds on the run's clock.
    pub time_s: f64,
    /// Loss.
    pub loss: Option<f64>,
    /// Learning rate.
    pub lr: Option<f64>,
    /// Norm of the gradient; trainers do not tell.
    pub grad_norm: Option<f64>,
    /// Seconds that the step took.
    pub s_per_step: f64,
    /// Picture size; trainers do not tell.
    pub bucket: String,
}

/// Writes the file; a line is handed to the system whole as soon as it is known.
#[derive(Debug)]
pub struct Metrics {
    file: File,
}

impl Metrics {
    /// Continues a file after this many steps: lines of later steps, which are about to be done again, and a
    /// line that was cut short are dropped. A missing file is started.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn resume(path: &Path, steps: u64) -> io::Result<Metrics> {
        let old = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let kept = |line: &&str| {
            line.ends_with('\n') && serde_json::from_str::<Record>(line).is_ok_and(|r| r.step <= steps)
        };
        let text: String = old.split_inclusive('\n').filter(kept).collect();
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut beside = tempfile::NamedTempFile::new_in(folder)?;
        beside.write_all(text.as_bytes())?;
        beside.persist(path).map_err(|e| e.error)?;
        Ok(Metrics { file: OpenOptions::new().append(true).open(path)? })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The file cannot be written; the run need not end for that.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        self.file.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_train_and_later_ones_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let record = |step| Record {
            step,
            time_s: 2.0,
            loss: Some(0.25),
            lr: Some(1e-4),
            grad_norm: None,
            s_per_step: 0.5,
            bucket: String::new(),
        };
        let mut metrics = Metrics::resume(&path, 0).unwrap();
        (1..=4).for_each(|step| metrics.write(&record(step)).unwrap());
        let first = r#"{"step":1,"time_s":2.0,"loss":0.25,"lr":0.0001,"grad_norm":null,"s_per_step":0.5,"bucket":""}"#;
        assert_eq!(fs::read_to_string(&path).unwrap().lines().next(), Some(first));
        let mut text = fs::read_to_string(&path).unwrap();
        text.truncate(text.len() - 9);
        fs::write(&path, text).unwrap();
        Metrics::resume(&path, 2).unwrap().write(&record(3)).unwrap();
        let steps = fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> =
            steps.lines().map(|l| serde_json::from_str::<Record>(l).unwrap().step).collect();
        assert_eq!(steps, [1, 2, 3]);
    }
}
