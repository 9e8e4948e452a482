//! The contest's other kinds of model from outside: driven through ai-toolkit's channel, here by its
//! stand-in.
#![cfg(unix)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::trainer::{python, tensors, toolkit};
use common::{demo_pictures, tenggat, text};
use serde_json::{Value, json};
use tenggat_drive::lora;
use zip::write::{SimpleFileOptions, ZipWriter};

const LAYER: &str = "blocks.0.attn.wq";

/// A container of one task.
struct Container {
    root: tempfile::TempDir,
    kind: &'static str,
    model: &'static str,
}

impl Container {
    fn new(kind: &'static str, model: &'static str) -> Self {
        let container = Container { root: tempfile::tempdir().unwrap(), kind, model };
        fs::create_dir_all(container.cache("datasets")).unwrap();
        let mut archive = ZipWriter::new(File::create(container.cache("datasets/t1_tourn.zip")).unwrap());
        for name in ["fox.png", "fox.txt", "bell.png", "bell.txt"] {
            archive.start_file(format!("train_data/{name}"), SimpleFileOptions::default()).unwrap();
            archive.write_all(&fs::read(demo_pictures("train").join(name)).unwrap()).unwrap();
        }
        archive.finish().unwrap();
        toolkit(container.root.path());
        let folder = container.cache(&format!("models/{}", model.replace('/', "--")));
        let weights = if kind == "krea2" { "raw.safetensors" } else { "transformer/model.safetensors" };
        let layer = format!("{LAYER}.weight");
        tensors(&folder.join(weights), &[(layer.as_str(), [6, 4])]);
        let inside: &[&str] = match kind {
            "flux" => &["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"],
            "z-image" => &["vae", "text_encoder", "tokenizer"],
            _ => &["vae"],
        };
        inside.iter().for_each(|name| fs::create_dir_all(folder.join(name)).unwrap());
        for size in ["4B", "8B"] {
            fs::create_dir_all(container.cache(&format!("hf_cache/Qwen--Qwen3-VL-{size}-Instruct"))).unwrap();
        }
        container
    }

    fn cache(&self, path: &str) -> PathBuf {
        self.root.path().join("cache").join(path)
    }

    fn output(&self) -> PathBuf {
        self.root.path().join("checkpoints/t1/repo")
    }

    fn last(&self) -> PathBuf {
        self.output().join("last.safetensors")
    }

    /// A LoRA that fits the model, for the stand-in to save copies of.
    fn fitting(&self) -> String {
        let path = self.root.path().join("fitting.safetensors");
        let name = |part: &str| format!("diffusion_model.{LAYER}.lora_{part}.weight");
        tensors(&path, &[(&name("A"), [2, 4]), (&name("B"), [6, 2])]);
        path.display().to_string()
    }

    fn command(&self, limit_s: f64, habits: &Value, more: &[&str]) -> Command {
        let mut command = tenggat();
        command.args(["task", "--task-id", "t1", "--model", self.model, "--model-type", self.kind]);
        command.args(["--dataset-zip", "https://example.org/t1.zip", "--expected-repo-name", "repo"]);
        command.args(["--hours-to-complete", &(limit_s / 3600.0).to_string()]);
        for (flag, path) in
            [("cache-root", "cache"), ("checkpoints-root", "checkpoints"), ("work-root", "work")]
        {
            command.arg(format!("--{flag}")).arg(self.root.path().join(path));
        }
        command.arg("--trainer-dir").arg(self.root.path().join("ai-toolkit"));
        command.args(more).env("STAND_IN", habits.to_string()).env("HF_HUB_OFFLINE", "1");
        command
    }

    fn play(&self, limit_s: f64, habits: &Value, more: &[&str]) -> Output {
        self.command(limit_s, habits, more).output().unwrap()
    }
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_kind_of_model_is_driven_inside_its_hours() {
    let kinds = [
        ("krea2", "krea/Krea-2-Raw", "krea2"),
        ("ideogram4", "ideogram-ai/ideogram-4-fp8", "ideogram4"),
        ("z-image", "Tongyi-MAI/Z-Image-Turbo", "zimage"),
        ("flux", "rayonlabs/FLUX.1-dev", "flux"),
    ];
    std::thread::scope(|scope| {
        for (kind, model, arch) in kinds {
            scope.spawn(move || {
                let container = Container::new(kind, model);
                let habits = json!({"step_s": 0.05, "loras": [[0, container.fitting()]]});
                let output = container.play(24.0, &habits, &["--weights", "1:1"]);
                let said = text(&output);
                assert!(output.status.success() && said.contains("delivered"), "{said}");
                assert!(lora::check(&container.last()).unwrap().steps.unwrap() > 0, "{said}");
                // What is uploaded, and nothing else.
                let left = names(&container.output());
                assert_eq!(left, ["config.yaml", "last.safetensors", "metrics.jsonl"], "{said}");
                // The stand-in keeps the job that it was given.
                let job = fs::read_to_string(container.output().join("config.yaml")).unwrap();
                let job: Value = serde_json::from_str(&job).unwrap();
                let process = &job["config"]["process"][0];
                assert_eq!(process["model"]["arch"], arch);
                assert_eq!(process["datasets"][0]["caption_dropout_rate"], 0.5);
                let kwargs = &process["model"]["model_kwargs"];
                let encoder = kwargs["text_encoder_path"].as_str().unwrap_or_default();
                match kind {
                    "krea2" => {
                        assert!(encoder.ends_with("hf_cache/Qwen--Qwen3-VL-4B-Instruct"), "{kwargs}");
                        assert_eq!(kwargs["vae_path"], process["model"]["name_or_path"]);
                        assert_eq!(kwargs["checkpoint_filename"], "raw.safetensors");
                    }
                    "ideogram4" => {
                        assert!(encoder.ends_with("hf_cache/Qwen--Qwen3-VL-8B-Instruct"), "{kwargs}");
                    }
                    _ => assert_eq!(*kwargs, json!({})),
                }
            });
        }
    });
}

#[test]
fn a_lora_with_keys_that_fit_no_layer_is_not_delivered() {
    let container = Container::new("krea2", "krea/Krea-2-Raw");
    let output = container.play(12.0, &json!({"step_s": 0.05}), &[]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("fit no layer of the model"), "{said}");
    // The scorer takes it for the bare model.
    assert_eq!(lora::check(&container.last()).unwrap().steps, Some(0));
}

#[test]
fn a_preset_that_delivers_elsewhere_is_refused_and_nothing_there_is_removed() {
    let container = Container::new("krea2", "krea/Krea-2-Raw");
    let elsewhere = container.root.path().join("elsewhere");
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/contest/driven.yaml");
    let text_of_preset = fs::read_to_string(built_in).unwrap();
    assert!(text_of_preset.contains("training_folder: ${OUT}"));
    let folder = format!("training_folder: {}", elsewhere.display());
    let preset = container.root.path().join("preset.yaml");
    fs::write(&preset, text_of_preset.replace("training_folder: ${OUT}", &folder)).unwrap();
    fs::create_dir_all(elsewhere.join("repo")).unwrap();
    fs::write(elsewhere.join("repo/thesis.txt"), "mine").unwrap();
    let habits = json!({"step_s": 0.05, "loras": [[0, container.fitting()]]});
    let good = python(container.root.path(), "echo 2.13.0 True");
    let preset = preset.to_str().unwrap();
    let rehearsal = container.play(
        1800.0,
        &habits,
        &["--rehearse", "--python", good.to_str().unwrap(), "--preset", preset],
    );
    let output = container.play(14.0, &habits, &["--preset", preset]);
    for said in [text(&rehearsal), text(&output)] {
        assert!(
            said.contains("its results would go to") && said.contains("training_folder: ${OUT}"),
            "{said}"
        );
    }
    assert_eq!((rehearsal.status.code(), output.status.code()), (Some(1), Some(0)));
    assert_eq!(names(&elsewhere.join("repo")), ["thesis.txt"]);
    assert_eq!(lora::check(&container.last()).unwrap().steps, Some(0));
}

#[test]
fn whatever_is_missing_there_is_a_lora_and_it_is_named() {
    let container = Container::new("krea2", "krea/Krea-2-Raw");
    fs::remove_dir(container.cache("hf_cache/Qwen--Qwen3-VL-4B-Instruct")).unwrap();
    let output = container.play(12.0, &json!({}), &[]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("Qwen--Qwen3-VL-4B-Instruct"), "{said}");
    assert_eq!(lora::check(&container.last()).unwrap().steps, Some(0));
    let container = Container::new("krea2", "krea/Krea-2-Raw");
    fs::remove_dir_all(container.root.path().join("ai-toolkit")).unwrap();
    let said = text(&container.play(12.0, &json!({}), &[]));
    assert!(said.contains("was not found in") && container.last().is_file(), "{said}");
}

#[test]
fn a_driven_task_that_is_started_again_goes_on_and_never_delivers_less() {
    let container = Container::new("krea2", "krea/Krea-2-Raw");
    let habits = json!({"step_s": 0.05, "loras": [[0, container.fitting()]]});
    let mut child = container.command(60.0, &habits, &[]).spawn().unwrap();
    let began = std::time::Instant::now();
    let steps = || lora::check(&container.last()).ok().and_then(|checked| checked.steps).unwrap_or(0);
    while steps() == 0 {
        assert!(began.elapsed().as_secs() < 60, "nothing was saved");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = steps();
    // Another learning rate is another job: training resumes from the delivered LoRA all the same.
    let said = text(&container.play(14.0, &habits, &["--lr", "2e-4"]));
    assert!(steps() > before, "{before} {}: {said}", steps());
    assert_eq!(names(container.output().parent().unwrap()), ["repo"], "{said}");
}

#[test]
fn a_rehearsal_names_all_that_would_go_wrong_and_leaves_nothing() {
    let container = Container::new("krea2", "krea/Krea-2-Raw");
    let good = python(container.root.path(), "echo 2.13.0 True");
    let rehearse = |python: &Path, more: &[&str]| {
        let mut all = vec!["--rehearse", "--python", python.to_str().unwrap()];
        all.extend(more);
        let output = container.play(1800.0, &json!({}), &all);
        (output.status.code(), text(&output))
    };
    let (code, said) = rehearse(&good, &[]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "model          ok",
        "1 layer recognised",
        "2 to train on",
        "hours          ok",
        "arch: krea2",
        "True",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!container.root.path().join("checkpoints").exists(), "{:?}", names(container.root.path()));
    assert!(names(&container.root.path().join("work")).is_empty());

    let blind = python(&container.root.path().join("cache"), "echo 2.13.0 False");
    let broken = python(&container.cache("datasets"), "echo 'No module named torch' >&2; exit 1");
    fs::remove_dir(container.cache("hf_cache/Qwen--Qwen3-VL-4B-Instruct")).unwrap();
    let (code, said) = rehearse(&blind, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("sees no GPU") && said.contains("for the 2 reasons marked"), "{said}");
    assert!(said.contains("text encoder   would fail: there is no"), "{said}");
    let (_, said) = rehearse(&broken, &[]);
    assert!(said.contains("No module named torch"), "{said}");
    let (_, said) = rehearse(Path::new("/nowhere/python"), &[]);
    assert!(said.contains("name ai-toolkit's Python with --python"), "{said}");
    // A file where the folder of results should be.
    fs::write(container.root.path().join("checkpoints"), "").unwrap();
    fs::write(container.cache("datasets/t1_tourn.zip"), "no archive").unwrap();
    let (_, said) = rehearse(&good, &[]);
    assert!(said.contains("output         would fail") && said.contains("cannot be unpacked"), "{said}");
}

#[test]
fn kinds_that_the_contest_does_not_have_are_refused_with_those_it_has() {
    let container = Container::new("sdxl", "a/b");
    let output = container.play(12.0, &json!({}), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("flux, z-image, qwen-image, ideogram4, krea2"), "{}", text(&output));
}
