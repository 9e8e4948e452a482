//! One run per folder, from outside: whoever comes second touches nothing.
#![cfg(unix)]

mod common;

use std::fs;

use common::small_job::{self, Job, text};

/// What a second start is given: the same command, another job, the wish to begin anew.
fn second_starts() -> [(&'static str, Vec<&'static str>); 3] {
    [("the same", vec![]), ("start over", vec!["--start-over"]), ("with a budget", vec!["--budget", "1h"])]
}

#[test]
fn a_second_start_says_who_runs_and_touches_nothing() {
    let (alone, job) = (Job::new("steps: 200", ""), Job::new("steps: 200", ""));
    alone.run(&[]);
    let first = job.start(&["--budget", "1h"], 2);
    // An unfinished file is not the second one's to remove.
    fs::write(job.file(".tenggat-unfinished-x"), "half").unwrap();
    let process = format!("process {}", first.id());
    for (what, more) in second_starts() {
        let said = job.fails(&more);
        assert!(said.contains("a run is under way") && said.contains(&process), "{what}: {said}");
        assert!(said.contains("since ") && said.contains("deadline "), "{what}: {said}");
    }
    job.rewrite("lr: 1e-3", "lr: 2e-3");
    let said = job.fails(&[]);
    assert!(said.contains(&process), "a changed job: {said}");
    job.rewrite("lr: 2e-3", "lr: 1e-3");
    assert!(job.file(".tenggat-unfinished-x").exists());
    drop(first);
    // The process was killed: the lock went with it, and nothing of the run is lost.
    let said = job.run(&[]);
    assert!(said.contains("resuming") && alone.lora() == job.lora() && alone.log() == job.log(), "{said}");
    assert!(!job.folder.path().join("fox.old-1").exists());
}

/// Commands that fail before they take the folder.
const FAILING: [&[&str]; 2] =
    [&["--device", "cuda:99"], &["--name", "fox", "--device", "cuda:99", "--start-over"]];

#[test]
fn a_start_that_fails_leaves_the_log_of_the_run_alone() {
    let job = Job::new("steps: 1000000", "");
    let first = job.start(&["--budget", "1h"], 2);
    let process = first.id();
    let lines = || {
        let text = fs::read_to_string(job.file("events.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &serde_json::Value| line["event"] == "started" || line["event"] == "ended")
            .collect()
    };
    let check = |what: &str| {
        let lines: Vec<serde_json::Value> = lines();
        assert_eq!(lines.len(), 1, "{what}: {lines:?}");
        assert_eq!(lines[0]["process"], process, "{what}");
    };
    for more in FAILING {
        job.fails(more);
        check(&more.join(" "));
    }
    job.rewrite("name_or_path: mini", "name_or_path: /no/such/model");
    job.fails(&[]);
    check("a model that is not there");
    drop(first);
}

#[test]
fn a_finished_run_stays_finished_after_a_start_that_fails() {
    let job = Job::new("steps: 2", "");
    job.run(&[]);
    let before = fs::read(job.file("events.jsonl")).unwrap();
    for more in FAILING {
        job.fails(more);
    }
    assert_eq!(fs::read(job.file("events.jsonl")).unwrap(), before);
    let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_tenggat"));
    let said = text(&status.arg("status").arg(job.folder.path()).output().unwrap());
    assert!(said.contains("finished") && !said.contains("failed"), "{said}");
}

/// Two at once, again and again: one trains as if it were alone, the other exits with 1.
fn pairs(count: usize) {
    let alone = Job::new("steps: 8", "");
    alone.run(&[]);
    for pair in 0..count {
        let job = Job::new("steps: 8", "");
        let other = job.folder.path().join("other.yaml");
        let file = fs::read_to_string(job.folder.path().join("job.yaml")).unwrap();
        fs::write(&other, if pair % 4 == 3 { file.replace("steps: 8", "steps: 9") } else { file }).unwrap();
        let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_tenggat"));
        second.args(["train", "--threads", "1"]).arg(&other);
        if pair % 4 == 2 {
            second.arg("--start-over");
        }
        if pair % 2 == 1 {
            // The first is some steps ahead.
            let first = job.start(&[], 1 + pair as u64 % 3);
            let output = second.output().unwrap();
            assert_eq!(output.status.code(), Some(1), "pair {pair}: {}", text(&output));
            first.succeeds();
        } else {
            let first = job.start(&[], 0);
            let output = second.output().unwrap();
            let (first, second) = (first.end(), output);
            let ends = [&first, &second].map(|output| output.status.code());
            let told = format!("pair {pair}: {ends:?}\n{}\n{}", text(&first), text(&second));
            // Either was the first; a start after the other's end says that all is done, or moves it aside
            // whole.
            assert!(ends.contains(&Some(0)) && ends.iter().all(|code| matches!(code, Some(0 | 1))), "{told}");
            let locked = [&first, &second].iter().filter(|o| text(o).contains("a run is under way")).count();
            assert_eq!(locked, ends.iter().filter(|code| **code == Some(1)).count(), "{told}");
        }
        assert!(alone.lora() == job.lora(), "pair {pair}");
        assert_eq!(alone.log(), job.log(), "pair {pair}");
    }
}

#[test]
fn of_two_starts_one_trains() {
    pairs(4);
}

#[test]
#[ignore = "long; `cargo test --release --test one_run -- --ignored`"]
fn of_forty_pairs_of_starts_the_first_is_unharmed() {
    pairs(40);
}

#[test]
fn the_files_follow_a_folder_that_is_renamed() {
    let (alone, job) = (Job::new("steps: 120", ""), Job::new("steps: 120", ""));
    alone.run(&[]);
    let first = job.start(&[], 3);
    let other = job.folder.path().join("other");
    fs::rename(job.file(""), &other).unwrap();
    let said = first.succeeds();
    assert!(said.contains("was renamed") && said.contains("other/fox.safetensors"), "{said}");
    assert!(!job.file("").exists());
    assert_eq!(fs::read(other.join("fox.safetensors")).unwrap(), alone.lora());
    assert_eq!(small_job::names(&other), alone.names());
    fs::rename(&other, job.file("")).unwrap();
    assert_eq!(alone.log(), job.log());
}

#[test]
fn the_files_of_a_folder_that_is_removed_are_written_again() {
    let (alone, job) = (Job::new("steps: 120", ""), Job::new("steps: 120", ""));
    alone.run(&[]);
    let first = job.start(&[], 3);
    fs::remove_dir_all(job.file("")).unwrap();
    let said = first.succeeds();
    assert!(said.contains("was removed while the run was under way"), "{said}");
    assert!(alone.lora() == job.lora());
    assert_eq!(alone.log(), job.log());
    assert_eq!(alone.names(), job.names());
}
