//! `tenggat queue`: runs one after another, through kills.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{ends, job, logged_steps, tenggat, text};
use tenggat_queue::{Entry, Queue, State};

/// A queue of its own, with jobs on the mini model.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A job file; its run is `name` in this folder.
    fn job(&self, name: &str, steps: u32) -> PathBuf {
        let written = job(self.path(), &format!("steps: {steps}"));
        let text = fs::read_to_string(&written).unwrap();
        let text =
            text.replace("name: fox", &format!("name: {name}")).replace("save_every: 100", "save_every: 2");
        let path = self.path().join(format!("{name}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tenggat();
        command.args(arguments).env("TENGGAT_QUEUE", self.path().join("queue")).env("RAYON_NUM_THREADS", "1");
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    fn add(&self, jobs: &[PathBuf], more: &[&str]) -> String {
        let jobs: Vec<&str> = jobs.iter().map(|job| job.to_str().unwrap()).collect();
        self.succeeds(&[&["--device", "cpu", "queue", "add"][..], &jobs, more].concat())
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn entries(&self) -> Vec<Entry> {
        let queue = Queue::open_existing(&self.path().join("queue")).unwrap().unwrap();
        let mut entries = queue.list().unwrap();
        entries.sort_by_key(|entry| entry.id);
        entries
    }

    fn states(&self) -> Vec<State> {
        self.entries().iter().map(|entry| entry.state).collect()
    }

    /// Waits until something holds of the entries.
    fn wait(&self, what: &str, holds: impl Fn(&[Entry]) -> bool) {
        let began = Instant::now();
        while !holds(&self.entries()) {
            assert!(began.elapsed().as_secs() < 180, "{what}: {:?}", self.entries());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self, entry: i64) -> String {
        fs::read_to_string(self.path().join(format!("queue/{entry}.log"))).unwrap_or_default()
    }
}

fn signal(signal: &str, process: u32) {
    // It may have ended by itself.
    let _ = Command::new("kill").args([signal, &process.to_string()]).stderr(Stdio::null()).status();
}

/// Kills whoever runs the queue again and again while entries run, now and then with the entry's process, as
/// a power cut would; then lets it come to its end.
fn survives(jobs: usize, steps: u32, kills: u64) {
    let place = Place::new();
    let files: Vec<PathBuf> = (1..=jobs).map(|n| place.job(&format!("run{n}"), steps)).collect();
    place.add(&files, &[]);
    let mut random = 7_u64;
    for kill in 0..kills {
        let folder = place.path().to_str().unwrap();
        let mut server = place.start(&["serve", "--run-queue", "--port", "0", folder]);
        let is_over = |entries: &[Entry]| entries.iter().all(|entry| entry.state.has_ended());
        place.wait("nothing runs", |entries| {
            is_over(entries) || entries.iter().any(|entry| entry.state == State::Running)
        });
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((random >> 33) % 900));
        signal("-KILL", server.id());
        server.wait().unwrap();
        let entries = place.entries();
        assert_eq!(entries.len(), jobs, "after {kill} kills");
        if kill % 3 == 2 {
            entries.iter().filter_map(|entry| entry.process).for_each(|process| signal("-KILL", process));
        }
        if is_over(&entries) {
            // A fast machine; what counts is that most kills hit something.
            assert!(kill >= kills / 2, "all was over after {kill} kills");
            break;
        }
    }
    place.succeeds(&["queue", "run"]);
    for entry in place.entries() {
        let run = place.path().join(format!("run{}", entry.id));
        assert_eq!(entry.state, State::Done, "{entry:?}\n{}", place.log(entry.id));
        assert!(run.join(format!("run{}.safetensors", entry.id)).is_file(), "{}", place.log(entry.id));
        assert_eq!(logged_steps(&run), steps as usize, "{}", place.log(entry.id));
    }
}

#[test]
fn a_queue_survives_kills_of_whoever_runs_it() {
    survives(4, 40, 6);
}

#[test]
#[ignore = "takes minutes; run it with --ignored"]
fn a_queue_of_20_jobs_survives_50_kills() {
    survives(20, 60, 50);
}

#[test]
fn one_deadline_is_shared_and_a_job_that_fails_holds_up_nobody() {
    let place = Place::new();
    let files = ["a", "b", "c"].map(|name| place.job(name, 2));
    let by = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(20);
    place.add(&files, &["--by", &by.to_string()]);
    // `b` loses its data.
    let text = fs::read_to_string(&files[1]).unwrap();
    fs::write(&files[1], text.replace("demo-dataset", "nowhere")).unwrap();
    place.succeeds(&["queue", "run"]);
    let entries = place.entries();
    assert_eq!(place.states(), [State::Done, State::Failed, State::Done]);
    assert!(entries[1].reason.as_ref().unwrap().contains("nowhere"), "{:?}", entries[1].reason);
    for (entry, left) in entries.iter().zip([3.0, 2.0, 1.0]) {
        let (began, by) = (entry.began_unix_s.unwrap(), entry.by_unix_s.unwrap());
        let share = entry.deadline_unix_s.unwrap() - began;
        assert!((share - (by - began) / left).abs() < 0.01, "{share} of {}", by - began);
    }
    let said = place.succeeds(&["queue", "list"]);
    assert!(said.contains("failed") && said.contains("done"), "{said}");
    // They are over.
    assert_eq!(place.output(&["queue", "cancel", "1"]).status.code(), Some(1));
}

#[test]
fn a_cancelled_entry_saves_and_the_next_one_runs() {
    let place = Place::new();
    place.add(&[place.job("long", 1_000_000), place.job("never", 2), place.job("short", 2)], &[]);
    let said = place.succeeds(&["queue", "move", "3", "first"]);
    assert!(said.contains("number 1"), "{said}");
    place.succeeds(&["queue", "move", "3", "2"]);
    assert!(place.succeeds(&["queue", "list"]).contains("nobody runs the queue"));
    let mut runner = place.start(&["queue", "run"]);
    let began = Instant::now();
    while logged_steps(&place.path().join("long")) < 3 {
        assert!(began.elapsed().as_secs() < 120, "{}", place.log(1));
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = place.output(&["queue", "run"]);
    assert!(
        !second.status.success() && text(&second).contains("already runs the queue"),
        "{}",
        text(&second)
    );
    place.succeeds(&["queue", "cancel", "2", "1"]);
    assert!(ends(&mut runner, Duration::from_secs(120)).success());
    assert_eq!(place.states(), [State::Cancelled, State::Cancelled, State::Done]);
    assert!(place.path().join("long/last.safetensors").is_file(), "{}", place.log(1));
    assert!(!place.path().join("never").exists());
}

#[test]
fn a_queue_that_is_asked_to_end_goes_on_later() {
    let place = Place::new();
    place.add(&[place.job("long", 1_000_000)], &["--budget", "10m"]);
    let mut runner = place.start(&["queue", "run"]);
    let began = Instant::now();
    while logged_steps(&place.path().join("long")) < 3 {
        assert!(began.elapsed().as_secs() < 120, "{}", place.log(1));
        std::thread::sleep(Duration::from_millis(20));
    }
    signal("-TERM", runner.id());
    assert!(ends(&mut runner, Duration::from_secs(120)).success());
    assert_eq!(place.states(), [State::Waiting], "{}", place.log(1));
    let steps = logged_steps(&place.path().join("long"));
    let mut runner = place.start(&["queue", "run"]);
    let began = Instant::now();
    while logged_steps(&place.path().join("long")) <= steps {
        assert!(began.elapsed().as_secs() < 120, "{}", place.log(1));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(place.log(1).contains("resum"), "{}", place.log(1));
    // Stopped by another hand: it has ended, and is not begun again.
    fs::write(place.path().join("long/stop.request"), "").unwrap();
    assert!(ends(&mut runner, Duration::from_secs(120)).success());
    assert_eq!(place.states(), [State::Stopped]);
}

#[test]
fn what_cannot_be_read_is_not_added() {
    let place = Place::new();
    let good = place.job("good", 2);
    let bad = place.path().join("bad.yaml");
    fs::write(
        &bad,
        "job: extension\nconfig: {name: bad, process: [{type: sd_trainer, train: {steps: -1}}]}\n",
    )
    .unwrap();
    let output = place.output(&["queue", "add", good.to_str().unwrap(), bad.to_str().unwrap()]);
    assert!(!output.status.success() && text(&output).contains("bad.yaml"), "{}", text(&output));
    let late = place.output(&["queue", "add", good.to_str().unwrap(), "--by", "2020-01-01T00:00:00Z"]);
    assert!(!late.status.success() && text(&late).contains("past"), "{}", text(&late));
    assert!(place.entries().is_empty());
    assert!(place.succeeds(&["queue", "list"]).contains("empty"));
    assert_eq!(place.succeeds(&["queue", "list", "--json"]).trim(), "[]");
}
