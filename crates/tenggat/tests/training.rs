//! Training by the command line: what a job says is done, and what it draws, measures and writes.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{job, some_pictures, tenggat, text};

fn pictures() -> PathBuf {
    common::demo_pictures("train")
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
        for part in ["fox.png has fox.caption beside it", "asks for fox.txt", "(heic): IMG_1.HEIC"] {
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

/// At a rate that changes nothing, a step of two batches has the mean loss of the two steps of one batch in
/// its place: no batch comes twice, and none is left out.
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
    assert!(bytes.windows(9).any(|w| w == b"samples/0") && bytes.windows(4).any(|w| w == b"\x89PNG"));
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
        // Blocks that recompute their activations drop the same ones.
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

/// With `low_vram` the modulation of the next steps is worked out ahead of them: the same losses up to
/// rounding, and a run that was cut off goes on to the same bytes.
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
