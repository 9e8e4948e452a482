//! `tenggat drive` from outside, with the stand-in for ai-toolkit.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::trainer::toolkit;
use common::{demo_pictures, ends, job, tenggat, text};
use serde_json::{Value, json};
use tenggat_drive::lora;

struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    /// A job of a trainer with these habits; `more` is put over the process.
    fn new(habits: Value, more: Value) -> Self {
        let scene = Scene { folder: tempfile::tempdir().unwrap() };
        toolkit(scene.folder.path());
        let mut process = json!({
            "type": "sd_trainer",
            "training_folder": scene.folder.path().join("out"),
            "save": {"save_every": 1000},
            "train": {"lr": 1e-4},
            "model": {"arch": "qwen_image", "name_or_path": "mini"},
            "stand_in": habits,
        });
        more.as_object().unwrap().iter().for_each(|(key, value)| process[key] = value.clone());
        let job = json!({"job": "extension", "config": {"name": "fox", "process": [process]}});
        fs::write(scene.folder.path().join("job.json"), job.to_string()).unwrap();
        scene
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("out/fox")
    }

    fn steps(&self) -> Option<u64> {
        lora::check(&self.run().join("last.safetensors")).ok()?.steps
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = tenggat();
        command.arg("drive").arg(self.folder.path().join("job.json")).args(more);
        command.arg("--trainer-dir").arg(self.folder.path().join("ai-toolkit"));
        command
    }

    fn start(&self, more: &[&str]) -> Child {
        self.command(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until so many updates are published.
    fn wait_for(&self, steps: u64) {
        let began = Instant::now();
        while self.steps().unwrap_or(0) < steps {
            assert!(began.elapsed().as_secs() < 60, "{steps} steps were not reached");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// A LoRA of the mini model: of `steps` steps at a rate.
fn trained(folder: &Path, name: &str, lr: &str, steps: u32) -> PathBuf {
    let folder = folder.join(name);
    fs::create_dir(&folder).unwrap();
    let path = job(&folder, &format!("steps: {steps}"));
    let text_of_job = fs::read_to_string(&path).unwrap().replace("lr: 1e-3", &format!("lr: {lr}"));
    fs::write(&path, text_of_job).unwrap();
    let output = tenggat().arg("train").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    folder.join("fox/fox.safetensors")
}

#[test]
fn the_best_of_the_saves_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let good = trained(folder.path(), "good", "1e-3", 60);
    let bad = trained(folder.path(), "bad", "3e-2", 20);
    let scene = Scene::new(
        json!({"step_s": 0.01, "loras": [[0, bad], [20, good], [41, bad]]}),
        json!({
            "train": {"lr": 1e-4, "steps": 60},
            "save": {"save_every": 20, "max_step_saves_to_keep": 10},
            "tenggat": {"deliver": "best", "held_out": demo_pictures("test")},
        }),
    );
    let output = scene.command(&["--budget", "10m"]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    // ai-toolkit's number of a save of its own is that of the step before.
    let delivered = scene.steps().unwrap();
    assert!(
        said.contains("has the lowest held-out error") && [20, 40].contains(&delivered),
        "{delivered} {said}"
    );
    let newest = lora::check(&scene.run().join("fox.safetensors")).unwrap();
    assert_eq!(newest.steps, Some(60), "the others are kept");
    // Again: there is nothing to do, and nothing is measured or replaced.
    let said = text(&scene.command(&["--budget", "10m"]).output().unwrap());
    assert!(said.contains("already done") && !said.contains("held-out error"), "{said}");
}

#[test]
fn the_best_of_a_family_that_is_not_known_is_the_newest_and_that_is_said() {
    let scene = Scene::new(
        json!({"step_s": 0.01}),
        json!({
            "model": {"arch": "krea2", "name_or_path": "x"},
            "train": {"lr": 1e-4, "steps": 10},
            "tenggat": {"deliver": "best", "held_out": "none"},
        }),
    );
    let output = scene.command(&["--budget", "60s"]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("of `krea2` the newest LoRA is delivered"), "{said}");
    assert_eq!(scene.steps(), Some(10));
}

#[test]
fn extend_moves_the_deadline_of_a_drive() {
    let scene = Scene::new(json!({"step_s": 0.05}), json!({}));
    let began = Instant::now();
    let mut child = scene.start(&["--budget", "60s"]);
    scene.wait_for(1);
    let output = tenggat().arg("extend").arg(scene.run()).arg("-30s").output().unwrap();
    assert!(output.status.success() && text(&output).contains("moves its deadline"), "{}", text(&output));
    assert!(ends(&mut child, Duration::from_secs(60)).success());
    assert!(began.elapsed().as_secs_f64() < 50.0, "{:?}", began.elapsed());
    // A folder that no run has used is none.
    let output = tenggat().arg("extend").arg(scene.folder.path()).arg("+1h").output().unwrap();
    assert!(!output.status.success() && text(&output).contains(".drive"), "{}", text(&output));
}

#[test]
fn extend_moves_the_deadline_of_any_trainer() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tenggat-drive/tests/other_trainer.py");
    let began = Instant::now();
    let mut child = tenggat()
        .args(["drive", "--budget", "40s", "--saves", &format!("{}/**/*.safetensors", out.display()), "--"])
        .arg("python3")
        .arg(script)
        .arg(&out)
        .args(["--max_train_steps", "100000", "--step_s", "0.05", "--save_every_n_steps", "20"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !out.join("last.safetensors").exists() {
        assert!(began.elapsed().as_secs() < 60, "nothing was saved");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = tenggat().arg("extend").arg(&out).arg("-25s").output().unwrap();
    assert!(output.status.success() && text(&output).contains("moves its deadline"), "{}", text(&output));
    assert!(ends(&mut child, Duration::from_secs(60)).success());
    assert!(began.elapsed().as_secs_f64() < 35.0, "{:?}", began.elapsed());
}

#[test]
fn the_first_term_after_another_wish_to_end_does_not_cut_the_save_short() {
    let scene = Scene::new(json!({"step_s": 0.05, "save_s": 2.0}), json!({}));
    let mut child = scene.start(&["--budget", "30m"]);
    let metrics = scene.run().join("metrics.jsonl");
    let began = Instant::now();
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
        assert!(began.elapsed().as_secs() < 60, "no steps");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&child, "-XCPU");
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none() && scene.steps().is_none(), "it is still saving");
    signal(&child, "-TERM");
    assert!(ends(&mut child, Duration::from_secs(30)).success());
    assert!(scene.steps().unwrap() >= 3);
}

#[test]
fn a_drive_outlives_its_terminal_saves_when_asked_and_ends_when_asked() {
    let scene = Scene::new(json!({"step_s": 0.05}), json!({}));
    let mut child = scene.start(&["--budget", "30m"]);
    let metrics = scene.run().join("metrics.jsonl");
    let began = Instant::now();
    let taken = || fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    let take = |steps: usize| {
        while taken() < steps {
            assert!(began.elapsed().as_secs() < 80, "no steps");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    take(5);
    signal(&child, "-HUP");
    signal(&child, "-USR1");
    // By itself it would save after 5 % of the budget.
    scene.wait_for(1);
    assert!(began.elapsed().as_secs() < 80 && child.try_wait().unwrap().is_none());
    let before = scene.steps().unwrap();
    take(taken() + 5);
    let asked = Instant::now();
    signal(&child, "-TERM");
    assert!(ends(&mut child, Duration::from_secs(30)).success());
    assert!(asked.elapsed().as_secs_f64() < 10.0 && scene.steps().unwrap() > before);
}
