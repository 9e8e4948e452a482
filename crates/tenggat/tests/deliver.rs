//! `deliver: best` from outside: which LoRA of a run is delivered.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;

fn demo_dataset(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset").join(part)
}

/// Trains 20 steps; what was said, and whether the run succeeded.
fn train(folder: &Path, lr: &str, own: &str) -> (String, bool) {
    let text = format!(
        "job: extension
config:
  name: fox
  process:
    - type: sd_trainer
      training_folder: '{out}'
      training_seed: 5
      network: {{type: lora, linear: 4, linear_alpha: 4}}
      datasets: [{{folder_path: '{data}', resolution: 64}}]
      train: {{batch_size: 1, steps: 20, lr: {lr}, optimizer: adamw, timestep_type: sigmoid}}
      model: {{name_or_path: mini, arch: qwen_image}}
      tenggat: {{{own}}}
",
        out = folder.display(),
        data = demo_dataset("train").display()
    );
    fs::write(folder.join("job.yaml"), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tenggat"))
        .arg("train")
        .arg(folder.join("job.yaml"))
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (said, output.status.success())
}

/// Whether a LoRA changes anything.
fn is_zero(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .tensors()
        .iter()
        .filter(|(name, _)| name.contains("lora_B"))
        .all(|(_, t)| t.data().iter().all(|&b| b & 0x7f == 0))
}

#[test]
fn the_best_is_delivered_and_not_the_newest() {
    let held_out = demo_dataset("test");
    let best = format!("held_out: '{}', deliver: best", held_out.display());
    // A rate that ruins the model: what the run begins with is the best.
    for (lr, own, nothing) in
        [("3e-2", best.as_str(), true), ("1e-3", best.as_str(), false), ("3e-2", "deliver: newest", false)]
    {
        let folder = tempfile::tempdir().unwrap();
        let (said, success) = train(folder.path(), lr, own);
        assert!(success, "{said}");
        let run = folder.path().join("fox");
        assert_eq!(is_zero(&run.join("last.safetensors")), nothing, "{lr} {own}\n{said}");
        let same =
            fs::read(run.join("last.safetensors")).unwrap() == fs::read(run.join("fox.safetensors")).unwrap();
        assert!(same, "the finished LoRA is the last");
        // The last step's is kept beside a better one.
        assert_eq!(run.join("fox_000000020.safetensors").exists(), nothing, "{said}");
        assert_eq!(said.contains("after 20 steps, not an improvement"), nothing, "{said}");
    }
}

/// Without `resume` a start begins anew, and what was there is moved aside: but not a LoRA that changes
/// nothing.
#[test]
fn a_best_that_is_not_resumed_moves_results_aside_and_nothing_else() {
    let own = format!("held_out: '{}', deliver: best, resume: false", demo_dataset("test").display());
    let folder = tempfile::tempdir().unwrap();
    let (run, old) = (folder.path().join("fox"), folder.path().join("fox.old-1"));
    let (said, success) = train(folder.path(), "1e-3", &own);
    assert!(success && !is_zero(&run.join("last.safetensors")), "{said}");
    let first = fs::read(run.join("last.safetensors")).unwrap();
    // Killed before its first step: there is the LoRA that changes nothing.
    let mut child = Command::new(env!("CARGO_BIN_EXE_tenggat"));
    let mut child = child.arg("train").arg(folder.path().join("job.yaml")).spawn().unwrap();
    let began = std::time::Instant::now();
    while !old.exists() || !run.join("last.safetensors").exists() {
        assert!(began.elapsed().as_secs() < 60, "it never began");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(fs::read(old.join("last.safetensors")).unwrap() == first);
    assert!(is_zero(&run.join("last.safetensors")));
    let (said, success) = train(folder.path(), "1e-3", &own);
    assert!(success && !folder.path().join("fox.old-2").exists(), "{said}");
    assert!(fs::read(run.join("last.safetensors")).unwrap() == first, "the same run again");
}

#[test]
fn the_best_needs_pictures_to_measure_on() {
    let folder = tempfile::tempdir().unwrap();
    let (said, success) = train(folder.path(), "1e-3", "deliver: best");
    assert!(!success && said.contains("`held_out`"), "{said}");
    let (said, success) = train(folder.path(), "1e-3", "deliver: always");
    assert!(!success && said.contains("tenggat.deliver") && said.contains("newest"), "{said}");
}
