//! The timed contest from outside: an archive in, a kill at the limit, the file picked by the contest's rule,
//! its score.
//!
//! `cargo test --release -p tenggat --test task -- --ignored` plays the longer ones: limits of 60 and 180 s,
//! 100 kills.
#![cfg(unix)]
#![allow(clippy::print_stdout, reason = "tests say what they found")]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{demo_pictures, ends, text};
use safetensors::SafeTensors;
use tenggat_train::contest::container::picked;
use zip::write::{SimpleFileOptions, ZipWriter};

/// The roots of a container.
struct Container {
    root: tempfile::TempDir,
}

/// The demo's first `n` pictures and their captions, as entries of an archive.
fn entries(n: usize) -> Vec<(String, Vec<u8>)> {
    let mut paths: Vec<_> =
        fs::read_dir(demo_pictures("train")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let entry = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        (format!("train_data/{name}"), fs::read(&path).unwrap())
    };
    paths.into_iter().take(2 * n).map(entry).collect()
}

impl Container {
    /// With the demo's pictures as the task's archive.
    fn new() -> Self {
        Self::with(&entries(24))
    }

    fn with(entries: &[(String, Vec<u8>)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("cache/datasets")).unwrap();
        let container = Container { root };
        let mut archive = ZipWriter::new(File::create(container.archive()).unwrap());
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in entries {
            archive.start_file(name.as_str(), stored).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();
        container
    }

    fn archive(&self) -> PathBuf {
        self.root.path().join("cache/datasets/t1_tourn.zip")
    }

    /// Plays it to its end; returns what was said. It must succeed.
    fn play(&self, limit_s: f64, more: &[&str]) -> String {
        let mut command = self.command(&self.root.path().join("cache"), limit_s / 3600.0);
        let output = command.args(more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    /// Updates in the LoRA that the contest takes.
    fn steps(&self) -> Option<u64> {
        let path = picked(&self.output()).ok()??;
        let bytes = fs::read(path).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let info = header.metadata().as_ref()?.get("training_info")?.clone();
        serde_json::from_str::<serde_json::Value>(&info).ok()?["step"].as_u64()
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
        .arg(demo_pictures("test"))
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

/// The contest builds the image from a name of its own, with a trainer for the other kinds of model beside.
#[test]
fn both_dockerfiles_build_and_start_the_program_alike() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let (plain, contest) =
        (read("Dockerfile"), read("ops/docker/standalone-image-toolkit-trainer.dockerfile"));
    for line in ["FROM ", "COPY ", "ENTRYPOINT ", "USER ", "WORKDIR "] {
        for wanted in plain.lines().filter(|text| text.starts_with(line) && !text.contains("debian:")) {
            assert!(contest.contains(wanted), "{wanted}");
        }
    }
    assert!(contest.contains("AI_TOOLKIT=/app/ai-toolkit") && contest.contains("HF_HUB_OFFLINE=1"));
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
    assert!(!container.output().exists());
}

/// The scorer takes a LoRA that changes nothing for the bare model; a container without a LoRA is out.
#[test]
fn an_archive_that_cannot_be_read_still_leaves_a_lora() {
    for bytes in [b"no archive".as_slice(), b""] {
        let container = Container::new();
        fs::write(container.archive(), bytes).unwrap();
        let said = container.play(18.0, &[]);
        assert!(said.contains("t1_tourn.zip cannot be unpacked"), "{said}");
        container.delivered();
        assert_eq!(container.steps(), Some(0));
    }
}

/// A PNG of a few bytes that says it has 100000 × 100000 pixels.
fn bomb() -> Vec<u8> {
    let mut png = Vec::new();
    image::DynamicImage::new_rgb8(1, 1)
        .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
        .unwrap();
    png[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
    // The check sum of the header, by the definition in the PNG specification.
    let mut sum = u32::MAX;
    for byte in &png[12..29] {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { 0xedb8_8320 ^ (sum >> 1) } else { sum >> 1 };
        }
    }
    png[29..33].copy_from_slice(&(!sum).to_be_bytes());
    png
}

#[test]
fn bad_entries_are_named_and_left_out() {
    let mut all = entries(3);
    let evil = "train_data/\u{1b}]0;x\u{7}\u{202e}.png".to_owned();
    all.extend([
        ("train_data/spoilt.png".to_owned(), b"spoilt in the archive".to_vec()),
        ("train_data/bomb.png".to_owned(), bomb()),
        (evil, b"no picture".to_vec()),
        ("train_data/bomb.txt".to_owned(), b"large".to_vec()),
    ]);
    let container = Container::with(&all);
    let mut bytes = fs::read(container.archive()).unwrap();
    let at = bytes.windows(6).position(|window| window == b"spoilt").unwrap();
    let at = at + bytes[at..].windows(9).position(|window| window == b"spoilt in").unwrap();
    bytes[at] = b'S';
    fs::write(container.archive(), bytes).unwrap();
    let said = container.play(18.0, &[]);
    for part in [
        "left out: spoilt.png of ",
        "bomb.png is not a usable image",
        r"\u{1b}]0;x\u{7}\u{202e}.png",
        "3 to train on",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains('\u{1b}') && !said.contains('\u{202e}'), "{said:?}");
    container.delivered();
    assert!(container.steps().unwrap() > 0, "{said}");
}

#[test]
fn a_single_picture_is_trained_on() {
    let container = Container::with(&entries(1));
    let said = container.play(18.0, &[]);
    assert!(said.contains("1 to train on, 0 held out") && !said.contains("warning"), "{said}");
    container.delivered();
    assert!(container.steps().unwrap() > 0, "{said}");
    // Nothing is left but what is uploaded.
    assert!(!container.root.path().join("work/t1-repo").exists());
    assert!(!container.output().join("resume.state").exists());
}

#[test]
fn hours_that_are_too_few_leave_a_lora() {
    for limit_s in [0.001, 0.5, 2.0] {
        let container = Container::with(&entries(2));
        container.play(limit_s, &[]);
        container.delivered();
    }
}

/// Starts a task of few pictures, whose newest LoRA is delivered, and kills it when it has delivered one with
/// steps.
fn killed() -> (Container, u64) {
    let container = Container::with(&entries(4));
    let mut child = container.start(Duration::from_secs(300));
    let began = Instant::now();
    while container.steps().unwrap_or(0) == 0 || !container.output().join("resume.state").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(began.elapsed().as_secs() < 280, "nothing was saved");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let steps = container.steps().unwrap();
    assert!(steps > 0);
    (container, steps)
}

/// What lies in the folder that is uploaded, and beside it.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_task_that_is_started_again_goes_on() {
    let (container, before) = killed();
    let said = container.play(18.0, &[]);
    assert!(said.contains("resuming") && !said.contains("warning"), "{said}");
    container.delivered();
    assert!(container.steps().unwrap() > before, "{said}");
    assert_eq!(names(&container.root.path().join("checkpoints/t1")), ["repo"]);
    assert!(!names(&container.output()).iter().any(|name| name.contains(".old-") || name.contains("state")));
}

#[test]
fn a_task_that_is_started_again_never_delivers_less() {
    let (container, before) = killed();
    // No time for anything.
    container.play(1.2, &[]);
    assert!(container.steps().unwrap() >= before);
    // Without its checkpoint, and with a changed job, training resumes from the weights.
    for more in [&[][..], &["--lr", "1e-4"], &["--rank", "4"]] {
        let _ = fs::remove_file(container.output().join("resume.state"));
        let said = container.play(18.0, more);
        let after = container.steps().unwrap();
        assert!(after > before, "{more:?}, {before}, {after}: {said}");
        assert_eq!(names(&container.root.path().join("checkpoints/t1")), ["repo"], "{said}");
    }
    // The archive is gone bad meanwhile.
    let before = container.steps();
    fs::write(container.archive(), "no archive").unwrap();
    container.play(18.0, &[]);
    assert_eq!(container.steps(), before);
}

#[test]
fn pictures_lie_where_nobody_else_gets_in() {
    let container = Container::with(&entries(2));
    let (temporary, trap) = (container.root.path().join("tmp"), container.root.path().join("trap"));
    fs::create_dir(&temporary).unwrap();
    fs::create_dir(&trap).unwrap();
    let user = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&trap).unwrap());
    // Somebody else was first.
    std::os::unix::fs::symlink(&trap, temporary.join(format!("tenggat-task-{user}"))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenggat"));
    command.args(["task", "--task-id", "t1", "--model", "mini", "--model-type", "qwen-image"]);
    command.args(["--expected-repo-name", "repo", "--hours-to-complete", "0.004", "--dataset-zip"]);
    command.arg(container.archive()).arg("--checkpoints-root").arg(container.root.path().join("checkpoints"));
    let mut child = command.env("TMPDIR", &temporary).stderr(Stdio::piped()).spawn().unwrap();
    assert!(ends(&mut child, Duration::from_secs(120)).success());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("is not used: it is a link"), "{said}");
    container.delivered();
    assert!(names(&trap).is_empty());
}
