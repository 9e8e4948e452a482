//! `tenggat status` and `tenggat watch` from outside: runs under way, finished, stopped and failed.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::small_job::Job;
use common::{ends, tenggat, text};
use serde_json::Value;

fn runs(folder: &Path) -> Vec<Value> {
    let output = tenggat().args(["status", "--json"]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_is_seen_from_its_beginning_to_its_end() {
    let job = Job::new("steps: 100000", "");
    let run = job.start(&["--budget", "10m"], 6);
    let began = Instant::now();
    // What is expected is known after the first steps.
    let seen = loop {
        let seen = runs(job.folder.path()).pop().unwrap();
        if seen["end_unix_s"].is_number() {
            break seen;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{seen}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!((&seen["name"], &seen["state"]), (&"fox".into(), &"running".into()));
    assert_eq!((&seen["program"], &seen["process"]), (&"train".into(), &run.id().into()));
    let (end, deadline) = (seen["end_unix_s"].as_f64().unwrap(), seen["deadline_unix_s"].as_f64().unwrap());
    assert!(end <= deadline && deadline - end < 300.0, "{seen}");
    assert!(seen["step"].as_u64().unwrap() >= 6 && seen["budget_s"] == 600.0, "{seen}");
    let table = tenggat().arg("status").arg(job.folder.path()).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("running") && table.lines().all(|line| line.chars().count() <= 80), "{table}");
    // Asked for the end by a file alone.
    fs::write(job.file("stop.request"), "").unwrap();
    let said = run.succeeds();
    assert!(said.contains("interrupted"), "{said}");
    let seen = runs(job.folder.path()).pop().unwrap();
    assert_eq!((&seen["state"], &seen["lora"]), (&"stopped".into(), &"last.safetensors".into()));
}

#[test]
fn a_run_that_fails_or_is_killed_is_seen_so() {
    let job = Job::new("steps: 4", "");
    for name in ["fox.png", "bell.png", "drum.png"] {
        fs::write(job.folder.path().join("set").join(name), "no image").unwrap();
    }
    job.fails(&[]);
    let seen = runs(job.folder.path()).pop().unwrap();
    assert_eq!(seen["state"], "failed", "{seen}");
    assert!(seen["reason"].as_str().unwrap().contains("image"), "{seen}");

    let job = Job::new("steps: 100000", "");
    let run = job.start(&[], 2);
    run.signal("-KILL");
    run.end();
    let seen = runs(job.folder.path()).pop().unwrap();
    assert_eq!(seen["state"], "stopped", "{seen}");
    assert!(seen["reason"].as_str().unwrap().contains("ended unexpectedly"), "{seen}");
}

#[test]
fn watching_tells_what_changes_and_ends_with_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("fox");
    fs::create_dir(&run).unwrap();
    fs::write(run.join("metrics.jsonl"), "{\"step\":1,\"loss\":0.5}\n").unwrap();
    let mut child = tenggat()
        .args(["watch", "--json"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["step"], 1);
    fs::write(run.join("metrics.jsonl"), "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.4}\n").unwrap();
    let second: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(second["step"], 2);
    drop(lines);
    fs::write(run.join("metrics.jsonl"), "{\"step\":3,\"loss\":0.4}\n").unwrap();
    assert!(ends(&mut child, Duration::from_secs(30)).success());
}

#[test]
fn that_time_passes_is_no_news() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("fox");
    let _lock = running(&run);
    let mut child = tenggat()
        .args(["watch", "--json"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((&first["state"], &first["step"]), (&"running".into(), &1.into()));
    // Several looks, between which only the time has passed.
    std::thread::sleep(Duration::from_millis(3200));
    fs::write(run.join("metrics.jsonl"), "{\"step\":2,\"loss\":0.4}\n").unwrap();
    let second: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(second["step"], 2);
    assert!(second["spent_s"].as_f64() > first["spent_s"].as_f64(), "{first} {second}");
    drop(lines);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A run under way that says nothing more, as long as the lock is held.
fn running(run: &Path) -> fs::File {
    fs::create_dir_all(run).unwrap();
    let lock = fs::File::create(run.join("run.lock")).unwrap();
    lock.try_lock().unwrap();
    fs::write(run.join("metrics.jsonl"), "{\"step\":1,\"loss\":0.5}\n").unwrap();
    let (time, rest) = (jiff::Timestamp::now(), r#""event":"started","program":"train","deadline_s":600.0"#);
    fs::write(
        run.join("events.jsonl"),
        format!("{{\"v\":1,\"seq\":0,\"time\":\"{time}\",\"at_s\":0.1,{rest}}}\n"),
    )
    .unwrap();
    lock
}

#[test]
fn a_folder_that_is_none_is_named() {
    let output = tenggat().args(["status", "no/such/folder"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("no/such/folder is not a folder"), "{}", text(&output));
}

#[test]
fn several_runs_are_drawn_into_one_picture() {
    let folder = tempfile::tempdir().unwrap();
    for (name, steps) in [("fox", 40), ("bell", 25)] {
        let run = folder.path().join(name);
        fs::create_dir(&run).unwrap();
        let line = |step: u32| {
            format!("{{\"step\":{step},\"time_s\":{step},\"loss\":0.5,\"lr\":1e-4,\"s_per_step\":1.0}}\n")
        };
        fs::write(run.join("metrics.jsonl"), (1..=steps).map(line).collect::<String>()).unwrap();
    }
    let picture = folder.path().join("plot.png");
    let plot = |run: &Path| tenggat().arg("plot").arg(run).arg("--out").arg(&picture).output().unwrap();
    let output = plot(folder.path());
    assert!(output.status.success() && text(&output).contains("2 runs, 65 steps"), "{}", text(&output));
    assert_eq!(image::open(&picture).unwrap().width(), 1920);
    let output = plot(&folder.path().join("nowhere"));
    assert!(!output.status.success() && text(&output).contains("nowhere is not a run"), "{}", text(&output));
}
