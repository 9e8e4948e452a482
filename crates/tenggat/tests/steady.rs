//! Long runs: memory and open files stay what they were, and a machine that sleeps misses no deadline by more
//! than the time it slept.
//!
//! `cargo test --release -p tenggat --test steady -- --ignored` takes three thousand steps.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "tests say what they found")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::small_job::Job;
use safetensors::SafeTensors;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    step: u64,
    resident_kb: u64,
    files: usize,
    threads: u64,
}

fn held(process: u32, step: u64) -> Option<Held> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let number = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?.count();
    Some(Held { step, resident_kb: number("VmRSS:")?, files, threads: number("Threads:")? })
}

/// Trains so many steps, with everything that comes again and again: saves, samples, an average, a log.
fn stays_flat(steps: u64) {
    let sample =
        "      sample: {sample_every: 50, width: 64, height: 64, prompts: [fox, bell], sample_steps: 2}\n";
    let job = Job::new(&format!("steps: {steps}, skip_first_sample: true"), sample);
    job.rewrite("save_every: 2, max_step_saves_to_keep: 2", "save_every: 20, max_step_saves_to_keep: 3");
    let running = job.start(&[], 1);
    let mut seen = Vec::new();
    let warm = steps / 4;
    let mut next = warm;
    loop {
        let step = job.steps();
        if step >= steps {
            break;
        }
        match held(running.id(), step) {
            Some(held) if step >= next => {
                next = step + steps / 30;
                seen.push(held);
            }
            Some(_) => {}
            None => break,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    running.succeeds();
    println!("{seen:#?}");
    assert!(seen.len() > 5, "{seen:?}");
    let (first, rest) = seen.split_at(seen.len() / 3);
    let most = |part: &[Held], of: fn(&Held) -> u64| part.iter().map(of).max().unwrap();
    let grown_kb = most(rest, |h| h.resident_kb).saturating_sub(most(first, |h| h.resident_kb));
    // Pages of the allocator come and go; a leak of a LoRA's size at each save would be ten times as much.
    assert!(grown_kb < 6 * 1024, "{grown_kb} KB more: {seen:?}");
    assert!(most(rest, |h| h.files as u64) <= most(first, |h| h.files as u64) + 2, "{seen:?}");
    assert!(most(rest, |h| h.threads) <= most(first, |h| h.threads) + 1, "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].step < pair[1].step));
}

#[test]
fn three_hundred_steps_keep_memory_and_files_flat() {
    stays_flat(300);
}

#[test]
#[ignore = "takes minutes"]
fn three_thousand_steps_keep_memory_and_files_flat() {
    stays_flat(3000);
}

#[test]
fn a_run_that_sleeps_past_its_deadline_ends_at_once_with_a_whole_lora() {
    let job = Job::new("steps: 1000000", "");
    let began = Instant::now();
    let running = job.start(&["--budget", "40s"], 3);
    running.signal("-STOP");
    let before = job.steps();
    std::thread::sleep(Duration::from_secs_f64((41.0 - began.elapsed().as_secs_f64()).max(0.0)));
    let woken = Instant::now();
    running.signal("-CONT");
    let said = running.succeeds();
    assert!(woken.elapsed().as_secs_f64() < 10.0, "{:?}: {said}", woken.elapsed());
    let bytes = fs::read(job.file("last.safetensors")).unwrap();
    SafeTensors::deserialize(&bytes).unwrap();
    // The step that was under way may have been taken, and no more.
    assert!((before..=before + 2).contains(&job.steps()), "{before} {}: {said}", job.steps());
}

#[test]
fn a_run_that_sleeps_for_a_while_ends_when_it_would_have() {
    let job = Job::new("steps: 1000000", "");
    let began = Instant::now();
    let running = job.start(&["--budget", "40s"], 3);
    running.signal("-STOP");
    std::thread::sleep(Duration::from_secs(6));
    running.signal("-CONT");
    let said = running.succeeds();
    let took_s = began.elapsed().as_secs_f64();
    // Nor much sooner, as a run would that takes its sleep for a step.
    assert!((34.0..43.0).contains(&took_s), "{took_s} s: {said}");
}
