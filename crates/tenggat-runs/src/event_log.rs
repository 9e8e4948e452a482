//! `events.jsonl`: the events of a run, kept in its folder for viewers; `docs/events.md` has the schema.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

/// Name of the file in the folder of a run.
pub const EVENTS: &str = "events.jsonl";
/// Version of the schema.
pub const VERSION: u32 = 1;

/// Bytes from which on frequent events are left out; at twice as many, all are.
const MOST_BYTES: u64 = 8 << 20;
/// Least seconds between two frequent events of one name.
const LEAST_GAP_S: f64 = 1.0;
/// The gap grows with the run: a day and a month have about as many lines.
const GAP_SHARE: f64 = 1.0 / 2000.0;

/// How an event is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// It may come before the run holds its folder, and waits until the run does.
    Early,
    /// Kept as it comes.
    Usual,
    /// One of many of its name, such as a step: kept about once a second, later less often.
    Frequent,
}

/// Adds to the file. Nothing that goes wrong with it reaches the run: a line that cannot be written is lost.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: Option<File>,
    /// Lines from before the folder was held.
    waiting: Vec<String>,
    count: u64,
    bytes: u64,
    /// When the last frequent event of a name was kept.
    kept_s: BTreeMap<&'static str, f64>,
    /// Whether the last line could not be written, or not whole.
    torn: bool,
}

#[derive(Serialize)]
struct Line<'a, T> {
    v: u32,
    seq: u64,
    time: String,
    at_s: f64,
    #[serde(flatten)]
    event: &'a T,
}

impl EventLog {
    /// For a run in this folder, which need not exist yet.
    pub fn new(folder: &Path) -> Self {
        EventLog {
            path: folder.join(EVENTS),
            file: None,
            waiting: Vec::new(),
            count: 0,
            bytes: 0,
            kept_s: BTreeMap::new(),
            torn: false,
        }
    }

    /// Adds an event that happened `at_s` seconds after the budget began to run. The first one that is not
    /// [`Worth::Early`] opens the file: from then on the folder belongs to this run.
    pub fn add(&mut self, at_s: f64, name: &'static str, worth: Worth, event: &impl Serialize) {
        if worth == Worth::Frequent && !self.is_due(name, at_s) || self.bytes > 2 * MOST_BYTES {
            return;
        }
        let (seq, time) = (self.count, Timestamp::now().to_string());
        let Ok(line) = serde_json::to_string(&Line { v: VERSION, seq, time, at_s, event }) else { return };
        self.count += 1;
        if self.file.is_none() && worth == Worth::Early {
            self.waiting.push(line);
            return;
        }
        if self.open().is_err() {
            return;
        }
        for line in std::mem::take(&mut self.waiting).into_iter().chain([line]) {
            self.write(line);
        }
    }

    /// Whether lines go to the file by now.
    pub fn is_open(&self) -> bool {
        self.file.is_some()
    }

    fn is_due(&mut self, name: &'static str, at_s: f64) -> bool {
        let gap_s = (GAP_SHARE * at_s).max(LEAST_GAP_S);
        let due = self.kept_s.get(name).is_none_or(|kept_s| at_s - kept_s >= gap_s);
        if due && self.bytes <= MOST_BYTES {
            self.kept_s.insert(name, at_s);
        }
        due && self.bytes <= MOST_BYTES
    }

    /// Opens the file, or follows it to where the folder was made anew after somebody removed it. A folder
    /// that was renamed takes the open file with it.
    fn open(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            self.file = Some(append(&self.path)?);
            self.bytes = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |m| m.len());
            // A process that was killed may have left half a line.
            self.torn = self.bytes > 0 && self.file.as_mut().is_some_and(|file| !ends_whole(file));
            return Ok(());
        };
        if is_removed(file) && self.path.parent().is_some_and(Path::is_dir) {
            let mut old = Vec::new();
            let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut old));
            let mut new = append(&self.path)?;
            if read.is_ok() {
                // What is lost is the log of a folder that somebody removed.
                let _ = new.write_all(&old);
            }
            self.file = Some(new);
        }
        Ok(())
    }

    fn write(&mut self, line: String) {
        let Some(file) = &mut self.file else { return };
        let text = if self.torn { format!("\n{line}\n") } else { format!("{line}\n") };
        self.torn = file.write_all(text.as_bytes()).is_err();
        self.bytes += text.len() as u64;
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

fn ends_whole(file: &mut File) -> bool {
    let mut last = [0];
    file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).is_ok() && last == *b"\n"
}

/// Whether an open file has no name any more.
#[cfg(unix)]
fn is_removed(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

/// Windows does not let a file be removed that is open.
#[cfg(not(unix))]
fn is_removed(_: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Said {
        event: &'static str,
    }

    fn add(log: &mut EventLog, at_s: f64, event: &'static str, worth: Worth) {
        log.add(at_s, event, worth, &Said { event });
    }

    fn lines(folder: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.join(EVENTS)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    #[test]
    fn early_events_wait_until_the_folder_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::new(folder.path());
        add(&mut log, 0.1, "started", Worth::Early);
        add(&mut log, 0.2, "warning", Worth::Early);
        assert!(!folder.path().join(EVENTS).exists() && !log.is_open());
        add(&mut log, 0.3, "phase_started", Worth::Usual);
        add(&mut log, 0.4, "warning", Worth::Early);
        let lines = lines(folder.path());
        let names: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["started", "warning", "phase_started", "warning"]);
        assert_eq!(lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(lines[0]["at_s"], 0.1);
    }

    #[test]
    fn a_month_of_steps_stays_small() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::new(folder.path());
        let month_s = 30.0 * 86400.0;
        let mut at_s = 0.0;
        while at_s < month_s {
            add(&mut log, at_s, "step", Worth::Frequent);
            at_s += if at_s < 1e4 { 0.2 } else { 20.0 };
        }
        let count = lines(folder.path()).len();
        assert!((10_000..30_000).contains(&count), "{count}");
    }

    #[test]
    fn half_a_line_does_not_spoil_the_next() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(EVENTS), "{\"v\":1}\n{\"v\":1,\"se").unwrap();
        add(&mut EventLog::new(folder.path()), 1.0, "phase_started", Worth::Usual);
        assert_eq!(lines(folder.path()).len(), 2);
    }

    #[test]
    fn a_folder_that_is_not_there_or_removed_harms_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let mut log = EventLog::new(&folder);
        add(&mut log, 1.0, "phase_started", Worth::Usual);
        std::fs::create_dir(&folder).unwrap();
        add(&mut log, 2.0, "data", Worth::Usual);
        std::fs::remove_dir_all(&folder).unwrap();
        add(&mut log, 3.0, "saved", Worth::Usual);
        std::fs::create_dir(&folder).unwrap();
        add(&mut log, 4.0, "wrote", Worth::Usual);
        let names: Vec<_> =
            lines(&folder).iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect();
        if cfg!(unix) {
            assert_eq!(names, ["data", "saved", "wrote"]);
        }
    }
}
