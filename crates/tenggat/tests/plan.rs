//! `tenggat plan` and `tenggat extend` from outside.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use assert_cmd::assert::Assert;
use serde_json::Value;

/// The program with a cache of its own, so that the calibration of this machine's user plays no part.
struct Program {
    cache: tempfile::TempDir,
}

impl Program {
    fn new() -> Self {
        Program { cache: tempfile::tempdir().unwrap() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenggat"));
        command.env("TENGGAT_CACHE", self.cache.path());
        command
    }

    fn run(&self, args: &[&str]) -> Assert {
        assert_cmd::Command::from_std(self.command()).args(args).assert()
    }

    /// What it prints, having succeeded.
    fn prints(&self, args: &[&str]) -> String {
        String::from_utf8(self.run(args).success().get_output().stdout.clone()).unwrap()
    }

    /// What it complains of, having failed.
    fn complains(&self, args: &[&str]) -> String {
        String::from_utf8(self.run(args).failure().get_output().stderr.clone()).unwrap()
    }
}

fn note() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/note_qwen_image.yaml");
    path.to_str().unwrap().to_owned()
}

/// A job on the mini model with the demo's pictures.
fn mini_job(folder: &Path, own: &str) -> PathBuf {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset/train");
    let text = format!(
        "job: extension\nconfig:\n  name: fox\n  process:\n    - type: sd_trainer\n      training_folder: '{}'\n      \
         network: {{type: lora, linear: 4, linear_alpha: 4}}\n      save: {{dtype: bf16, save_every: 1000000}}\n      \
         datasets:\n        - {{folder_path: '{}', resolution: 128}}\n      \
         train: {{batch_size: 1, lr: 1e-3, optimizer: adamw}}\n      \
         model: {{name_or_path: mini, arch: qwen_image}}\n      tenggat: {{{own}}}\n",
        folder.display(),
        pictures.display()
    );
    let path = folder.join("job.yaml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_notes_job_is_planned_for_all_gpus_in_a_tenth_of_a_second() {
    let program = Program::new();
    let mut fastest = Duration::MAX;
    // Neighbours on the machine make some runs slower and none faster.
    for _ in 0..8 {
        let began = Instant::now();
        let text = program.prints(&["plan", &note()]);
        fastest = fastest.min(began.elapsed());
        for gpu in ["B200", "H200", "H100 SXM", "H100 PCIe", "A100 80GB", "A100 40GB", "L40S", "RTX 3090"] {
            assert!(text.contains(gpu), "{gpu} is missing from\n{text}");
        }
        assert!(text.contains("at 1024×1024") && text.contains("mean step"), "{text}");
        assert!(text.contains("rank 128, uint3 with recovery adapter"), "{text}");
        assert!(text.contains("planned as 20 square images"), "{text}");
    }
    if !cfg!(debug_assertions) {
        assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    }
}

#[test]
fn one_gpu_is_planned_in_detail_and_priced() {
    let program = Program::new();
    let args = ["--gpu", "h100-sxm", "--budget", "2h", "--fill", "--price-per-hour", "2.5"];
    let text = program.prints(&[&["plan", &note()][..], &args].concat());
    for part in [
        "512×512",
        "768×768",
        "1024×1024",
        "train,",
        "budget",
        "2 h",
        "activations kept",
        "price",
        "to fetch",
    ] {
        assert!(text.contains(part), "{part} is missing from\n{text}");
    }
    let smaller = program.prints(&["plan", &note(), "--gpu", "4090", "--rank", "16", "--resolution", "768"]);
    assert!(smaller.contains("rank 16") && smaller.contains("768×768"), "{smaller}");
    assert!(!smaller.contains("1024×1024"), "{smaller}");
}

#[test]
fn reported_times_stand_beside_predicted_ones() {
    let program = Program::new();
    let text = program.prints(&["plan", &note(), "--trainer", "ai-toolkit@0.11"]);
    for part in ["H100 SXM · ai-toolkit-2025", "unpublished note", "4 to 5 s", "5 to 6 s", "public report"] {
        assert!(text.contains(part), "{part} is missing from\n{text}");
    }
    // The private figures are of one job; they are not shown beside another.
    let other = program.prints(&["plan", &note(), "--trainer", "ai-toolkit", "--rank", "16"]);
    assert!(!other.contains("unpublished note"), "{other}");
    let text = program.prints(&["plan", "reports"]);
    for part in ["forecast over report", "musubi-tuner", "RTX 5090", "typical error", "were expected to fit"]
    {
        assert!(text.contains(part), "{part} is missing from\n{text}");
    }
}

#[test]
fn other_models_and_described_cards_are_planned() {
    let program = Program::new();
    let card = "name=H20,tflops=148,gb=96,bandwidth=4000";
    let args = ["plan", "--model", "krea2", "--trainer", "ai-toolkit", "--gpu", card, "--steps", "1000"];
    let text = program.prints(&args);
    assert!(text.contains("krea2: rank 16") && text.contains("ai-toolkit on H20"), "{text}");
    let own = program.complains(&["plan", "--model", "flux1-dev", "--gpu", "4090"]);
    assert!(own.contains("does not train flux1-dev yet") && own.contains("--trainer"), "{own}");
    let said =
        |gpu: &str| program.complains(&["plan", "--model", "krea2", "--trainer", "musubi", "--gpu", gpu]);
    assert!(said("tflops=91,gb=48").contains("bandwidth=…"));
    assert!(said("tflops=91,gb=48,speed=1,bandwidth=2").contains("`speed`"));
    // A job file of ai-toolkit that tenggat does not train.
    let folder = tempfile::tempdir().unwrap();
    let job = folder.path().join("z.yaml");
    let text = "job: extension\nconfig:\n  name: my_z\n  process:\n    - network: {linear: 8}\n      \
                datasets: [{folder_path: p, resolution: 512}]\n      train: {steps: 500, batch_size: 1}\n      \
                model: {name_or_path: Tongyi-MAI/Z-Image, arch: zimage}\n";
    fs::write(&job, text).unwrap();
    let text = program.prints(&["plan", job.to_str().unwrap(), "--trainer", "ai-toolkit", "--gpu", "4090"]);
    assert!(text.contains("my_z: z-image, rank 8") && text.contains("500 steps"), "{text}");
}

#[test]
fn a_learnt_speed_is_used_by_later_plans() {
    let program = Program::new();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("run.log");
    let mut text = String::from("NVIDIA GeForce RTX 4090\n");
    for step in 0..=40 {
        let s = step * 3;
        text += &format!(
            "\rrun: 1%| | {step}/1500 [{:02}:{:02}<9:99, 3.00s/it, lr: 1.0e-04 loss: 3e-01]",
            s / 60,
            s % 60
        );
    }
    fs::write(&log, text).unwrap();
    let log = log.to_str().unwrap();
    let plan = ["plan", &note(), "--trainer", "ai-toolkit", "--gpu", "4090", "--json"];
    let ai_toolkit = |text: &str| {
        let all: Value = serde_json::from_str(text).unwrap();
        all["plans"].as_array().unwrap().iter().find(|plan| plan["program"] == "ai-toolkit").unwrap().clone()
    };
    assert_eq!(ai_toolkit(&program.prints(&plan))["evidence"]["basis"], "reports");
    let text = program.prints(&["plan", "learn", log, "--job", &note()]);
    assert!(text.contains("ai-toolkit on RTX 4090") && text.contains("3 s a step"), "{text}");
    // The row that can be sent says nothing of where the log lies.
    assert!(
        text.contains("measured-ai-toolkit-qwen-image-RTX-4090") && text.contains("measured by a user"),
        "{text}"
    );
    let row = text.lines().find(|line| line.starts_with("measured-")).unwrap();
    assert!(!row.contains(folder.path().to_str().unwrap()), "{row}");
    let after = ai_toolkit(&program.prints(&plan));
    assert_eq!(after["evidence"]["basis"], "measured_here");
    assert!((after["mean_step_s"]["likely"].as_f64().unwrap() - 3.0).abs() < 0.01, "{after}");
    assert!((after["mean_step_s"]["high"].as_f64().unwrap() - 3.3).abs() < 0.01, "{after}");
    let text = program.prints(&plan[..6]);
    assert!(text.contains("4090"), "{text}");
    // Another rank leans on it; learning twice keeps one row.
    program.prints(&["plan", "learn", log, "--job", &note()]);
    let other = ai_toolkit(&program.prints(&[&plan[..], &["--rank", "16"]].concat()));
    assert_eq!(
        (&other["evidence"]["basis"], &other["evidence"]["reports"]),
        (&"measured_similar".into(), &1.into())
    );
    // What is not said is asked for.
    assert!(program.complains(&["plan", "learn", log]).contains("--job"));
    let bare = folder.path().join("bare.log");
    fs::write(&bare, "12/1500 [00:54<1:51:36, 4.50s/it, lr: 1.0e-04]").unwrap();
    let args = ["plan", "learn", bare.to_str().unwrap(), "--resolution", "1024"];
    assert!(program.complains(&args).contains("--gpu"));
    assert!(program.complains(&["plan", "learn", &note(), "--gpu", "4090"]).contains("no training steps"));
}

#[test]
fn a_card_is_chosen_by_time_and_money() {
    let program = Program::new();
    let args = ["plan", "choose", &note(), "--deadline", "3h", "--max-cost", "6", "--trainer", "ai-toolkit"];
    let text = program.prints(&args);
    for part in ["within 3 h", "for 6.0 USD", "whole", "H100 SXM, RunPod", "GB", "--prices"] {
        assert!(text.contains(part), "{part} is missing from\n{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.csv");
    fs::write(&prices, "provider,gpu,usd_per_hour\ncellar,3060,0.05\nattic,h200,1\n").unwrap();
    let args = [&args[..], &["--as-is", "--json", "--prices", prices.to_str().unwrap()]].concat();
    let all: Value = serde_json::from_str(&program.prints(&args)).unwrap();
    assert_eq!(all["schema"], "tenggat-plan/2");
    assert_eq!(all["choice"]["candidates"][0]["offer"]["provider"], "attic");
    assert_eq!(all["choice"]["rejected"][0]["offer"]["gpu"], "RTX 3060");
    assert!(all["choice"]["rejected"][0]["why"].as_str().unwrap().contains("GB"), "{all}");
    fs::write(&prices, "provider,gpu\ncellar,3060\n").unwrap();
    assert!(program.complains(&args).contains("usd_per_hour"));
    let no_steps = program.complains(&["plan", "choose", "--model", "qwen-image", "--deadline", "1h"]);
    assert!(no_steps.contains("--steps"), "{no_steps}");
}

/// What the page about planning shows is what the program prints.
#[test]
fn the_plans_in_the_documentation_are_as_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/planning.md")).unwrap();
    let mut found = 0;
    for block in page.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        let (command, shown) = block.split_once('\n').unwrap();
        if !command.starts_with("$ tenggat plan ") {
            continue;
        }
        let args: Vec<&str> = command.trim_start_matches("$ tenggat ").split_whitespace().collect();
        let program = Program::new();
        let run = assert_cmd::Command::from_std(program.command()).args(args).current_dir(&root).assert();
        let printed = String::from_utf8(run.success().get_output().stdout.clone()).unwrap();
        assert_eq!(printed.trim_end(), shown.trim_end(), "{command}");
        found += 1;
    }
    assert!(found >= 2, "{found} commands");
}

#[test]
fn steps_are_recommended_from_a_plan() {
    let program = Program::new();
    let text = program.prints(&["plan", "steps", "--budget", "3h", "--job", &note(), "--gpu", "4090"]);
    assert!(text.contains(" steps\n") && text.contains("slow end"), "{text}");
    assert!(program.complains(&["plan", "steps", "--budget", "3h"]).contains("--s-per-step"));
}

#[test]
fn plans_are_json_if_asked() {
    let text = Program::new().prints(&["plan", &note(), "--gpu", "all", "--json"]);
    let all: Value = serde_json::from_str(&text).unwrap();
    assert!(all["plans"].as_array().unwrap().len() >= 26);
    assert_eq!((&all["schema"], &all["job"]["rank"]), (&"tenggat-plan/2".into(), &128.into()));
    let plan = &all["plans"][0];
    assert!(plan["mean_step_s"]["low"].as_f64().unwrap() > 0.0);
    assert_eq!(plan["largest_bucket"]["width_px"], 1024);
    assert!(plan["largest_bucket"]["step_s_by_class"]["gemm"].as_f64().unwrap() > 0.0);
    assert!(plan["phases"]["load"].as_f64().unwrap() > 0.0);
    // Every field is in the documentation.
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plan-json.md");
    let docs = fs::read_to_string(docs).unwrap();
    for field in plan.as_object().unwrap().keys().filter(|field| *field != "notes") {
        assert!(docs.contains(&format!("`{field}`")), "{field} is not in docs/plan-json.md");
    }
}

#[test]
fn unknown_machines_and_trainers_are_told_what_there_is() {
    let program = Program::new();
    assert!(program.complains(&["plan", &note(), "--gpu", "h100"]).contains("H100 SXM, H100 PCIe"));
    assert!(program.complains(&["plan", &note(), "--gpu", "tpu"]).contains("RTX 4090"));
    assert!(program.complains(&["plan", &note(), "--trainer", "kohya"]).contains("ai-toolkit"));
    assert!(program.complains(&["plan", "--model", "sdxl"]).contains("flux1-dev"));
    assert!(program.complains(&["plan", &note(), "--price-per-hour", "-1"]).contains("more than 0"));
    assert!(program.complains(&["plan", &note(), "--budget", "2"]).contains("2h"));
    assert!(program.complains(&["plan"]).contains("<JOB>"));
    let own = program.complains(&["plan", &note(), "--trainer", "ai-toolkit", "--gpu", "cpu"]);
    assert!(own.contains("does not train on processors"), "{own}");
}

#[test]
fn a_calibrated_processor_is_planned_for_by_default() {
    let program = Program::new();
    let folder = tempfile::tempdir().unwrap();
    let job = mini_job(folder.path(), "budget: 10m");
    let job = job.to_str().unwrap();
    assert!(program.prints(&["plan", job]).contains("H100 SXM"), "not calibrated: all GPUs");
    assert!(program.prints(&["plan", job, "--gpu", "cpu"]).contains("rates are assumed"));
    let text = program.prints(&["plan", "calibrate", "--time", "4s"]);
    assert!(text.contains("whole steps") && text.contains("stored in"), "{text}");
    let text = program.prints(&["plan", job]);
    assert!(!text.contains("H100") && !text.contains("assumed"), "{text}");
    // A budget without steps: as many as fit.
    assert!(text.contains("128×128") && text.contains("train, ") && text.contains("10 min"), "{text}");
    // Qwen-Image does not fit into this machine, so the GPUs are shown after all.
    assert!(program.prints(&["plan", &note(), "--memory-limit", "1GB"]).contains("H100 SXM"));
}

#[test]
fn runs_are_explained() {
    let program = Program::new();
    let explain = |more: &[&str]| program.prints(&[&["plan", "explain", "--duration", "2h"], more].concat());
    let text = explain(&["--steps", "1500", "--s-per-step", "4.5"]);
    assert!(text.contains("Finished") && text.contains("7 min 30 s, 6 %"), "{text}");
    let text = explain(&["--steps", "1500", "--s-per-step", "4..6", "--overhead", "5m"]);
    assert!(text.contains("up to 4.60 s") && text.contains("1150 of 1500"), "{text}");
    let text = program.prints(&["plan", "steps", "--budget", "3h", "--s-per-step", "5..7"]);
    assert!(text.starts_with("1450 steps") && text.contains("slow end"), "{text}");
    let missing = program.complains(&["plan", "explain", "--duration", "2h", "--steps", "1500"]);
    assert!(missing.contains("--s-per-step"), "{missing}");
}

#[test]
fn the_speed_is_read_from_logs() {
    let program = Program::new();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("run.log");
    fs::write(
        &log,
        "Caching: 100%|#| 20/20 [00:05<00:00, 3.5it/s]\nrun: 1%| | 12/1500 [00:54<1:51:36, \
        4.50s/it, lr: 1.0e-04 loss: 3.2e-01]\n",
    )
    .unwrap();
    let log = log.to_str().unwrap();
    let text = program.prints(&["plan", "explain", "--duration", "2h", "--log", log]);
    assert!(
        text.contains("12 steps at 4.5 s") && text.contains("1500 steps") && text.contains("6 %"),
        "{text}"
    );
    // A run folder: ten steps of 2 s, the first of which began after 5 s, and one pause of 3 s.
    let mut lines = String::new();
    for step in 1..=10 {
        let time_s = 5.0 + 2.0 * f64::from(step) + if step > 5 { 3.0 } else { 0.0 };
        lines += &format!(
            "{{\"step\":{step},\"time_s\":{time_s},\"loss\":0.1,\"lr\":1e-4,\"grad_norm\":1.0,\"s_per_step\":2.0,\"bucket\":\"64x64\"}}\n"
        );
    }
    fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
    let folder = folder.path().to_str().unwrap();
    let args = ["plan", "explain", "--duration", "60s", "--steps", "30", "--log", folder];
    let text = program.prints(&args);
    assert!(text.contains("10 steps at 2 s, 8.0 s of other work"), "{text}");
    assert!(text.contains("Killed after 26 of 30"), "{text}");
    // A run by a budget asked for no number of steps: it did what it did.
    let text = program.prints(&["plan", "explain", "--duration", "60s", "--log", folder]);
    assert!(text.contains("all 10 steps were done"), "{text}");
    let empty = program.complains(&["plan", "explain", "--duration", "60s", "--log", &note()]);
    assert!(empty.contains("no training steps"), "{empty}");
}

#[test]
fn a_deadline_moves_while_the_run_goes_on() {
    let program = Program::new();
    let folder = tempfile::tempdir().unwrap();
    let job = mini_job(folder.path(), "budget: 12s");
    let began = Instant::now();
    let mut run = program.command().arg("train").arg(&job).stdout(Stdio::piped()).spawn().unwrap();
    let results = folder.path().join("fox");
    while !results.join("metrics.jsonl").exists() {
        assert!(began.elapsed() < Duration::from_secs(12), "the training did not begin");
        thread::sleep(Duration::from_millis(50));
    }
    let text = program.prints(&["extend", results.to_str().unwrap(), "+6s"]);
    assert!(text.contains("6.0 s later"), "{text}");
    let lines: Vec<String> =
        BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
    assert!(run.wait().unwrap().success());
    let took_s = began.elapsed().as_secs_f64();
    let text = lines.join("\n");
    assert!(text.contains("6.0 s later"), "the new deadline is shown: {text}");
    assert!((13.0..18.5).contains(&took_s), "{took_s} s: {text}");
    assert!(results.join("fox.safetensors").is_file() && !results.join("deadline.request").exists());
}

#[test]
fn only_runs_are_extended() {
    let program = Program::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert!(program.complains(&["extend", path, "+5m"]).contains("config.yaml"));
    assert!(program.complains(&["extend", path, "5m"]).contains("+30m"));
    fs::write(folder.path().join("config.yaml"), "").unwrap();
    // Nobody would answer: told at once, and nothing is left behind.
    assert!(program.complains(&["extend", path, "+5m"]).contains("no run is under way"));
    assert!(!folder.path().join("deadline.request").exists());
    let held = fs::File::create(folder.path().join("run.lock")).unwrap();
    held.lock().unwrap();
    assert!(program.complains(&["extend", path, "2020-01-01T00:00:00Z"]).contains("has passed"));
    fs::write(folder.path().join("deadline.request"), "+5m").unwrap();
    assert!(program.complains(&["extend", path, "+5m"]).contains("still waiting"));
}

#[test]
fn fill_needs_a_budget_and_a_small_memory_limit_is_told() {
    let program = Program::new();
    let folder = tempfile::tempdir().unwrap();
    let job = mini_job(folder.path(), "memory_limit: 10MB");
    let text = fs::read_to_string(&job).unwrap().replace("batch_size: 1,", "batch_size: 1, steps: 3,");
    fs::write(&job, text).unwrap();
    let job = job.to_str().unwrap();
    assert!(program.complains(&["train", job, "--fill"]).contains("--budget"));
    let run = program.command().args(["train", job]).output().unwrap();
    let [text, warnings] = [run.stdout, run.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(run.status.success() && text.contains("3 steps"), "{text}{warnings}");
    assert!(warnings.contains("memory_limit"), "{warnings}");
}
