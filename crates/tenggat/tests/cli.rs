//! The program from outside: real processes, real files.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{job, tenggat, text};

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

/// Three pictures in `folder`, the last cut short after its header.
fn some_pictures(folder: &Path) -> PathBuf {
    let set = folder.join("set");
    fs::create_dir(&set).unwrap();
    for name in ["fox", "bell", "drum"] {
        for extension in ["png", "txt"] {
            let file = format!("{name}.{extension}");
            fs::copy(pictures().join(&file), set.join(&file)).unwrap();
        }
    }
    let whole = fs::read(set.join("drum.png")).unwrap();
    fs::write(set.join("drum.png"), &whole[..whole.len() / 2]).unwrap();
    set
}

#[test]
fn caches_lie_beside_the_pictures_and_a_broken_picture_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let set = some_pictures(folder.path());
    let path = job(folder.path(), "steps: 3, cache_text_embeddings: true");
    let with_caches = fs::read_to_string(&path)
        .unwrap()
        .replace(&pictures().display().to_string(), &set.display().to_string())
        .replace("resolution: 128,", "resolution: 128, cache_latents_to_disk: true,");
    fs::write(&path, with_caches).unwrap();
    let run = || {
        let output = tenggat().args(["train", "--start-over"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("drum.png"), "{}", text(&output));
        fs::read(folder.path().join("fox/fox.safetensors")).unwrap()
    };
    let files = |name: &str| fs::read_dir(set.join(name)).unwrap().count();
    let first = run();
    // Two whole pictures; a caption and the empty prompt of each.
    assert_eq!((files("_latent_cache"), files("_t_e_cache")), (2, 4));
    assert!(first == run(), "a run from the caches differs");
    let latent = fs::read_dir(set.join("_latent_cache")).unwrap().next().unwrap().unwrap().path();
    let before = fs::read(&latent).unwrap();
    fs::write(&latent, "spoilt").unwrap();
    assert!(first == run() && fs::read(&latent).unwrap() == before, "a spoilt cache is not made again");
    // Another image under the same name, as old as the first.
    let time = set.join("fox.png").metadata().unwrap().modified().unwrap();
    fs::copy(set.join("bell.png"), set.join("fox.png")).unwrap();
    fs::File::options().append(true).open(set.join("fox.png")).unwrap().set_modified(time).unwrap();
    let changed = run();
    assert!(first != changed, "the latent of the old image was used");
    fs::remove_dir_all(set.join("_latent_cache")).unwrap();
    assert!(run() == changed, "a run from an empty cache differs");
}

/// What `check` says of a data set, `train` says as well.
#[test]
fn captions_and_images_that_are_left_out_are_told_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let set = some_pictures(folder.path());
    fs::rename(set.join("fox.txt"), set.join("fox.caption")).unwrap();
    fs::write(set.join("IMG_1.HEIC"), "").unwrap();
    let path = job(folder.path(), "steps: 1");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replace(&pictures().display().to_string(), &set.display().to_string())).unwrap();
    for command in ["check", "train"] {
        let output = tenggat().arg(command).arg(&path).output().unwrap();
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        for part in ["beside fox.png lies fox.caption", "asks for fox.txt", "(heic): IMG_1.HEIC"] {
            assert!(said.contains(part), "{command}: {part}: {said}");
        }
    }
}

#[test]
fn samples_are_drawn_before_during_and_after_and_change_no_weight() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 5");
    let run = || {
        let output = tenggat().args(["train", "--start-over"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let tensors = fs::read(folder.path().join("fox/fox.safetensors")).unwrap();
        (tensors, folder.path().join("fox/samples"))
    };
    let (without, samples) = run();
    assert!(!samples.exists());
    let sample = "      sample:
        sample_every: 2
        format: png
        width: 64
        height: 32
        guidance_scale: 1
        sample_steps: 2
        prompts: ['fox', 'bell --w 96 --cfg 3 --d 4']
";
    let job = fs::read_to_string(&path).unwrap() + sample;
    fs::write(&path, &job).unwrap();
    let (with, samples) = run();
    let mut names: Vec<String> = fs::read_dir(&samples)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.split_once("__").unwrap().1.to_owned())
        .collect();
    names.sort();
    let expected = [0, 2, 4, 5].iter().flat_map(|s| [0, 1].map(|n| format!("00000000{s}_{n}.png")));
    assert_eq!(names, expected.collect::<Vec<_>>());
    let sheet = fs::read(folder.path().join("fox/sheets/000000004.png")).unwrap();
    let [width, height] = [16, 20].map(|at| u32::from_be_bytes(sheet[at..at + 4].try_into().unwrap()));
    assert!(width > 600 && height > 200, "{width}×{height}");
    let weights = |bytes: &[u8]| {
        let all = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let mut all: Vec<_> = all.tensors().into_iter().map(|(n, t)| (n, t.data().to_vec())).collect();
        all.sort();
        all
    };
    assert!(weights(&without) == weights(&with), "drawing samples changed the training");
    // A job may be too short for them.
    fs::write(
        &path,
        job.replace("steps: 5", "skip_first_sample: true").replace("sample_steps: 2", "sample_steps: 5000"),
    )
    .unwrap();
    let began = std::time::Instant::now();
    let output = tenggat().args(["train", "--start-over", "--budget", "6s"]).arg(&path).output().unwrap();
    assert!(output.status.success() && began.elapsed().as_secs_f64() < 6.5, "{}", text(&output));
}

/// Each of these changes what is trained, so each must change the LoRA.
#[test]
fn what_the_job_says_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 4, gradient_accumulation: 2, loss_type: mse");
    let plain = fs::read_to_string(&path).unwrap();
    let run = |job: &str| {
        fs::write(&path, job).unwrap();
        let output = tenggat().args(["train", "--start-over"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{job}\n{}", text(&output));
        fs::read(folder.path().join("fox/fox.safetensors")).unwrap()
    };
    let base = run(&plain);
    assert!(base == run(&plain));
    let model =
        |quantised: &str| plain.replace("arch: qwen_image", &format!("arch: qwen_image, {quantised}"));
    let process =
        |key: &str| plain.replace("      training_seed: 5", &format!("      training_seed: 5\n      {key}"));
    let jobs = [
        model("quantize: true, quantize_te: false, qtype: uint3"),
        model("quantize: true, quantize_te: false, qtype: float8"),
        model("quantize: false, quantize_te: true, qtype_te: qfloat8"),
        plain.replace("loss_type: mse", "loss_type: mae"),
        plain.replace("loss_type: mse", "loss_type: pseudo_huber"),
        plain.replace("loss_type: mse", "ema_config: {use_ema: true, ema_decay: 0.9}"),
        plain.replace("loss_type: mse", "lr_scheduler: linear"),
        process("tenggat: {compat: [summed-gradients]}"),
    ];
    let mut all = vec![base];
    for job in &jobs {
        let lora = run(job);
        assert!(!all.contains(&lora), "it trains as another job did: {job}");
        all.push(lora);
    }
    let ramp = "tenggat: {compat: [linear-ramp, constant-ema, step-names]}";
    let job = process(ramp).replace("loss_type: mse", "lr_scheduler: linear, ema_config: {use_ema: true}");
    assert!(!all.contains(&run(&job.replace("save_every: 100", "save_every: 2"))));
    assert!(folder.path().join("fox/fox_000000002.safetensors").is_file());
    let log = fs::read_to_string(folder.path().join("fox/metrics.jsonl")).unwrap();
    let rates: Vec<f64> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["lr"].as_f64().unwrap())
        .collect();
    assert!(
        rates.windows(2).all(|pair| pair[0] < pair[1]) && (rates[0] - 1e-3 / 3.0).abs() < 1e-9,
        "{rates:?}"
    );
    let missing = model("quantize: true, qtype: 'uint3|no/such/adapter.safetensors'");
    fs::write(&path, missing).unwrap();
    let output = tenggat().env("HF_HUB_OFFLINE", "1").arg("train").arg(&path).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("no/such/adapter"), "{}", text(&output));
}

/// At a rate that changes nothing, a step of two batches has the mean loss of the two steps of one batch in its place:
/// no batch comes twice, and none is left out.
#[test]
fn accumulated_batches_follow_one_another() {
    let losses = |train: &str| -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        let path = job(folder.path(), train);
        let text = fs::read_to_string(&path).unwrap().replace("lr: 1e-3", "lr: 1e-9");
        fs::write(&path, text).unwrap();
        let output = tenggat().args(["train", "--threads", "1"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", common::text(&output));
        let log = fs::read_to_string(folder.path().join("fox/metrics.jsonl")).unwrap();
        let loss =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
        log.lines().map(loss).collect()
    };
    let single = losses("steps: 9");
    assert!(single.windows(2).all(|pair| (pair[0] / pair[1] - 1.0).abs() > 1e-3), "{single:?}");
    for accumulation in [2, 3] {
        let steps = single.len() / accumulation;
        let summed = losses(&format!("steps: {steps}, gradient_accumulation: {accumulation}"));
        let expected = single.chunks(accumulation).map(|own| own.iter().sum::<f64>() / accumulation as f64);
        assert_eq!(summed.len(), steps);
        for (step, (loss, expected)) in summed.iter().zip(expected).enumerate() {
            assert!(
                (loss / expected - 1.0).abs() < 1e-4,
                "step {step} of {accumulation}: {loss}, expected {expected}"
            );
        }
    }
}

#[test]
fn training_starts_from_a_given_lora() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 1");
    let run = |name: &str, network: &str, lr: &str| {
        let changed = fs::read_to_string(&path)
            .unwrap()
            .replace("{type: lora, linear: 4, linear_alpha: 4}", network)
            .replace("lr: 1e-3", lr)
            .replace("bf16", "float32");
        fs::write(folder.path().join("other.yaml"), changed).unwrap();
        let run = ["train", "--name", name];
        let output = tenggat().args(run).arg(folder.path().join("other.yaml")).output().unwrap();
        (output, folder.path().join("fox/fox.safetensors"))
    };
    let (output, lora) = run("fox", "{type: lora, linear: 4}", "lr: 1e-3");
    assert!(output.status.success(), "{}", text(&output));
    let start = folder.path().join("start.safetensors");
    fs::copy(&lora, &start).unwrap();
    let network = format!("{{type: lora, linear: 4, pretrained_lora_path: '{}'}}", start.display());
    let (output, lora) = run("fox", &network, "lr: 0");
    assert!(output.status.success(), "{}", text(&output));
    let tensors = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> = all.tensors().into_iter().map(|(n, t)| (n, t.data().to_vec())).collect();
        all.sort();
        all
    };
    // A learning rate of zero leaves the weights as they were given.
    assert!(tensors(&start) == tensors(&lora));
    let (output, _) = run("fox", &network.replace("linear: 4", "linear: 2"), "lr: 0");
    assert!(!output.status.success() && text(&output).contains("rank 4"), "{}", text(&output));
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
    for part in
        ["drum.png is no whole picture", "2 pictures, 2 entries", "mini, whole", "7 steps", "ok, 1 warning"]
    {
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
    let (fine, said) = run(&["check", "my pictures.yaml"]);
    assert!(fine && said.contains("ok, 0 warnings"), "{said}");
    let (fine, said) = run(&init);
    assert!(!fine && said.contains("is there already"), "{said}");
    let (fine, said) = run(&["init", "nowhere"]);
    assert!(!fine && said.contains("nowhere"), "{said}");
}

/// Masks, regularisation, drawn cuts, strength of the adapter and random triggers in one run.
#[test]
fn data_sets_with_masks_and_regularisation_are_trained() {
    let folder = tempfile::tempdir().unwrap();
    let set = some_pictures(folder.path());
    let masks = folder.path().join("masks");
    fs::create_dir(&masks).unwrap();
    let path = job(folder.path(), "steps: 4, reg_weight: 0.5");
    let whole = fs::read_to_string(&path).unwrap();
    let lora = |masked: &str, regularised: &str| {
        let own = format!("folder_path: '{}', resolution: 64, {masked}}}", set.display());
        let from = whole.find("folder_path: '").unwrap();
        let to = whole[from..].find('}').unwrap() + from + 1;
        let reg = format!("\n        - {{folder_path: '{}', resolution: 64, {regularised}}}", set.display());
        let text = [&whole[..from], &own, &reg, &whole[to..]].concat();
        fs::write(&path, text).unwrap();
        let output = tenggat().arg("train").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", self::text(&output));
        fs::read(folder.path().join("fox/fox.safetensors")).unwrap()
    };
    let plain = lora("num_repeats: 1", "is_reg: true");
    assert!(
        plain == lora(&format!("mask_path: '{}'", masks.display()), "is_reg: true"),
        "no mask changes nothing"
    );
    fs::copy(pictures().join("bell.png"), masks.join("fox.png")).unwrap();
    for (masked, regularised) in [
        (format!("mask_path: '{}', mask_min_value: 0.1", masks.display()), "is_reg: true"),
        ("num_repeats: 1".into(), "is_reg: true, loss_multiplier: 0.5"),
        ("num_repeats: 1".into(), "num_repeats: 1"),
        ("network_weight: 0.5".into(), "is_reg: true"),
        ("random_triggers: [x, y]".into(), "is_reg: true"),
    ] {
        assert!(plain != lora(&masked, regularised), "{masked}; {regularised}: the same LoRA");
    }
}

#[test]
fn a_log_folder_gets_tensorboard_files_and_samples_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 3");
    let logs = folder.path().join("logs");
    let sample = "      sample: {width: 32, height: 32, sample_steps: 1, prompts: ['a fox --d 9 --cfg 1'], format: png}\n";
    let whole = fs::read_to_string(&path).unwrap() + sample;
    fs::write(&path, whole.replace("training_seed: 5", &format!("log_dir: '{}'", logs.display()))).unwrap();
    let output = tenggat().arg("train").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let events = fs::read_dir(logs.join("fox")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(events).unwrap();
    assert_eq!(bytes.windows(9).filter(|w| w == b"loss/loss").count(), 3);
    let picture = fs::read_dir(folder.path().join("fox/samples")).unwrap().next().unwrap().unwrap().path();
    let picture = String::from_utf8_lossy(&fs::read(picture).unwrap()).into_owned();
    for part in [
        "parameters",
        "a fox\nSteps: 1, Sampler: Euler, CFG scale: 1, Seed: 9, Size: 32x32, Model: mini",
        "LoRA: fox after",
    ] {
        assert!(picture.contains(part), "{part}");
    }
}

#[test]
fn dropout_and_a_largest_loss_change_the_training_and_keep_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 4");
    let whole = fs::read_to_string(&path).unwrap();
    let run = |from: &str, to: &str, memory: &str| {
        assert!(whole.contains(from));
        fs::write(&path, whole.replace(from, to)).unwrap();
        let output = tenggat().arg("train").arg(&path).args(["--memory-limit", memory]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        fs::read(folder.path().join("fox/fox.safetensors")).unwrap()
    };
    let plain = run("steps: 4", "steps: 4", "64GB");
    let alpha = "linear_alpha: 4";
    let kinds =
        ["dropout: 0.5", "network_kwargs: {rank_dropout: 0.5}", "network_kwargs: {module_dropout: 0.5}"];
    for kind in kinds {
        let own = format!("{alpha}, {kind}");
        let dropped = run(alpha, &own, "64GB");
        assert!(plain != dropped, "{kind}");
        // Blocks that compute their activations again drop the same ones.
        assert!(dropped == run(alpha, &own, "100MB"), "{kind}: not the same when computed again");
    }
    assert!(plain == run("steps: 4", "steps: 4, max_loss: 100", "64GB"));
    assert!(plain != run("steps: 4", "steps: 4, max_loss: 0.1", "64GB"));
}

#[test]
fn kronecker_products_are_trained_drawn_and_started_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 30");
    let whole = fs::read_to_string(&path).unwrap();
    let run = |network: &str, steps: &str, lr: &str| {
        let job = whole.replace("type: lora, linear: 4, linear_alpha: 4", network);
        fs::write(&path, job.replace("steps: 30", steps).replace("lr: 1e-3", lr)).unwrap();
        let output = tenggat().arg("train").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let file = folder.path().join("fox/fox.safetensors");
        (fs::read(&file).unwrap(), file)
    };
    let (bytes, file) = run("type: lokr, lokr_factor: 8, linear: 4", "steps: 30", "lr: 1e-3");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let moved = |name: &str| {
        let view = tensors.tensor(&format!("diffusion_model.transformer_blocks.0.attn.{name}")).unwrap();
        view.data().iter().any(|&b| b != 0)
    };
    assert!(moved("to_q.lokr_w1") && moved("to_q.lokr_w2"));
    let picture = |lora: Option<&Path>| {
        let out = folder.path().join("fox.png");
        let mut sample = tenggat();
        sample.args(["sample", "--model", "mini", "--prompt", "fox", "--size", "64x64", "--steps", "4"]);
        sample.arg("--out").arg(&out);
        if let Some(lora) = lora {
            sample.arg("--lora").arg(lora);
        }
        let output = sample.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        fs::read(out).unwrap()
    };
    assert!(picture(None) != picture(Some(&file)));
    let start = folder.path().join("start.safetensors");
    fs::copy(&file, &start).unwrap();
    fs::remove_dir_all(folder.path().join("fox")).unwrap();
    let network = format!("type: lokr, lokr_factor: 8, pretrained_lora_path: '{}'", start.display());
    let (again, _) = run(&network, "steps: 1", "lr: 0");
    let again = safetensors::SafeTensors::deserialize(&again).unwrap();
    for (name, view) in tensors.tensors() {
        assert!(view.data() == again.tensor(&name).unwrap().data(), "{name}");
    }
}

#[test]
fn validation_measures_the_same_every_time_and_keeps_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 25");
    let whole = fs::read_to_string(&path).unwrap();
    let run = |text: &str| {
        fs::write(&path, text).unwrap();
        let output = tenggat().arg("train").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", self::text(&output));
        let results = folder.path().join("fox");
        let log = fs::read_to_string(results.join("metrics.jsonl")).unwrap();
        let losses: Vec<(u64, f64)> = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter_map(|line| Some((line["step"].as_u64()?, line.get("val_loss")?.as_f64()?)))
            .collect();
        let best = fs::read(results.join("fox_best.safetensors")).ok();
        let lora = fs::read(results.join("fox.safetensors")).unwrap();
        fs::remove_dir_all(results).unwrap();
        (losses, best, lora, self::text(&output))
    };
    let picture = pictures().join("bell.png");
    let validated = whole.replace(
        "steps: 25",
        &format!(
            "steps: 25, validation_config: {{validate_every_n_steps: 10, resolution: 64, validation_items: \
             [{{image_path: '{}', prompt: bell}}, {{image_path: /nowhere.png}}]}}",
            picture.display()
        ),
    );
    let keeping = validated.replace("training_seed: 5", "training_seed: 5\n      tenggat: {keep_best: true}");
    let (none, _, plain, _) = run(&whole);
    let (losses, no_best, lora, said) = run(&validated);
    assert!(none.is_empty() && no_best.is_none() && plain == lora);
    assert!(said.contains("/nowhere.png"), "{said}");
    assert_eq!(losses.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 10, 20]);
    assert!(losses.iter().all(|(_, loss)| (0.0..10.0).contains(loss)) && losses[0].1 != losses[2].1);
    let (again, best, _, _) = run(&keeping);
    assert_eq!(losses, again);
    assert!(best.is_some());
    fs::write(&path, keeping.replace("validation_config", "ignored_config")).unwrap();
    let output = tenggat().arg("check").arg(&path).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("keep_best"), "{}", text(&output));
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

/// With `low_vram` the modulation of the next steps is worked out ahead of them: the same losses up to rounding, and a
/// run that was cut off goes on to the same bytes.
#[test]
fn modulation_ahead_of_the_steps_trains_as_modulation_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = job(folder.path(), "steps: 6");
    let six = fs::read_to_string(&path).unwrap();
    let run = |job: &str, name: &str| {
        fs::write(&path, job).unwrap();
        let output = tenggat().args(["train", "--name", name]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let results = folder.path().join(name);
        let log = fs::read_to_string(results.join("metrics.jsonl")).unwrap();
        let losses: Vec<f64> = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap())
            .collect();
        let file = fs::read(results.join("last.safetensors")).unwrap();
        // The header holds the name of the run.
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        (losses, file[8 + header..].to_vec())
    };
    let ahead = six.replace("name_or_path: mini,", "name_or_path: mini, low_vram: true,");
    let (direct, (losses, whole)) = (run(&six, "direct").0, run(&ahead, "whole"));
    assert_eq!(losses.len(), 6);
    for (loss, direct) in losses.iter().zip(&direct) {
        assert!((loss / direct - 1.0).abs() < 1e-4, "{losses:?} {direct:?}");
    }
    run(&ahead.replace("steps: 6", "steps: 3"), "halves");
    assert!(run(&ahead, "halves") == (losses, whole), "a run in two halves");
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
