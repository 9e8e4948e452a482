//! What tests of the command line share: the program, jobs on the mini model, and the end of a process.
// Each test file uses a part of it.
#![allow(dead_code)]

pub mod small_job;
pub mod trainer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

/// The program.
pub fn tenggat() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tenggat"))
}

/// The demo's pictures: `train` or `test`.
pub fn demo_pictures(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset").join(part)
}

/// A job on the mini model in `folder`, with results in `folder/fox`; `steps` as YAML, for example `steps:
/// 200`.
pub fn job(folder: &Path, steps: &str) -> PathBuf {
    let (out, data) = (folder.display(), demo_pictures("train"));
    let text = format!(
        "job: extension
config:
  name: fox
  process:
    - type: sd_trainer
      training_folder: {out}
      training_seed: 5
      network: {{type: lora, linear: 4, linear_alpha: 4}}
      save: {{dtype: bf16, save_every: 100, max_step_saves_to_keep: 1}}
      datasets:
        - {{folder_path: '{}', resolution: 128, caption_dropout_rate: 0.5}}
      train: {{batch_size: 1, lr: 1e-3, optimizer: adamw, timestep_type: sigmoid, {steps}}}
      model: {{name_or_path: mini, arch: qwen_image}}
",
        data.display()
    );
    let path = folder.join("job.yaml");
    fs::write(&path, text).unwrap();
    path
}

/// All that was said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits for the end of a process; one that does not end is killed and fails the test.
pub fn ends(child: &mut Child, within: Duration) -> ExitStatus {
    let began = Instant::now();
    while began.elapsed() < within {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("it had not ended after {within:?}");
}

/// Steps in the log of a run.
pub fn logged_steps(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Three pictures in `folder`, the last cut short after its header.
pub fn some_pictures(folder: &Path) -> PathBuf {
    let set = folder.join("set");
    fs::create_dir(&set).unwrap();
    for name in ["fox", "bell", "drum"] {
        for extension in ["png", "txt"] {
            let file = format!("{name}.{extension}");
            fs::copy(demo_pictures("train").join(&file), set.join(&file)).unwrap();
        }
    }
    let whole = fs::read(set.join("drum.png")).unwrap();
    fs::write(set.join("drum.png"), &whole[..whole.len() / 2]).unwrap();
    set
}
