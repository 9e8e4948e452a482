//! One run, read again and again.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::event_log::EVENTS;
use crate::files;
use crate::history::{History, Outcome};
use crate::lines::Lines;
use crate::lock::{self, Note};
use crate::metrics::{METRICS, Record};
use crate::overview::{Overview, State};
use crate::tail::tail;
use crate::words::harmless;

/// Bytes of the metrics' end that are read to know the newest step.
const TAIL: u64 = 8 << 10;

/// A run and what was read of it so far. What it holds is small, however long the run.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    events: Lines,
    history: History,
    metrics: Tail,
    note: Note,
    drive: Option<Note>,
    is_held: bool,
}

/// The newest steps in the metrics.
#[derive(Debug, Default)]
struct Tail {
    /// Size and time of the file when it was read.
    seen: Option<(u64, SystemTime)>,
    last: Option<Record>,
    /// Means over the last steps.
    loss: Option<f64>,
    step_s: Option<f64>,
}

impl Run {
    /// The run in a folder, of which nothing is read yet.
    pub fn new(folder: &Path) -> Self {
        Run {
            folder: folder.to_path_buf(),
            events: Lines::new(folder.join(EVENTS)),
            history: History::default(),
            metrics: Tail::default(),
            note: Note::default(),
            drive: None,
            is_held: false,
        }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What its events add up to.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Reads what is new; returns whether anything is.
    pub fn refresh(&mut self) -> bool {
        let before = (self.is_held, self.note.clone(), self.drive.clone());
        self.note = Note::read(&self.folder.join(lock::TRAIN)).unwrap_or_default();
        self.drive = Note::read(&self.folder.join(".drive/state.json"));
        self.is_held = lock::is_locked(&self.folder);
        let news = self.events.follow(&mut self.history);
        let steps = self.metrics.refresh(&self.folder.join(METRICS));
        news || steps || before != (self.is_held, self.note.clone(), self.drive.clone())
    }

    /// What is known of it.
    pub fn overview(&self) -> Overview {
        let (state, reason) = self.state();
        let history = &self.history;
        let is_running = state == State::Running;
        let now = history.step.as_ref();
        let logged = now.map_or(0, |step| step.done);
        let measured = self.metrics.last.map_or(0, |record| record.step);
        let delivered = self.note.delivered.or(self.drive.as_ref().and_then(|drive| drive.delivered));
        let ended = history.ended.as_ref();
        let checkpoints = files::checkpoints(&self.folder);
        let saved = || checkpoints.iter().find_map(|checkpoint| checkpoint.step);
        let unmeasured = || delivered.or_else(saved).unwrap_or(0);
        let step = logged.max(measured).max(if measured == 0 { unmeasured() } else { 0 });
        let expected = now.and_then(|step| step.total);
        let total = expected.or(history.expected.as_ref().and_then(|expected| expected.steps_total));
        Overview {
            name: harmless(&self.name()),
            state,
            reason,
            program: history.program.as_deref().map(harmless).or(self.drive.as_ref().map(|_| "drive".into())),
            phase: history.phase().filter(|_| is_running).map(|phase| harmless(&phase.phase)),
            progress: history.progress.filter(|_| is_running),
            step,
            // What a run that has ended would have done is of no interest.
            total: total.filter(|_| is_running),
            loss: now.filter(|_| is_running).and_then(|step| step.smoothed).or(self.metrics.loss),
            step_s: self.metrics.step_s.or(now.and_then(|step| step.step_s)),
            began_unix_s: history.began_unix_s.or(self.note.started_unix_s),
            updated_unix_s: self.updated_unix_s(),
            deadline_unix_s: self.deadline_unix_s(),
            end_unix_s: match ended {
                Some(ended) => Some(ended.unix_s),
                None if is_running => self.expected_end_unix_s(),
                None => self.updated_unix_s(),
            },
            spent_s: self.spent_s(is_running),
            budget_s: history.deadline_s.or(self.drive.as_ref().and_then(|drive| drive.deadline_s)),
            lora: lora(&checkpoints),
            process: self.note.process.filter(|_| is_running),
        }
    }

    fn state(&self) -> (State, Option<String>) {
        if self.is_held {
            return (State::Running, None);
        }
        let drive = self.drive.as_ref();
        if let Some(ended) = &self.history.ended {
            let error = ended.error.as_deref().map(harmless);
            return match ended.outcome {
                Outcome::Done => (State::Finished, None),
                Outcome::Stopped => (State::Stopped, Some("stopped on request".into())),
                Outcome::Failed => (State::Failed, error),
            };
        }
        let is_done = self.note.delivered.is_some() || drive.is_some_and(|drive| drive.finished);
        if is_done || self.history.processes == 0 && self.has_final_lora() {
            return (State::Finished, None);
        }
        // Of a trainer that locks nothing, nobody knows whether it is at work.
        let is_ours = self.history.processes > 0 || self.drive.is_some() || lock::is_there(&self.folder);
        let cut_off = || "the process ended unexpectedly; the same command resumes the run".to_owned();
        (State::Stopped, is_ours.then(cut_off))
    }

    /// That of its folder, also where that is given as `.`.
    fn name(&self) -> String {
        let folder = self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone());
        folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether the LoRA with the name of the run is there, as every trainer writes it at its end.
    fn has_final_lora(&self) -> bool {
        self.folder.join(format!("{}.safetensors", self.name())).is_file()
    }

    /// On the run's clock, which stands still between two processes.
    fn spent_s(&self, is_running: bool) -> Option<f64> {
        let history = &self.history;
        let logged = history.updated_unix_s.zip(history.zero_unix_s).map(|(now, zero)| now - zero);
        let noted = self.note.spent_s.or(self.drive.as_ref().and_then(|drive| drive.spent_s));
        let running = history.zero_unix_s.filter(|_| is_running).map(|zero| unix_s() - zero);
        running.or(noted.filter(|s| *s > 0.0)).or(logged).filter(|s| s.is_finite() && *s >= 0.0)
    }

    fn deadline_unix_s(&self) -> Option<f64> {
        let known = self.history.deadline_s.zip(self.history.zero_unix_s).map(|(s, zero)| zero + s);
        known.or(self.note.deadline_unix_s)
    }

    fn expected_end_unix_s(&self) -> Option<f64> {
        let history = &self.history;
        let step = history.step.as_ref().and_then(|step| Some((step.at_s, step.end_s?)));
        let forecast = history.expected.as_ref().and_then(|expected| Some((expected.at_s, expected.end_s?)));
        let newest = [step, forecast].into_iter().flatten().max_by(|a, b| a.0.total_cmp(&b.0));
        newest.zip(history.zero_unix_s).map(|((_, end_s), zero)| zero + end_s)
    }

    fn updated_unix_s(&self) -> Option<f64> {
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let steps = self.metrics.seen.map(|(_, time)| since(time));
        let times = [steps, self.history.updated_unix_s];
        times.into_iter().flatten().max_by(f64::total_cmp)
    }
}

impl Tail {
    fn refresh(&mut self, path: &Path) -> bool {
        let found = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
        let seen = found.and_then(|metadata| Some((metadata.len(), metadata.modified().ok()?)));
        if seen == self.seen {
            return false;
        }
        self.seen = seen;
        let bytes = tail(path, TAIL);
        let lines = bytes.split(|&byte| byte == b'\n');
        let records: Vec<Record> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        self.last = records.last().copied();
        self.loss = mean(records.iter().filter_map(|record| record.loss));
        self.step_s = mean(records.iter().rev().take(10).filter_map(|record| record.s_per_step));
        true
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.filter(|v| v.is_finite()).fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The LoRA to name: `last.safetensors`, else the newest.
fn lora(found: &[files::Checkpoint]) -> Option<String> {
    let newest = found.first()?;
    let last = found.iter().find(|checkpoint| checkpoint.file == "last.safetensors");
    Some(harmless(&last.unwrap_or(newest).file))
}

/// Seconds since 1970.
fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::event_log::{EventLog, Worth};
    use serde_json::json;

    fn overview(folder: &Path) -> Overview {
        let mut run = Run::new(folder);
        run.refresh();
        run.overview()
    }

    #[test]
    fn a_folder_of_anything_is_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let found = overview(folder.path());
        assert_eq!((found.state, found.step, found.lora), (State::Stopped, 0, None));
        for name in ["run.lock", METRICS, EVENTS, "config.yaml"] {
            fs::write(folder.path().join(name), b"\x00\xff{\"step\":\n{}\n").unwrap();
        }
        overview(folder.path());
        for name in ["run.lock", METRICS, EVENTS] {
            fs::remove_file(folder.path().join(name)).unwrap();
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(overview(folder.path()).step, 0);
        assert_eq!(overview(&folder.path().join("none")).state, State::Stopped);
    }

    #[test]
    fn a_run_goes_through_its_states() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("fox");
        fs::create_dir(&folder).unwrap();
        let lock = fs::File::create(folder.join("run.lock")).unwrap();
        lock.try_lock().unwrap();
        let mut log = EventLog::new(&folder);
        let started = json!({"event": "started", "program": "train", "deadline_s": 100.0});
        log.add(0.0, "started", Worth::Early, &started);
        log.add(1.0, "phase_started", Worth::Usual, &json!({"event": "phase_started", "phase": "train"}));
        let step =
            json!({"event": "step", "done": 8, "total": 40, "smoothed": 0.5, "step_s": 0.5, "end_s": 50.0});
        log.add(5.0, "step", Worth::Frequent, &step);
        fs::write(folder.join(METRICS), "{\"step\":9,\"loss\":0.25,\"s_per_step\":2}\n").unwrap();
        let mut run = Run::new(&folder);
        assert!(run.refresh() && !run.refresh());
        let found = run.overview();
        assert_eq!((found.name.as_str(), found.state), ("fox", State::Running));
        assert_eq!((found.step, found.total, found.loss), (9, Some(40), Some(0.5)));
        assert_eq!((found.phase.as_deref(), found.step_s), (Some("train"), Some(2.0)));
        assert_eq!((found.budget_s, found.program.as_deref()), (Some(100.0), Some("train")));
        let (end, deadline) = (found.end_unix_s.unwrap(), found.deadline_unix_s.unwrap());
        assert!((deadline - end - 50.0).abs() < 1e-3, "{end} {deadline}");
        // Killed.
        lock.unlock().unwrap();
        assert!(run.refresh());
        assert_eq!(run.overview().state, State::Stopped);
        assert!(run.overview().reason.unwrap().contains("ended unexpectedly"));
        for (outcome, state) in
            [("stopped", State::Stopped), ("failed", State::Failed), ("done", State::Finished)]
        {
            log.add(9.0, "ended", Worth::Usual, &json!({"event": "ended", "outcome": outcome, "steps": 9}));
            run.refresh();
            assert_eq!(run.overview().state, state);
        }
    }

    #[test]
    fn runs_without_events_are_told_by_their_files() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("fox");
        fs::create_dir_all(folder.join(".drive")).unwrap();
        let state = r#"{"spent_s":80.5,"deadline_s":100.0,"delivered":12,"finished":true,"known":{}}"#;
        fs::write(folder.join(".drive/state.json"), state).unwrap();
        let found = overview(&folder);
        assert_eq!((found.state, found.step), (State::Finished, 12));
        assert_eq!((found.spent_s, found.budget_s), (Some(80.5), Some(100.0)));
        let other = parent.path().join("toolkit");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("config.yaml"), "job: extension").unwrap();
        let save = fs::File::create(other.join("toolkit_000000250.safetensors")).unwrap();
        save.set_modified(SystemTime::now() - std::time::Duration::from_secs(60)).unwrap();
        let found = overview(&other);
        assert_eq!((found.state, found.reason, found.step), (State::Stopped, None, 250));
        fs::write(other.join("toolkit.safetensors"), "").unwrap();
        assert_eq!(overview(&other).state, State::Finished);
        assert_eq!(overview(&other).lora.as_deref(), Some("toolkit.safetensors"));
        // As `tenggat status .` names it.
        fs::create_dir(other.join("samples")).unwrap();
        assert_eq!(overview(&other.join("samples/..")).state, State::Finished);
    }

    #[test]
    fn only_the_end_of_long_metrics_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let line = |step: u64| format!("{{\"step\":{step},\"loss\":0.5,\"s_per_step\":0.1}}\n");
        let text: String = (1..=50_000).map(line).collect();
        fs::write(folder.path().join(METRICS), text + "{\"step\":50001,").unwrap();
        assert_eq!(overview(folder.path()).step, 50_000);
    }
}
