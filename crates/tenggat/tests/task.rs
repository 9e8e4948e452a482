//! The timed contest from outside: an archive in, a kill at the limit, the file picked by the contest's rule, its score.
//!
//! `cargo test --release -p tenggat --test task -- --ignored` plays the longer ones: limits of 60 and 180 s, 100 kills.
#![cfg(unix)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use tenggat_train::contest::container::picked;
use zip::write::{SimpleFileOptions, ZipWriter};

fn demo_dataset() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset")
}

/// The roots of a container.
struct Container {
    root: tempfile::TempDir,
}

impl Container {
    /// With the demo's pictures as the task's archive.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let datasets = root.path().join("cache/datasets");
        fs::create_dir_all(&datasets).unwrap();
        let mut archive = ZipWriter::new(File::create(datasets.join("t1_tourn.zip")).unwrap());
        for entry in fs::read_dir(demo_dataset().join("train")).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("train_data/{}", path.file_name().unwrap().to_str().unwrap());
            archive.start_file(name, SimpleFileOptions::default()).unwrap();
            archive.write_all(&fs::read(path).unwrap()).unwrap();
        }
        archive.finish().unwrap();
        Container { root }
    }

    fn command(&self, cache: &Path, hours: f64) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenggat"));
        command
            .args(["task", "--task-id", "t1", "--model", "mini", "--model-type", "qwen-image"])
            .args(["--dataset-zip", "https://example.org/t1.zip", "--expected-repo-name", "repo"])
            .args(["--hours-to-complete", &hours.to_string()]);
        command.arg("--cache-root").arg(cache);
        for root in ["checkpoints", "work"] {
            command.arg(format!("--{root}-root")).arg(self.root.path().join(root));
        }
        command
    }

    fn start(&self, limit: Duration) -> Child {
        let mut command = self.command(&self.root.path().join("cache"), limit.as_secs_f64() / 3600.0);
        command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
    }

    fn output(&self) -> PathBuf {
        self.root.path().join("checkpoints/t1/repo")
    }

    /// The file that the contest takes; whole, or the test fails.
    fn delivered(&self) -> PathBuf {
        let path = picked(&self.output()).unwrap().expect("there is no LoRA");
        assert_eq!(path.file_name().unwrap(), "last.safetensors");
        let bytes = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert!(tensors.len() >= 100, "{} tensors", tensors.len());
        for (name, tensor) in tensors.tensors() {
            assert!(tensor.data().iter().any(|&b| b != 0) || name.contains("lora_B"), "{name} is empty");
        }
        path
    }
}

/// Kills without warning what has not ended by then; true if it had.
fn kill_at(child: &mut Child, moment: Instant) -> bool {
    while Instant::now() < moment {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

/// Plays one task; returns the score and the bare model's, on pictures that the task never saw.
fn play(limit_s: u64) -> (f64, f64) {
    let container = Container::new();
    let limit = Duration::from_secs(limit_s);
    let began = Instant::now();
    let mut child = container.start(limit);
    assert!(kill_at(&mut child, began + limit), "it was killed at the limit");
    let used = began.elapsed().as_secs_f64() / limit.as_secs_f64();
    let lora = container.delivered();
    let unnumbered = fs::read_dir(container.output()).unwrap().flatten().filter(|e| {
        let name = e.file_name().to_string_lossy().into_owned();
        name.trim_end_matches(".safetensors").len() < name.len()
            && !name.trim_end_matches(".safetensors").ends_with(|c: char| c.is_ascii_digit())
    });
    assert_eq!(unnumbered.count(), 1, "no other file without a number");
    let score = Command::new(env!("CARGO_BIN_EXE_tenggat"))
        .args(["score", "--model", "mini", "--measure", "velocity", "--noises", "4", "--json", "--lora"])
        .arg(&lora)
        .arg("--data")
        .arg(demo_dataset().join("test"))
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&score.stdout).unwrap();
    let total = |who: &str| report[who]["velocity"]["total"].as_f64().unwrap();
    let (bare, trained) = (total("bare"), total("trained"));
    println!(
        "{limit_s} s: {:.1} % used, velocity error {trained:.5}, {:+.2} % of {bare:.5}",
        100.0 * used,
        100.0 * (trained / bare - 1.0)
    );
    (trained, bare)
}

/// Kills tasks of 20 s at moments spread over the time after 5 % of it.
fn kills(n: u32) {
    let limit = Duration::from_secs(20);
    for i in 0..n {
        let container = Container::new();
        // The golden ratio spreads any number of moments evenly.
        let share = 0.05 + 0.95 * (f64::from(i) * 0.618_033_988_749_895 + 0.5).fract();
        let began = Instant::now();
        let mut child = container.start(limit);
        kill_at(&mut child, began + limit.mul_f64(share));
        container.delivered();
    }
}

#[test]
fn a_task_ends_in_time_and_beats_the_bare_model() {
    let (trained, bare) = play(20);
    assert!(trained < bare, "{trained} is not below {bare}");
}

#[test]
fn a_kill_leaves_a_whole_lora() {
    kills(3);
}

#[test]
#[ignore = "takes four minutes"]
fn longer_tasks_end_in_time_and_beat_the_bare_model() {
    for limit_s in [60, 180] {
        let (trained, bare) = play(limit_s);
        assert!(trained < bare, "{trained} is not below {bare}");
    }
}

#[test]
#[ignore = "takes twenty minutes"]
fn a_hundred_kills_leave_a_whole_lora() {
    kills(100);
}

/// The contest builds the image from one of two names, people from a third.
#[test]
fn the_dockerfiles_are_the_same() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let plain = fs::read_to_string(root.join("Dockerfile")).unwrap();
    for name in ["standalone-image-trainer", "standalone-image-toolkit-trainer"] {
        let path = root.join(format!("dockerfiles/{name}.dockerfile"));
        assert_eq!(fs::read_to_string(&path).unwrap(), plain, "{}", path.display());
    }
}

#[test]
fn what_cannot_be_played_is_told_at_once() {
    let container = Container::new();
    let said = |cache: &Path| {
        let output = container.command(cache, 0.005).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let message = said(Path::new("/nowhere"));
    assert!(message.contains("/nowhere/datasets/t1_tourn.zip"), "{message}");
    let cache = container.root.path().join("cache");
    fs::write(cache.join("datasets/t1_tourn.zip"), "no archive").unwrap();
    let message = said(&cache);
    assert!(message.contains("t1_tourn.zip cannot be unpacked"), "{message}");
}
