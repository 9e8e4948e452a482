//! The program from outside: real processes, real files.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{job, some_pictures, tenggat, text};

fn pictures() -> PathBuf {
    common::demo_pictures("train")
}

#[test]
fn a_seed_gives_the_same_bytes_with_one_thread_and_with_two() {
    let run = |threads: &str| {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path(), "steps: 250");
        let output = tenggat().args(["train", "--threads", threads]).arg(&job).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let results = folder.path().join("fox");
        assert!(results.join("fox_000000200.safetensors").is_file(), "the newest numbered file is kept");
        assert!(!results.join("fox_000000100.safetensors").exists(), "older ones are not");
        assert!(results.join("config.yaml").is_file() && results.join("loss.png").is_file());
        let log = fs::read_to_string(results.join("metrics.jsonl")).unwrap();
        assert_eq!(log.lines().count(), 250);
        let (finished, last) = (results.join("fox.safetensors"), results.join("last.safetensors"));
        assert_eq!(fs::read(&finished).unwrap(), fs::read(last).unwrap());
        fs::read(finished).unwrap()
    };
    let one = run("1");
    assert!(one.len() > 100_000);
    assert!(one == run("2"), "the LoRA depends on the number of threads");
}

#[test]
fn results_of_another_run_survive() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "steps: 2");
    let plain = fs::read_to_string(&job).unwrap();
    for (lr, more) in [("1e-3", None), ("2e-3", None), ("2e-3", Some("--start-over"))] {
        fs::write(&job, plain.replace("lr: 1e-3", &format!("lr: {lr}"))).unwrap();
        let output = tenggat().arg("train").arg(&job).args(more).output().unwrap();
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        let why = "fox.old-1, because the job changed: `train.lr` was 0.001 and is 0.002";
        assert_eq!(said.contains(why), lr == "2e-3" && more.is_none(), "{said}");
    }
    for name in ["fox", "fox.old-1", "fox.old-2"] {
        assert!(folder.path().join(name).join("fox.safetensors").is_file(), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_exits_with_zero() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "steps: 1000000");
    let mut child = tenggat().arg("train").arg(&job).stdout(Stdio::piped()).spawn().unwrap();
    let log = folder.path().join("fox/metrics.jsonl");
    let steps = || fs::read_to_string(&log).map_or(0, |s| s.lines().count());
    let began = std::time::Instant::now();
    while steps() < 3 {
        assert!(began.elapsed().as_secs() < 120 && child.try_wait().unwrap().is_none(), "no step was made");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert!(child.wait().unwrap().success());
    let lora = fs::read(folder.path().join("fox/fox.safetensors")).unwrap();
    assert!(safetensors::SafeTensors::deserialize(&lora).unwrap().len() >= 28);
}

#[test]
fn a_budget_ends_the_run_with_a_whole_lora() {
    let folder = tempfile::tempdir().unwrap();
    let output = tenggat()
        .args(["demo", "--budget", "15s", "--out"])
        .arg(folder.path().join("demo"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let lora = fs::read(folder.path().join("demo/demo.safetensors")).unwrap();
    let lora = safetensors::SafeTensors::deserialize(&lora).unwrap();
    // 6 blocks, 14 modules each, A and B.
    assert_eq!(lora.len(), 6 * 14 * 2);
    assert!(lora.names().iter().all(|n| n.starts_with("diffusion_model.transformer_blocks.")));
}

#[test]
fn samples_are_reproducible_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let draw = |name: &str| {
        let path = folder.path().join(name);
        let output = tenggat()
            .args(["sample", "--model", "mini", "--prompt", "red apple, noto style", "--size", "64x96"])
            .args(["--steps", "2", "--guidance", "2", "--out"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        fs::read(path).unwrap()
    };
    let first = draw("a.png");
    assert!(first.starts_with(b"\x89PNG") && first == draw("b.png"));
}

/// Runs and returns what was said; the exit code must be `code`.
fn fails(arguments: &[&str], code: i32) -> String {
    let output = tenggat().args(arguments).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    text(&output)
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let said = fails(&["train", &path("no.yaml")], 1);
    assert!(said.contains("no.yaml") && said.matches("os error").count() == 1, "{said}");

    let good = job(folder.path(), "steps: 2");
    let text = fs::read_to_string(&good).unwrap();
    let broken = |name: &str, from: &str, to: &str| {
        assert!(text.contains(from));
        fs::write(folder.path().join(name), text.replace(from, to)).unwrap();
        path(name)
    };
    let said = fails(&["train", &broken("lr.yaml", "lr: 1e-3", "lr: fast")], 1);
    assert!(said.contains("lr.yaml:12:") && said.contains("fast"), "{said}");
    let said = fails(&["train", &broken("steps.yaml", ", steps: 2", ", steps: many")], 1);
    assert!(
        said.contains("steps.yaml:12:") && said.contains("whole number, got the text \"many\""),
        "{said}"
    );
    let said = fails(&["train", &broken("arch.yaml", "name_or_path: mini, ", "")], 1);
    assert!(said.contains("arch.yaml:13:") && said.contains("name_or_path` is missing"), "{said}");
    let said = fails(&["train", &broken("empty.yaml", &text, "")], 1);
    assert!(said.contains("empty.yaml:1:1: expected a section of keys"), "{said}");
    let said =
        fails(&["train", &broken("model.yaml", "name_or_path: mini", "name_or_path: no/such-model")], 1);
    assert!(said.contains("no/such-model"), "{said}");
    let data = pictures().display().to_string();
    let said = fails(&["train", &broken("data.yaml", &data, "/nowhere")], 1);
    assert!(said.contains("/nowhere") && said.matches("os error").count() == 1, "{said}");
    // Told before the model is read.
    assert!(!said.contains("load"), "{said}");

    let good = good.display().to_string();
    assert!(fails(&["train", &good, "--budget", "soon"], 1).contains("soon"));
    assert!(fails(&["train", &good, "--deadline", "2020-01-01T00:00:00Z"], 1).contains("has passed"));
    assert!(
        fails(&["sample", "--model", "mini", "--prompt", "x", "--size", "big"], 1).contains("--size big")
    );
    assert!(fails(&["train"], 2).contains("Usage"));
}

#[test]
fn help_doctor_and_completions_answer() {
    for arguments in [&["--help"][..], &["train", "--help"], &["doctor"], &["completions", "bash"]] {
        let output = tenggat().args(arguments).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 200, "{arguments:?}: {}", text(&output));
    }
    assert!(text(&tenggat().arg("--help").output().unwrap()).contains("Exit codes"));
}

#[test]
fn check_tells_what_a_run_would_meet_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let set = some_pictures(folder.path());
    let path = job(folder.path(), "steps: 7");
    let whole = fs::read_to_string(&path).unwrap();
    let own = whole.replace(&pictures().display().to_string(), &set.display().to_string());
    fs::write(&path, &own).unwrap();
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        tenggat().arg("check").arg(&path).output().unwrap()
    };
    let fine = check(&own);
    let said = text(&fine);
    assert!(fine.status.success(), "{said}");
    for part in [
        "drum.png is not a usable image",
        "2 images, 2 entries",
        "mini, complete",
        "7 steps",
        "ok, 1 warning",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!folder.path().join("fox").exists());
    for (from, to, part) in [
        ("name_or_path: mini", "name_or_path: ./nowhere", "./nowhere"),
        ("lr: 1e-3", "lr: fast", "job.yaml:"),
        (&set.display().to_string(), "/nowhere", "/nowhere"),
        ("alpha: 4}", "alpha: 4, pretrained_lora_path: none.safetensors}", "none.safetensors"),
    ] {
        let refused = check(&own.replace(from, to));
        assert_eq!(refused.status.code(), Some(1), "{to}");
        assert!(text(&refused).contains(part), "{to}: {}", text(&refused));
    }
}

#[test]
fn init_writes_a_job_that_check_accepts_and_spares_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("my pictures");
    fs::create_dir(&set).unwrap();
    for file in ["fox.png", "bell.png", "bell.txt"] {
        let from = pictures().join(file);
        if from.exists() {
            fs::copy(from, set.join(file)).unwrap();
        }
    }
    fs::copy(pictures().join("drum.png"), set.join("drum.png")).unwrap();
    let run = |arguments: &[&str]| {
        let output = tenggat().current_dir(folder.path()).args(arguments).output().unwrap();
        (output.status.success(), text(&output))
    };
    let init = ["init", "my pictures", "--model", "mini", "--trigger", "b3ll: x"];
    let (fine, said) = run(&init);
    assert!(fine && said.contains("my pictures.yaml"), "{said}");
    let written = fs::read_to_string(folder.path().join("my pictures.yaml")).unwrap();
    assert!(written.contains("log_dir: output/logs"), "{written}");
    let (fine, said) = run(&["check", "my pictures.yaml"]);
    assert!(fine && said.contains("ok, 0 warnings"), "{said}");
    let (fine, said) = run(&init);
    assert!(!fine && said.contains("already exists"), "{said}");
    let (fine, said) = run(&["init", "nowhere"]);
    assert!(!fine && said.contains("nowhere"), "{said}");
}

#[test]
fn an_upload_without_a_token_is_told_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 2");
    let push = "save: {push_to_hub: true, hf_repo_id: me/fox, hf_private: true, ";
    let text = fs::read_to_string(&path).unwrap().replace("save: {", push);
    fs::write(&path, text).unwrap();
    let mut train = tenggat();
    train.arg("train").arg(&path).env("HF_HOME", folder.path()).env_remove("HF_TOKEN");
    let output = train.output().unwrap();
    assert!(!output.status.success() && self::text(&output).contains("HF_TOKEN"), "{}", self::text(&output));
    assert!(!folder.path().join("fox").exists());
    // A hub that refuses costs the upload, not the run.
    let hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in hub.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut request);
            let refusal = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            let _ = std::io::Write::write_all(&mut stream, refusal);
        }
    });
    let mut train = tenggat();
    train.arg("train").arg(&path).env("HF_TOKEN", "x").env("HF_ENDPOINT", endpoint);
    let output = train.output().unwrap();
    assert!(output.status.success() && self::text(&output).contains("me/fox"), "{}", self::text(&output));
    assert!(folder.path().join("fox/fox.safetensors").is_file());
}

#[test]
fn an_upload_that_hangs_does_not_outlast_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "batch_size: 1");
    let push = "save: {push_to_hub: true, hf_repo_id: me/fox, ";
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("save: {", push)).unwrap();
    // It takes every request and answers none.
    let hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    let mut train = tenggat();
    train.args(["train", "--budget", "14s"]).arg(&path).env("HF_TOKEN", "x").env("HF_ENDPOINT", endpoint);
    let began = std::time::Instant::now();
    let output = train.output().unwrap();
    let (took_s, said) = (began.elapsed().as_secs_f64(), text(&output));
    assert!(output.status.success() && took_s < 14.0, "{took_s} s: {said}");
    assert!(said.contains("before the upload to me/fox was done"), "{said}");
    assert!(folder.path().join("fox/fox.safetensors").is_file());
    // Some of the budget had been kept for it.
    let log = fs::read_to_string(folder.path().join("fox/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert!(last["time_s"].as_f64().unwrap() < 9.0, "{last}");
}

#[test]
fn a_job_without_steps_takes_a_thousand_unless_there_is_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "batch_size: 1");
    let check = || text(&tenggat().arg("check").arg(&path).output().unwrap());
    let said = check();
    assert!(said.contains("1000 steps, as in ai-toolkit") && said.contains("1000 steps, batch 1"), "{said}");
    let job = fs::read_to_string(&path).unwrap();
    fs::write(&path, job.replace("training_seed: 5", "training_seed: 5\n      tenggat: {budget: 1m}"))
        .unwrap();
    assert!(check().contains("steps by the budget, batch 1"), "{}", check());
}

#[test]
fn check_accepts_every_example() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("pictures");
    fs::create_dir(&set).unwrap();
    for name in ["fox", "bell"] {
        // As large as the examples' resolutions: smaller images are warned of.
        let image = image::open(pictures().join(name).with_extension("png")).unwrap();
        image
            .resize(1328, 1328, image::imageops::Triangle)
            .save(set.join(name).with_extension("png"))
            .unwrap();
        let caption = Path::new(name).with_extension("txt");
        fs::copy(pictures().join(&caption), set.join(&caption)).unwrap();
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").canonicalize().unwrap();
    let mut count = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        let mut check = tenggat();
        check.current_dir(folder.path()).env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.path());
        let output = check.arg("check").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}: {}", path.display(), text(&output));
        assert!(text(&output).contains("ok, 0 warnings"), "{}: {}", path.display(), text(&output));
        count += 1;
    }
    assert_eq!(count, 4);
}

#[test]
fn a_step_of_the_real_width_is_measured_without_a_file() {
    let output = tenggat()
        .args(["bench", "step", "--random-weights", "--layers", "1", "--qtype", "uint3", "--rank", "4"])
        .arg("--fp8-products")
        .args(["--resolution", "64", "--text-tokens", "8", "--warm-up", "0", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["blocks"], 1);
    // No processor multiplies 8-bit floats: a warning, and the usual way.
    assert!(text(&output).contains("--fp8-products has no effect"), "{}", text(&output));
    assert_eq!(report["fp8_products"], false);
    let seconds = &report["seconds"];
    let parts = ["modulation", "forward", "backward", "update"].map(|part| seconds[part].as_f64().unwrap());
    assert!(parts.iter().all(|s| *s > 0.0), "{report}");
    assert!((parts.iter().sum::<f64>() / seconds["step"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    // 113 M weights without modulation at 3.4 bits, and nothing larger on the way there.
    let memory = &report["memory"];
    let planned = memory["planned_bytes"].as_f64().unwrap();
    assert!((0.1e9..0.5e9).contains(&planned), "{report}");
    if let Some(measured) = memory["measured_bytes"].as_f64() {
        assert!((planned / measured - 1.0).abs() < 0.3, "{planned} {measured}");
    }
    let output = tenggat().args(["bench", "step", "--model", "qwen-image"]).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("--random-weights"), "{}", text(&output));
}

#[test]
fn a_model_is_quantised_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = |qtype: &str| {
        let args = ["quantise", "mini", "--qtype", qtype, "--cache"];
        tenggat().args(args).arg(folder.path()).output().unwrap()
    };
    let files = || fs::read_dir(folder.path().join("quantised")).unwrap().count();
    for (qtype, said, count) in
        [("uint3", "quantised", 1), ("uint3", "there already", 1), ("qfloat8", "quantised", 2)]
    {
        let output = run(qtype);
        assert!(output.status.success() && text(&output).contains(said), "{qtype}: {}", text(&output));
        assert_eq!(files(), count);
    }
    let output = run("uint9");
    assert!(!output.status.success() && text(&output).contains("uint9"), "{}", text(&output));
    let output = run("uint3|nowhere/adapter.safetensors");
    assert!(!output.status.success() && text(&output).contains("recovery adapter"), "{}", text(&output));
}
