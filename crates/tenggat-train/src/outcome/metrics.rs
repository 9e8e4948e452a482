//! `metrics.jsonl`: one line of JSON a step, for plots, dashboards and people.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
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
/// A line is handed to the system whole as soon as it is known, at the end of the file wherever that is, so
/// that a killed process loses none; every ten seconds the file is flushed to the disk, so that a power cut
/// loses little.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    synced_s: f64,
    /// Whether the last line could not be written, or not whole.
    torn: bool,
}

/// What was found in a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The steps, in the order of the file.
    pub records: Vec<Record>,
    /// Lines that are no steps, an unfinished last one aside.
    pub bad_lines: usize,
}

impl Metrics {
    /// Starts an empty file, replacing an existing one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path) -> io::Result<Metrics> {
        crate::files::atomic::write(path, b"")?;
        Self::append(path)
    }

    /// Continues a file after this many steps, and returns its records of them. Lines of later steps, which
    /// are about to be done again, lines that are no steps, and a line that a crash cut short are dropped. A
    /// missing file is started.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn resume(path: &Path, steps: u64) -> io::Result<(Metrics, Found)> {
        let old = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let (mut found, mut kept) = (Found::default(), Vec::with_capacity(old.len()));
        for line in old.split_inclusive(|&byte| byte == b'\n') {
            match serde_json::from_slice::<Record>(line) {
                Ok(record) if line.ends_with(b"\n") => {
                    if record.step <= steps {
                        kept.extend_from_slice(line);
                        found.records.push(record);
                    }
                }
                _ => found.bad_lines += usize::from(line.ends_with(b"\n")),
            }
        }
        // On a disk that is full the file stays as it is and may still grow.
        if kept != old {
            crate::files::atomic::write(path, &kept)?;
        }
        Ok((Self::append(path)?, found))
    }

    /// Goes on in another file with the lines of this one, whose folder may have been removed.
    ///
    /// # Errors
    /// The old file cannot be read or the new one not be written; lines then go on to the old one.
    pub fn move_to(&mut self, path: &Path) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        crate::files::atomic::write(path, &bytes)?;
        *self = Self::append(path)?;
        Ok(())
    }

    fn append(path: &Path) -> io::Result<Metrics> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        Ok(Metrics { file, synced_s: 0.0, torn: false })
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
    /// The file cannot be written; the run need not end for that. Of failures in a row, the first alone is
    /// returned.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let failed_before = self.torn;
        // A part of a line may be there; it must not spoil this one.
        let mut line = if self.torn { "\n".to_owned() } else { String::new() };
        line += &serde_json::to_string(record)?;
        line.push('\n');
        let written = self.file.write_all(line.as_bytes());
        self.torn = written.is_err();
        let synced = written.and_then(|()| {
            if record.time_s - self.synced_s >= SYNC_S {
                self.file.sync_data()?;
                self.synced_s = record.time_s;
            }
            Ok(())
        });
        if failed_before && self.torn { Ok(()) } else { synced }
    }
}

/// Reads the whole lines of a file that may still be written.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
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
        let (mut metrics, found) = Metrics::resume(&path, 4).unwrap();
        assert_eq!((found.records.len(), found.bad_lines), (4, 0));
        metrics.write(&record(5)).unwrap();
        let steps: Vec<u64> = read(&path).unwrap().iter().map(|r| r.step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5]);
        // A torn line at the end does not spoil the next one.
        std::fs::write(&path, &whole[..whole.len() - 30]).unwrap();
        Metrics::resume(&path, 100).unwrap().0.write(&record(6)).unwrap();
        assert_eq!(read(&path).unwrap().len(), 6);
        Metrics::resume(&folder.path().join("new.jsonl"), 0).unwrap().0.write(&record(1)).unwrap();
        assert_eq!(read(&folder.path().join("new.jsonl")).unwrap().len(), 1);
    }

    #[test]
    fn bad_lines_are_dropped_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::create(&path).unwrap();
        (1..=3).for_each(|step| metrics.write(&record(step)).unwrap());
        let whole = std::fs::read(&path).unwrap();
        let second = whole.iter().position(|&b| b == b'\n').unwrap() + 1;
        for bad in [&b"\xff\xfe\n"[..], b"\0\0\0\0\n", b"\n", b"{\"step\":2}\n", b"[]\n"] {
            let spoilt = [&whole[..second], bad, &whole[second..]].concat();
            std::fs::write(&path, &spoilt).unwrap();
            assert_eq!(read(&path).unwrap().len(), 3, "{bad:?}");
            let (_, found) = Metrics::resume(&path, 3).unwrap();
            assert_eq!((found.records.len(), found.bad_lines), (3, 1), "{bad:?}");
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{bad:?}");
        }
        // A byte inside of a line spoils that line alone.
        let mut spoilt = whole.clone();
        spoilt[second + 5] = 0x80;
        std::fs::write(&path, &spoilt).unwrap();
        let (_, found) = Metrics::resume(&path, 3).unwrap();
        assert_eq!(
            (found.records.iter().map(|r| r.step).collect::<Vec<_>>(), found.bad_lines),
            (vec![1, 3], 1)
        );
    }

    /// Two writers are a fault elsewhere; still every line stays whole.
    #[test]
    fn lines_go_to_the_end_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut one = Metrics::create(&path).unwrap();
        let (mut other, _) = Metrics::resume(&path, 0).unwrap();
        for step in 1..=10 {
            [&mut one, &mut other].into_iter().for_each(|metrics| metrics.write(&record(step)).unwrap());
        }
        assert_eq!(read(&path).unwrap().len(), 20);
    }

    #[test]
    fn the_lines_of_a_file_that_was_removed_are_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("metrics.jsonl"), folder.path().join("new/metrics.jsonl"));
        let mut metrics = Metrics::create(&path).unwrap();
        (1..=3).for_each(|step| metrics.write(&record(step)).unwrap());
        std::fs::remove_file(&path).unwrap();
        metrics.move_to(&other).unwrap();
        metrics.write(&record(4)).unwrap();
        assert_eq!(read(&other).unwrap().iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_line_that_failed_does_not_spoil_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::create(&path).unwrap();
        metrics.write(&record(1)).unwrap();
        // Opened for reading: writing fails.
        let writable = std::mem::replace(&mut metrics.file, File::open(&path).unwrap());
        assert!(metrics.write(&record(2)).is_err());
        assert!(metrics.write(&record(3)).is_ok(), "told once");
        metrics.file = writable;
        metrics.file.write_all(b"{\"step\":").unwrap();
        metrics.write(&record(4)).unwrap();
        assert_eq!(read(&path).unwrap().iter().map(|r| r.step).collect::<Vec<_>>(), [1, 4]);
    }
}
