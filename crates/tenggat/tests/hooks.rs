//! Money and hooks of `train`, `task` and `drive` from outside.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use common::small_job::Job;
use common::{demo_pictures, job, tenggat, text};
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;

/// Takes messages as long as the test lives; gives their bodies, each checked against its signature.
fn receiver() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (sender, messages) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut length, mut signed, mut line) = (0, String::new(), String::new());
            while reader.read_line(&mut line).unwrap() > 2 {
                let (name, value) = line.split_once(':').unwrap_or((&line, ""));
                match name.to_lowercase().as_str() {
                    "content-length" => length = value.trim().parse().unwrap(),
                    "x-tenggat-signature" => signed = value.trim().to_owned(),
                    _ => {}
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            reader.get_mut().write_all(answer).unwrap();
            let mut mac = Hmac::<Sha256>::new_from_slice(b"key").unwrap();
            mac.update(&body);
            let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(signed, format!("sha256={hex}"));
            let _ = sender.send(serde_json::from_slice(&body).unwrap());
        }
    });
    (url, messages)
}

/// The events told so far, but for slowdowns: the machine may have other things to do.
fn events(messages: &Receiver<Value>) -> Vec<String> {
    let mut events = Vec::new();
    while let Ok(message) = messages.recv_timeout(Duration::from_millis(300)) {
        events.push(message["event"].as_str().unwrap().to_owned());
    }
    events.retain(|event| event != "slowed");
    events
}

fn with_hooks<'a>(command: &'a mut Command, folder: &Path, url: &str) -> &'a mut Command {
    let then =
        format!("echo $TENGGAT_STATUS $TENGGAT_RUN $TENGGAT_STEPS $TENGGAT_LORA > {}/then", folder.display());
    command.args(["--webhook", url, "--then", &then]).env("TENGGAT_WEBHOOK_SECRET", "key")
}

#[test]
fn train_tells_how_it_goes_and_runs_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let (url, messages) = receiver();
    let path = job(folder.path(), "steps: 6");
    let output = with_hooks(tenggat().arg("train").arg(&path), folder.path(), &url).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(events(&messages), ["started", "saved", "done"]);
    let then = std::fs::read_to_string(folder.path().join("then")).unwrap();
    let lora = folder.path().join("fox/fox.safetensors");
    assert_eq!(then, format!("done fox 6 {}\n", lora.display()));
}

#[test]
fn a_run_that_fails_tells_that_too() {
    let folder = tempfile::tempdir().unwrap();
    let (url, messages) = receiver();
    let path = job(folder.path(), "steps: 6");
    let broken = std::fs::read_to_string(&path).unwrap().replace("name_or_path: mini", "name_or_path: /none");
    std::fs::write(&path, broken).unwrap();
    let output = with_hooks(tenggat().arg("train").arg(&path), folder.path(), &url).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(events(&messages), ["started", "failed"]);
    assert_eq!(std::fs::read_to_string(folder.path().join("then")).unwrap(), "failed fox\n");
}

#[test]
fn an_interrupted_run_runs_the_command() {
    let job = Job::new("steps: 100000", "");
    let marker = job.folder.path().join("then");
    let then = format!("echo $TENGGAT_STATUS > {}", marker.display());
    let running = job.start(&["--then", &then], 3);
    running.signal("-TERM");
    running.succeeds();
    assert_eq!(std::fs::read_to_string(marker).unwrap(), "done\n");
}

/// A pod whose job has a mistake costs as much as any other.
#[test]
fn the_command_is_run_if_nothing_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none.yaml");
    let said = |command: &mut Command| {
        let then = folder.path().join("then");
        let _ = std::fs::remove_file(&then);
        let echo = format!("echo $TENGGAT_STATUS $TENGGAT_RUN > {}", then.display());
        let output = command.args(["--then", &echo]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        std::fs::read_to_string(then).unwrap()
    };
    assert_eq!(said(tenggat().arg("train").arg(&none)), "failed none\n");
    assert_eq!(said(tenggat().args(["drive", "--name", "fox", "--budget", "9s"]).arg(&none)), "failed fox\n");
    let mut task = tenggat();
    task.args(["task", "--task-id", "t1", "--model", "mini", "--model-type", "qwen-image"]);
    task.args(["--expected-repo-name", "repo", "--hours-to-complete", "1", "--dataset-zip", "none.zip"]);
    assert_eq!(said(task.arg("--cache-root").arg(folder.path())), "failed repo\n");
}

#[test]
fn the_command_writes_into_no_events_and_learns_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 2");
    let output = tenggat()
        .args(["train", "--events", "jsonl", "--then", "echo key:[$TENGGAT_WEBHOOK_SECRET]"])
        .arg(&path)
        .env("TENGGAT_WEBHOOK_SECRET", "hidden")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{lines}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("key:[]\n"), "{}", text(&output));
}

#[test]
fn a_trainer_learns_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let saves = format!("{}/*.safetensors", folder.path().join("out").display());
    let seen = folder.path().join("seen");
    let command = format!("echo key:[$TENGGAT_WEBHOOK_SECRET] > {}", seen.display());
    // It leaves no LoRA, which is an error.
    tenggat()
        .args(["drive", "--budget", "60s", "--saves", &saves, "--", "sh", "-c", &command])
        .env("TENGGAT_WEBHOOK_SECRET", "hidden")
        .output()
        .unwrap();
    assert_eq!(std::fs::read_to_string(seen).unwrap(), "key:[]\n");
}

#[test]
fn money_ends_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 1000000");
    let began = Instant::now();
    // 10 s.
    let output = tenggat()
        .args(["train", "--max-cost", "0.01", "--price-per-hour", "3.6"])
        .arg(&path)
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("the money lasts for 10"), "{said}");
    assert!(began.elapsed().as_secs_f64() < 60.0 && folder.path().join("fox/last.safetensors").is_file());
    let cost = said.lines().find(|line| line.starts_with("cost ")).unwrap();
    assert!(cost.ends_with("0.01"), "{cost}");
    let output = tenggat().args(["train", "--max-cost", "0.01"]).arg(&path).output().unwrap();
    assert!(text(&output).contains("--price-per-hour"), "{}", text(&output));
}

#[test]
fn task_tells_and_keeps_its_exit_code() {
    let root = tempfile::tempdir().unwrap();
    let archive = root.path().join("t1.zip");
    let mut zip = zip::write::ZipWriter::new(std::fs::File::create(&archive).unwrap());
    for name in ["fox.png", "fox.txt"] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&std::fs::read(demo_pictures("train").join(name)).unwrap()).unwrap();
    }
    zip.finish().unwrap();
    let (url, messages) = receiver();
    let mut command = tenggat();
    command.args(["task", "--task-id", "t1", "--model", "mini", "--model-type", "qwen-image"]);
    command.args(["--expected-repo-name", "repo", "--hours-to-complete", "0.005", "--dataset-zip"]);
    command.arg(&archive).arg("--checkpoints-root").arg(root.path().join("out"));
    command.arg("--work-root").arg(root.path().join("work"));
    let output = with_hooks(&mut command, root.path(), &url).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let events = events(&messages);
    assert_eq!((events.first().unwrap().as_str(), events.last().unwrap().as_str()), ("started", "done"));
    let then = std::fs::read_to_string(root.path().join("then")).unwrap();
    assert!(then.starts_with("done repo ") && then.contains("/out/t1/repo/last.safetensors"), "{then}");
}
