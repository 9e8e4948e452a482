//! `tenggat check` refuses what a run could not do.

mod common;
#[path = "../../tenggat-job/src/tests/mutant.rs"]
mod mutant;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{ends, job, tenggat, text};

/// Exit code and words of `tenggat check` on the job of [`job`] with one piece replaced.
fn check(folder: &Path, from: &str, to: &str) -> (Option<i32>, String) {
    let path = job(folder, "steps: 3");
    let whole = fs::read_to_string(&path).unwrap();
    assert!(whole.contains(from), "{from}");
    fs::write(&path, whole.replacen(from, to, 1)).unwrap();
    let mut command = tenggat();
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder).args(["--device", "cpu", "check"]);
    let output = command.arg(&path).output().unwrap();
    (output.status.code(), text(&output))
}

#[test]
fn what_a_run_could_not_do_is_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let out = format!("training_folder: {}", folder.path().display());
    let in_file = format!("training_folder: {}", file.display());
    let kwargs = |kwargs: &str| format!("linear_alpha: 4, network_kwargs: {{{kwargs}}}}}");
    let (nothing, everything) =
        (kwargs("only_if_contains: [nothing_matches]"), kwargs("ignore_if_contains: [transformer_blocks]"));
    // The text half of the last of six blocks feeds nothing.
    let unused = kwargs("only_if_contains: [transformer_blocks.5.txt_mlp]");
    let long = format!("{out}/{}", "x".repeat(300));
    for (from, to, part) in [
        (out.as_str(), long.as_str(), "too many for a name"),
        ("linear_alpha: 4}", nothing.as_str(), "no module is trained"),
        ("linear_alpha: 4}", &everything, "no module is trained"),
        ("linear_alpha: 4}", &unused, "no module is trained"),
        (&out, &in_file, "is not a folder"),
        ("name_or_path: mini", "name_or_path: Qwen/Qwen-Image-Edit-2509", "Qwen-Image-Edit"),
        ("name_or_path: mini", "name_or_path: black-forest-labs/FLUX.1-dev", "is FLUX"),
        ("training_seed: 5", "training_seed: 5\n      tenggat: {held_out: ./nowhere}", "nowhere"),
    ] {
        let (code, said) = check(folder.path(), from, to);
        assert_eq!(code, Some(1), "{to}: {said}");
        assert!(said.contains("problem: ") && said.contains(part), "{to}: {said}");
    }
    // A limit of one's own is kept as well as possible.
    let small = "training_seed: 5\n      tenggat: {memory_limit: 2MB}";
    for (from, to) in [("steps: 3", "steps: 4"), ("training_seed: 5", small)] {
        let (code, said) = check(folder.path(), from, to);
        assert_eq!(code, Some(0), "{to}: {said}");
    }
}

#[test]
fn a_job_with_many_faults_needs_one_check() {
    let folder = tempfile::tempdir().unwrap();
    let faults = "lr: 1e-3, gradient_accumulation: 0, loss_type: wavelet, content_or_style: both, ";
    let (code, said) = check(folder.path(), "lr: 1e-3, ", faults);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: 3 things are wrong:"), "{said}");
    for part in
        ["gradient_accumulation`: 0 is out of range", "`wavelet` is not supported", "`both` is not known"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_model_folder_of_another_family_or_of_absurd_size_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("edit");
    fs::create_dir_all(&model).unwrap();
    fs::write(model.join("model_index.json"), r#"{"_class_name": "QwenImageEditPlusPipeline"}"#).unwrap();
    let named = format!("name_or_path: {}", model.display());
    let (code, said) = check(folder.path(), "name_or_path: mini", &named);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`QwenImageEditPlusPipeline` is not supported"), "{said}");

    let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/model");
    let model = folder.path().join("absurd");
    copy(&mini, &model);
    let config = model.join("transformer/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let named = format!("name_or_path: {}", model.display());
    for layers in ["0", "2147483648", "18446744073709551615"] {
        fs::write(&config, text.replace("\"num_layers\": 6", &format!("\"num_layers\": {layers}"))).unwrap();
        let (code, said) = check(folder.path(), "name_or_path: mini", &named);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("num_layers") && said.contains("expected 1 to 512"), "{said}");
    }
    // Terabytes, which no machine has, though the folder is whole.
    let huge = text.replace("\"num_layers\": 6", "\"num_layers\": 512");
    let huge = huge.replace("\"num_attention_heads\": 3", "\"num_attention_heads\": 128");
    assert!(huge.contains("512") && huge.contains("128,"), "{huge}");
    fs::write(&config, huge).unwrap();
    let (code, said) = check(folder.path(), "name_or_path: mini", &named);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("more memory than this machine has"), "{said}");
}

/// Copies a folder and all in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => fs::copy(entry.path(), target).map(drop).unwrap(),
        }
    }
}

/// Mutants that the test tries; `TENGGAT_MUTANTS` asks for more.
const MUTANTS: u64 = 40;

#[test]
fn spoilt_jobs_end_a_check_with_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read_to_string(job(folder.path(), "steps: 3")).unwrap();
    // Two pictures, and values of all kinds.
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    let all = fs::read_dir(common::demo_pictures("train")).unwrap();
    for picture in
        all.filter(|entry| entry.as_ref().is_ok_and(|e| e.path().extension() == Some("png".as_ref()))).take(2)
    {
        let path = picture.unwrap().path();
        fs::copy(&path, pictures.join(path.file_name().unwrap())).unwrap();
    }
    let whole =
        whole.replace(&common::demo_pictures("train").display().to_string(), &pictures.display().to_string());
    let rich = whole.replace(
        "lr: 1e-3",
        "lr: 1e-3, gradient_accumulation: 2, min_denoising_steps: 5, max_loss: 3, noise_offset: 0.1, \
         optimizer_params: {betas: [0.9, 0.95], eps: 1e-8}, ema_config: {use_ema: true, ema_decay: 0.9}",
    );
    let rich = rich.replace(
        "      model:",
        "      sample: {sample_every: 2, width: 64, height: 64, sample_steps: 2, prompts: [a --w 32, b]}\n      model:",
    );
    let path = folder.path().join("mutant.yaml");
    for number in 0..mutant::count(MUTANTS) {
        let text = mutant::mutant(number, &[&whole, &rich]);
        fs::write(&path, &text).unwrap();
        let mut command = tenggat();
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.path()).current_dir(folder.path());
        command.args(["--device", "cpu", "check"]).arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
        let status = ends(&mut command.spawn().unwrap(), Duration::from_secs(60));
        assert!(matches!(status.code(), Some(0 | 1)), "mutant {number}: {status}\n{text}");
    }
}
