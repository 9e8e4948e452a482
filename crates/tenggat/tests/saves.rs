//! Which of the saves in a folder a run goes on from, and that none is replaced that may not be: from
//! outside.
#![cfg(unix)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::small_job::Job;
use safetensors::SafeTensors;

/// Rewrites the metadata of a LoRA, as if another program had written it after so many steps.
fn as_if_written_by(path: &Path, software: &str, step: u64) {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let metadata = HashMap::from([
        ("training_info".to_owned(), format!("{{\"step\": {step}, \"epoch\": 1}}")),
        ("software".to_owned(), format!("{{\"name\": \"{software}\", \"version\": \"1\"}}")),
    ]);
    let rewritten = safetensors::serialize(tensors.tensors(), Some(metadata)).unwrap();
    fs::write(path, rewritten).unwrap();
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = if at < bytes.len() { at } else { bytes.len() / 2 };
    bytes[at] ^= 4;
    // Not in place: a process may have mapped it.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// ai-toolkit's finished run: numbered files, the finished one, its optimiser.
fn of_another_program(job: &Job, finished_at: u64) {
    job.run(&[]);
    for name in ["resume.state", "resume.state.previous", "last.safetensors", "metrics.jsonl", "run.lock"] {
        fs::remove_file(job.file(name)).unwrap();
    }
    for name in job.names().iter().filter(|name| name.starts_with("fox_")) {
        let digits = name.trim_start_matches("fox_").trim_end_matches(".safetensors");
        let number: u64 = digits.parse().unwrap();
        as_if_written_by(&job.file(name), "ai-toolkit", number);
    }
    as_if_written_by(&job.file("fox.safetensors"), "ai-toolkit", finished_at);
    fs::write(job.file("optimizer.pt"), "PK").unwrap();
}

#[test]
fn a_finished_run_of_another_program_is_left_as_it_is() {
    let job = Job::new("steps: 6", "");
    of_another_program(&job, 6);
    let (before, names) = (job.lora(), job.names());
    let said = job.run(&[]);
    assert!(said.contains("this job is finished, 6 steps"), "{said}");
    assert!(before == job.lora());
    let now: Vec<_> = job.names().into_iter().filter(|name| name != "run.lock").collect();
    assert_eq!(now, names);
}

#[test]
fn another_programs_lora_is_gone_on_with_and_kept() {
    let job = Job::new("steps: 6", "");
    of_another_program(&job, 6);
    let before = job.lora();
    job.rewrite("steps: 6", "steps: 8");
    let said = job.run(&[]);
    assert!(said.contains("after 6 steps") && said.contains("optimizer.pt is ai-toolkit's"), "{said}");
    assert_eq!(job.log()[0][0], "7");
    assert!(before != job.lora());
    assert_eq!(fs::read(job.file("fox.old-1.safetensors")).unwrap(), before);
    // What it numbered is not ours to rotate away.
    assert!(job.names().iter().filter(|name| name.starts_with("fox_")).count() > 2, "{:?}", job.names());
}

#[test]
fn another_program_that_went_on_is_not_undone() {
    let job = Job::new("steps: 6", "");
    job.run(&[]);
    as_if_written_by(&job.file("fox.safetensors"), "ai-toolkit", 9);
    let before = job.lora();
    job.rewrite("steps: 6", "steps: 9");
    let said = job.run(&[]);
    assert!(
        said.contains("this job is finished, 9 steps") && said.contains("ahead of the checkpoint"),
        "{said}"
    );
    assert!(before == job.lora());
    job.rewrite("steps: 9", "steps: 11");
    let said = job.run(&[]);
    assert!(said.contains("after 9 steps"), "{said}");
    assert_eq!(fs::read(job.file("fox.old-1.safetensors")).unwrap(), before);
    // Behind our state, it is replaced by nobody either.
    as_if_written_by(&job.file("fox.safetensors"), "ai-toolkit", 4);
    let behind = job.lora();
    job.rewrite("steps: 11", "steps: 12");
    job.run(&[]);
    assert_eq!(fs::read(job.file("fox.old-2.safetensors")).unwrap(), behind);
}

#[test]
fn a_finished_run_whose_state_is_spoilt_stays_finished() {
    for spoilt in [&["resume.state"][..], &["resume.state", "resume.state.previous"]] {
        let job = Job::new("steps: 5", "");
        job.run(&[]);
        let before = job.lora();
        spoilt.iter().for_each(|name| flip(&job.file(name), usize::MAX));
        let said = job.run(&[]);
        assert!(said.contains("does not match its hash") || said.contains("do not match its hash"), "{said}");
        assert!(said.contains("this job is finished, 5 steps"), "{said}");
        assert!(before == job.lora() && before == fs::read(job.file("last.safetensors")).unwrap());
    }
}

#[test]
fn a_spoilt_state_is_replaced_by_the_one_before() {
    let (alone, job) = (Job::new("steps: 11", ""), Job::new("steps: 11", ""));
    alone.run(&[]);
    assert!(job.cut_off("-KILL", 7, Duration::ZERO));
    flip(&job.file("resume.state"), usize::MAX);
    let said = job.run(&[]);
    assert!(
        said.contains("cannot resume from")
            && said.contains("resume.state: ")
            && said.contains("the previous checkpoint"),
        "{said}"
    );
    assert!(alone.lora() == job.lora() && alone.log() == job.log());
}

#[test]
fn what_a_finished_run_lacks_is_delivered() {
    let job = Job::new("steps: 6", "");
    job.run(&[]);
    let before = job.lora();
    for names in [&["last.safetensors"][..], &["fox.safetensors"], &["last.safetensors", "fox.safetensors"]] {
        names.iter().for_each(|name| fs::remove_file(job.file(name)).unwrap());
        let said = job.run(&[]);
        assert!(before == job.lora() && before == fs::read(job.file("last.safetensors")).unwrap(), "{said}");
    }
}

#[test]
fn metrics_that_are_spoilt_do_not_keep_a_run_from_going_on() {
    let (alone, job) = (Job::new("steps: 8", ""), Job::new("steps: 8", ""));
    alone.run(&[]);
    assert!(job.cut_off("-KILL", 5, Duration::ZERO));
    let mut bytes = fs::read(job.file("metrics.jsonl")).unwrap();
    bytes[10] = 0xff;
    fs::write(job.file("metrics.jsonl"), bytes).unwrap();
    let said = job.run(&[]);
    assert!(said.contains("resuming") && said.contains("dropped a line that is not a step"), "{said}");
    assert!(alone.lora() == job.lora());
    assert_eq!(alone.log()[1..], job.log()[..]);
}

#[test]
fn a_lora_that_changes_nothing_is_no_result() {
    let held = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset/test");
    let tenggat = format!(
        "      tenggat: {{deliver: best, resume: false, held_out: '{}'}}\n      model:",
        held.display()
    );
    let job = Job::new("steps: 4", "");
    job.rewrite("      model:", &tenggat);
    for _ in 0..3 {
        let mut child = job.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while !job.file("last.safetensors").exists() {
            assert!(began.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    job.run(&[]);
    assert!(!job.folder.path().join("fox.old-1").exists());
}

/// Time that a killed run was alive counts, also before its first save.
#[test]
fn a_budget_is_spent_by_runs_that_are_killed_before_they_save() {
    let job = Job::new("weight_decay: 0", "");
    job.rewrite(", weight_decay: 0", "");
    // None is numbered, so that no save comes before the kill.
    job.rewrite("save_every: 2", "save_every: 100000");
    let mut alive_s = 0.0;
    for _ in 0..4 {
        let began = Instant::now();
        let mut child = job.command(&["--budget", "10s"]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        child.kill().unwrap();
        child.wait().unwrap();
        alive_s += began.elapsed().as_secs_f64();
        // Should it have saved all the same: as if it had not.
        for name in
            job.names().iter().filter(|name| name.contains("resume.") || name.ends_with(".safetensors"))
        {
            fs::remove_file(job.file(name)).unwrap();
        }
    }
    let began = Instant::now();
    let said = job.run(&["--budget", "10s"]);
    alive_s += began.elapsed().as_secs_f64();
    // A note is at most a fifth of a second old, and a process takes some time until it can write one.
    assert!((7.0..11.5).contains(&alive_s), "{alive_s} s: {said}");
    assert!(said.contains("spent"), "{said}");
    // A changed job has a budget of its own, and so has one that begins anew.
    job.rewrite("lr: 1e-3", "lr: 2e-3");
    let began = Instant::now();
    job.run(&["--budget", "4s"]);
    assert!(began.elapsed().as_secs_f64() > 2.0);
}
