//! `--events jsonl` from outside: what another program reads of a run. The schema is in `docs/events.md`.

mod common;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::small_job::Job;
use common::tenggat;
use serde_json::Value;

/// The lines of standard output, each an object with what every line has.
fn events(output: &Output) -> Vec<Value> {
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let mut before_s = 0.0;
    for (n, line) in lines.iter().enumerate() {
        assert_eq!((&line["v"], &line["seq"]), (&1.into(), &n.into()), "{line}");
        let at_s = line["at_s"].as_f64().unwrap();
        assert!(at_s >= before_s, "{line}");
        before_s = at_s;
        let time: jiff::Timestamp = line["time"].as_str().unwrap().parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(time).as_secs() < 600, "{line}");
    }
    lines
}

/// Phases in the order in which they began; each has to end, after that and before the next begins.
fn phases(lines: &[Value]) -> Vec<&str> {
    let of_phases = lines.iter().filter(|line| line["event"].as_str().unwrap().starts_with("phase_"));
    let of_phases: Vec<&Value> = of_phases.collect();
    let pairs = of_phases.chunks(2).map(|pair| {
        let [began, ended] = pair else { panic!("{pair:?} does not end") };
        assert_eq!(began["event"], "phase_started", "{began}");
        assert_eq!(ended["event"], "phase_finished", "{ended}");
        assert_eq!(began["phase"], ended["phase"], "{began} {ended}");
        let lasted_s = ended["at_s"].as_f64().unwrap() - began["at_s"].as_f64().unwrap();
        let said_s = ended["seconds"].as_f64().unwrap();
        assert!((lasted_s - said_s).abs() < 5.0, "{said_s} s said, {lasted_s} s between the lines");
        began["phase"].as_str().unwrap()
    });
    pairs.collect()
}

fn named<'a>(lines: &'a [Value], name: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == name).collect()
}

fn held_out() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset/test");
    format!("      tenggat: {{held_out: '{}'}}", folder.display())
}

const SAMPLES: &str =
    "      sample: {sample_every: 1000, width: 64, height: 64, prompts: [fox], sample_steps: 2}\n";

#[test]
fn every_phase_of_a_run_is_told_in_lines_of_json() {
    let job = Job::new("steps: 4", &(SAMPLES.to_owned() + &held_out()));
    let output = job.command(&["--events", "jsonl"]).output().unwrap();
    let people = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{people}");
    let lines = events(&output);
    let all = [
        "load",
        "cache",
        "score_before",
        "first_sample",
        "train",
        "final_save",
        "final_sample",
        "score_after",
        "report",
    ];
    assert_eq!(phases(&lines), all, "{people}");
    let steps: Vec<u64> = named(&lines, "step").iter().map(|line| line["done"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    let trained: Vec<&Value> = named(&lines, "scored").iter().map(|line| &line["trained"]).collect();
    assert_eq!(trained, [&Value::Bool(false), &Value::Bool(true)]);
    assert_eq!(named(&lines, "data").len(), 1);
    let last = named(&lines, "saved").pop().unwrap();
    assert_eq!(last["path"], job.file("fox.safetensors").display().to_string());
    assert_eq!(last["steps"], 4);
    // What people read is still there, elsewhere.
    for text in ["final save", "final samples", "report", "error on 8 unseen images", "LoRA"] {
        assert!(people.contains(text), "{text}: {people}");
    }

    let again = job.command(&["--events", "jsonl"]).output().unwrap();
    let lines = events(&again);
    let names: Vec<&Value> = lines.iter().map(|line| &line["event"]).collect();
    assert_eq!(names, ["started", "done", "ended"], "{lines:?}");
    assert_eq!((&lines[1]["steps"], &lines[2]["outcome"]), (&4.into(), &"done".into()));
    // Both processes are in the log of the folder, with the same news.
    let log = std::fs::read_to_string(job.file("events.jsonl")).unwrap();
    let kept: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(named(&kept, "started").len(), 2);
    assert_eq!(phases(&kept), all);
    assert_eq!(named(&kept, "ended").len(), 2);
    assert!(!named(&kept, "step").is_empty() && !named(&kept, "memory").is_empty());
}

#[test]
fn phases_that_fail_or_are_interrupted_end_as_well() {
    let broken = Job::new("steps: 4", "");
    for name in ["fox.png", "bell.png", "drum.png"] {
        let path = broken.folder.path().join("set").join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }
    let output = broken.command(&["--events", "jsonl"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(phases(&events(&output)), ["load", "cache"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("error: "));

    let endless = Job::new("steps: 100000", "");
    let run = endless.start(&["--events", "jsonl"], 2);
    run.signal("-TERM");
    let output = run.end();
    assert!(output.status.success());
    // The loss curve takes a moment alone.
    assert_eq!(phases(&events(&output)), ["load", "cache", "train", "final_save", "report"]);
}

#[test]
fn a_run_that_fails_before_it_has_its_folder_tells_its_end() {
    let job = Job::new("steps: 4", "");
    let output = job.command(&["--events", "jsonl", "--device", "cuda:99"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines = events(&output);
    let names: Vec<&Value> = lines.iter().map(|line| &line["event"]).collect();
    assert_eq!(names, ["started", "ended"], "{lines:?}");
    assert_eq!(lines[1]["outcome"], "failed");
    assert!(!lines[1]["error"].as_str().unwrap().is_empty() && !job.file("events.jsonl").exists());
}

#[test]
fn the_demo_prints_events_alone_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = tenggat();
    demo.args(["demo", "--budget", "20s", "--events", "jsonl", "--out"]).arg(folder.path().join("demo"));
    let output = demo.output().unwrap();
    let people = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{people}");
    assert!(phases(&events(&output)).starts_with(&["load", "cache"]), "{people}");
    assert!(people.contains("of 20 s used"), "{people}");
}

#[test]
fn a_reader_that_is_gone_stops_nothing() {
    let job = Job::new("steps: 3", "");
    let mut child =
        job.command(&["--events", "jsonl"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(job.file("fox.safetensors").exists());
}
