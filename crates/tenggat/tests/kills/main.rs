//! Kills at chosen system calls of the real program: whatever it was about to do, the same command afterwards
//! ends with the bytes of a run that was left alone, and nothing that was saved is lost.
//!
//! `strace` delivers SIGKILL when a thread of the process enters its n-th call of a kind. Where it is
//! missing, or may not trace, the tests say that they did nothing, or fail if TENGGAT_REQUIRE_STRACE is set.
//!
//! The short tier kills at every rename and at a few of the other calls. The long one kills at every call,
//! and at random moments: `cargo test --release --test kills -- --ignored --nocapture`.
#![cfg(target_os = "linux")]
#![expect(clippy::print_stdout, reason = "the long tier tells what it tried")]

#[path = "../common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::small_job::{self, Job, text};

/// Calls that change what is on the disk, or make it last, under the names of all machines.
const CALLS: [&str; 14] = [
    "rename",
    "renameat",
    "renameat2",
    "fsync",
    "fdatasync",
    "write",
    "pwrite64",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
    "link",
    "linkat",
    "ftruncate",
];

/// Jobs that keep different things on the disk: plainly; validation and its best LoRA; the best LoRA alone
/// delivered.
fn shapes() -> [(&'static str, Job); 3] {
    let held = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/mini/demo-dataset/test");
    let steps = "steps: 5";
    let validated = Job::new(steps, "");
    let set = validated.folder.path().join("set/bell.png");
    validated.rewrite(
        steps,
        &format!(
            "steps: 5, validation_config: {{validate_every_n_steps: 2, resolution: 64,
            validation_items: [{{image_path: '{}'}}]}}",
            set.display()
        ),
    );
    validated.rewrite("      model:", "      tenggat: {keep_best: true}\n      model:");
    let best = Job::new(steps, "");
    let tenggat = format!("      tenggat: {{deliver: best, held_out: '{held}'}}\n      model:");
    best.rewrite("      model:", &tenggat);
    [("plain", Job::new(steps, "")), ("validated", validated), ("best", best)]
}

/// Removes what runs have left.
fn clear(job: &Job) {
    let _ = fs::remove_dir_all(job.file(""));
}

/// `strace` before the program.
fn traced(job: &Job, arguments: &[String]) -> Command {
    let own = job.command(&[]);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(arguments).arg(own.get_program()).args(own.get_args());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The most calls of each kind by one thread; a count for a thread is what strace injects by. `None` without
/// strace.
fn count(job: &Job) -> Option<BTreeMap<&'static str, u32>> {
    clear(job);
    let log = job.folder.path().join("trace");
    // A question mark: the machine may have no call of that name.
    let what = format!("trace={}", CALLS.map(|call| format!("?{call}")).join(","));
    let traced = traced(job, &["-o".into(), log.display().to_string(), "-e".into(), what]).status();
    if !traced.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("TENGGAT_REQUIRE_STRACE").is_none(), "strace is missing or may not trace");
        small_job::not_tested("strace is missing or may not trace");
        return None;
    }
    let mut calls: BTreeMap<(String, &'static str), u32> = BTreeMap::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let name = rest.trim_start().split('(').next().unwrap_or_default();
        if let Some(call) = CALLS.iter().find(|call| **call == name) {
            *calls.entry((thread.to_owned(), call)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), times) in calls {
        most.entry(call).and_modify(|most: &mut u32| *most = times.max(*most)).or_insert(times);
    }
    Some(most)
}

/// What a run that was left alone ended with.
struct Left {
    lora: Vec<u8>,
    best: Option<Vec<u8>>,
    log: Vec<[String; 4]>,
    names: Vec<String>,
}

fn left(job: &Job) -> Left {
    let best = fs::read(job.file("fox_best.safetensors")).ok();
    // A state before the newest may or may not be there, by where the kill was; a run whose LoRA is delivered
    // is finished, and its curve is not drawn again; where the best is delivered, the last one may stay
    // beside it.
    let varies = ["resume.state.previous", "loss.png", "fox_000000005.safetensors"];
    let names = job.names().into_iter().filter(|name| !varies.contains(&name.as_str())).collect();
    Left { lora: job.lora(), best, log: job.log(), names }
}

/// Kills a run at the n-th call of a kind and lets the same command finish it. Returns whether there was such
/// a call.
fn kill_at(job: &Job, call: &str, nth: u32, alone: &Left, what: &str) -> bool {
    clear(job);
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    let mut strace = traced(job, &["-o".into(), "/dev/null".into(), "-e".into(), inject]);
    let killed = !strace.status().unwrap().success();
    finish(job, alone, &format!("{what}, killed at {call} {nth}"));
    killed
}

fn finish(job: &Job, alone: &Left, what: &str) {
    let output = job.command(&[]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{what}: {said}");
    let now = left(job);
    assert!(alone.lora == now.lora, "{what}: the LoRA differs: {said}");
    assert!(alone.best == now.best, "{what}: the best LoRA differs: {said}");
    assert_eq!(alone.log, now.log, "{what}: {said}");
    let mut names = alone.names.clone();
    if what.starts_with("best") && now.names.contains(&"fox_000000004.safetensors".to_owned()) {
        // The last LoRA is a numbered save until it has been measured. A run that is killed before that and
        // resumed counts it among the two to keep, and removes the first of three.
        names.retain(|name| now.names.contains(name) || name != "fox_000000002.safetensors");
    }
    assert_eq!(names, now.names, "{what}: {said}");
    assert!(!job.folder.path().join("fox.old-1").exists(), "{what}: {said}");
}

/// Kills at the calls that `chosen` picks from (kind, number, how many there are); returns how many kills
/// there were.
fn sweep(shapes: &[(&str, Job)], chosen: impl Fn(&str, u32, u32) -> bool) -> Option<u32> {
    let mut kills = 0;
    for (what, job) in shapes {
        let counts = count(job)?;
        let alone = left(job);
        println!("{what}: {counts:?}");
        for (call, most) in counts {
            for nth in (1..=most).filter(|&nth| chosen(call, nth, most)) {
                kills += u32::from(kill_at(job, call, nth, &alone, what));
            }
        }
    }
    println!("{kills} kills at chosen calls, nothing lost");
    Some(kills)
}

#[test]
fn a_kill_at_a_rename_or_a_flush_leaves_no_trace() {
    let shapes = shapes();
    // Every rename of the plain job: each is the instant at which a file changes.
    let renames = sweep(&shapes[..1], |call, nth, most| match call {
        "rename" | "renameat" | "renameat2" => true,
        "fsync" => nth % 5 == 3,
        "write" => nth == most - 3,
        _ => nth == most,
    });
    assert!(renames.is_none_or(|kills| kills >= 10), "{renames:?}");
}

/// What a traced call names: its quoted texts, and the file of its first descriptor.
fn names(call: &str) -> (Vec<&str>, &str) {
    let quoted = call.split('"').skip(1).step_by(2).collect();
    let file = call.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(file, _)| file);
    (quoted, file)
}

/// A power cut takes what was not flushed: a file is flushed before it gets its name, and the folder that
/// holds the name before the next file is.
#[test]
fn a_file_is_flushed_before_it_is_named_and_its_folder_after() {
    let job = Job::new("steps: 5", "");
    let log = job.folder.path().join("trace");
    let calls = "trace=?rename,?renameat,?renameat2,?link,?linkat,fsync,fdatasync";
    let arguments = ["-y", "-o", &log.display().to_string(), "-e", calls].map(str::to_owned);
    if !traced(&job, &arguments).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("TENGGAT_REQUIRE_STRACE").is_none(), "strace is missing or may not trace");
        small_job::not_tested("strace is missing or may not trace");
        return;
    }
    let run = job.folder.path().join("fox").display().to_string();
    let (mut flushed, mut to_flush, mut renames) = (BTreeSet::new(), BTreeSet::new(), 0);
    let text = fs::read_to_string(&log).unwrap();
    for line in text.lines().filter(|line| line.contains(&run) && !line.contains(" = -1 ")) {
        let call = line.split_whitespace().nth(1).unwrap_or_default();
        match (call.split('(').next().unwrap_or_default(), names(line)) {
            ("fsync" | "fdatasync", (_, folder)) if to_flush.remove(folder) => {}
            ("fsync" | "fdatasync", (_, file)) => {
                assert!(to_flush.is_empty(), "names in {to_flush:?} may be lost at: {line}");
                flushed.insert(file.to_owned());
            }
            ("link" | "linkat", (paths, _)) => {
                assert!(flushed.contains(paths[0]), "not flushed before: {line}");
                flushed.insert(paths[1].to_owned());
            }
            ("rename" | "renameat" | "renameat2", (paths, _)) => {
                assert!(flushed.remove(paths[0]), "not flushed before: {line}");
                flushed.insert(paths[1].to_owned());
                to_flush.insert(Path::new(paths[1]).parent().unwrap().display().to_string());
                renames += 1;
            }
            _ => {}
        }
    }
    assert!(to_flush.is_empty(), "names in {to_flush:?} may be lost at the end");
    let named = ["fox.safetensors", "last.safetensors", "fox_000000004.safetensors", "resume.state"];
    for name in named {
        assert!(flushed.contains(&job.file(name).display().to_string()), "{name}");
    }
    assert!(renames >= 8, "{renames}");
}

#[test]
#[ignore = "long; `cargo test --release --test kills -- --ignored --nocapture`"]
fn kills_at_every_call_leave_no_trace() {
    let kills = sweep(&shapes(), |_, _, _| true);
    assert!(kills.is_none_or(|kills| kills >= 300), "{kills:?}");
}

/// Several kills of one run at random moments, until it ends by itself; then the next.
#[test]
#[ignore = "long; `cargo test --release --test kills -- --ignored --nocapture`"]
fn kills_at_random_moments_leave_no_trace() {
    let mut state = u64::from(std::process::id()) | 1;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let (alone, job) = (Job::new("steps: 30", ""), Job::new("steps: 30", ""));
    alone.run(&[]);
    let alone = left(&alone);
    let mut kills = 0;
    while kills < 500 {
        clear(&job);
        for _ in 0..8 {
            let mut child = job.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(20 + below(900)));
            let ended = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            child.wait().unwrap();
            kills += u32::from(!ended);
            if ended {
                break;
            }
        }
        finish(&job, &alone, &format!("after {kills} kills"));
    }
    println!("{kills} kills at random moments, nothing lost");
}
