//! Absurd numbers on the command line are refused by the flag's name, before anything is made of them.

mod common;

use common::{tenggat, text};

const SAMPLE: &[&str] = &["sample", "--model", "mini", "--prompt", "x"];
const SCORE: &[&str] = &["score", "--model", "mini", "--data", "nowhere"];
const TASK: &[&str] = &[
    "task",
    "--task-id",
    "t",
    "--model",
    "mini",
    "--model-type",
    "qwen-image",
    "--dataset-zip",
    "nowhere",
    "--expected-repo-name",
    "r",
    "--hours-to-complete",
    "1",
];
const BENCH: &[&str] = &["bench", "step", "--random-weights"];
const PLAN: &[&str] = &["plan", "nowhere.yaml"];
const EXPLAIN: &[&str] = &["plan", "explain", "--duration", "2h", "--s-per-step", "4.5"];

/// Whole numbers that no flag takes.
const WHOLE: [&str; 6] =
    ["-1", "4294967296000", "9223372036854775807", "18446744073709551615", "18446744073709551616", "1.5"];
/// Other numbers that no flag takes.
const OTHER: [&str; 5] = ["nan", "inf", "-inf", "1e300", "-1e9"];

fn refused(command: &[&str], flag: &str, value: &str) {
    let output = tenggat().args(command).arg(format!("{flag}={value}")).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{command:?} {flag} {value}: {said}");
    assert!(said.contains(flag) && said.contains(value), "{command:?} {flag} {value}: {said}");
}

#[test]
fn whole_numbers_have_ranges() {
    let flags: [(&[&str], &[&str]); 8] = [
        (&["doctor"], &["--threads"]),
        (&["demo"], &["--rank"]),
        (SAMPLE, &["--steps"]),
        (SCORE, &["--steps", "--seeds", "--noises", "--long-side"]),
        (TASK, &["--rank", "--long-side"]),
        (BENCH, &["--layers", "--rank", "--resolution", "--text-tokens", "--batch", "--warm-up", "--steps"]),
        (PLAN, &["--rank", "--steps", "--resolution"]),
        (EXPLAIN, &["--steps"]),
    ];
    for (command, flags) in flags {
        for flag in flags {
            WHOLE.iter().for_each(|value| refused(command, flag, value));
            if *flag != "--warm-up" {
                refused(command, flag, "0");
            }
        }
    }
}

#[test]
fn other_numbers_have_ranges() {
    let flags: [(&[&str], &[&str]); 5] = [
        (&["demo"], &["--lr"]),
        (SAMPLE, &["--strength", "--guidance"]),
        (SCORE, &["--guidance", "--denoise"]),
        (&TASK[..11], &["--hours-to-complete", "--lr"]),
        (PLAN, &["--price-per-hour"]),
    ];
    for (command, flags) in flags {
        for flag in flags {
            OTHER.iter().for_each(|value| refused(command, flag, value));
        }
    }
}

#[test]
fn a_negative_number_is_a_value_and_no_flag() {
    let output = tenggat().args(["demo", "--lr", "-1"]).output().unwrap();
    assert!(text(&output).contains("invalid value '-1' for '--lr"), "{}", text(&output));
}

#[test]
fn the_environment_starts_no_threads_without_end() {
    let output = tenggat().arg("doctor").env("RAYON_NUM_THREADS", "4294967296").output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("RAYON_NUM_THREADS=4294967296"), "{said}");
}

#[test]
fn a_step_that_no_machine_holds_is_not_tried() {
    let args = ["--model", "qwen-image", "--layers", "1000", "--batch", "1024", "--resolution", "8192"];
    let output = tenggat().args(BENCH).args(args).args(["--device", "cpu"]).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("this machine has") && said.contains("--layers"), "{said}");
}
