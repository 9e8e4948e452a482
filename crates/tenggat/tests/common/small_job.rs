//! A small job on the built-in model, and processes that train it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A job on the mini model with everything that keeps a state: 8-bit moments, an average, drawn captions, a
/// schedule.
pub struct Job {
    pub folder: tempfile::TempDir,
}

impl Job {
    /// `train` and `process` are further keys.
    pub fn new(train: &str, process: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("set");
        fs::create_dir(&set).unwrap();
        let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset/train");
        for name in ["fox", "bell", "drum"] {
            for extension in ["png", "txt"] {
                let file = format!("{name}.{extension}");
                fs::copy(pictures.join(&file), set.join(&file)).unwrap();
            }
        }
        let text = format!(
            "job: extension
config:
  name: fox
  process:
    - type: sd_trainer
      training_folder: '{out}'
      training_seed: 5
      network: {{type: lora, linear: 16, linear_alpha: 16}}
      save: {{dtype: float32, save_every: 2, max_step_saves_to_keep: 2}}
      datasets:
        - {{folder_path: '{set}', resolution: [64, 96], caption_dropout_rate: 0.5}}
      train:
        {{batch_size: 1, lr: 1e-3, optimizer: adamw8bit, timestep_type: sigmoid, lr_scheduler: cosine,
          ema_config: {{use_ema: true, ema_decay: 0.9}}, {train}}}
      model: {{name_or_path: mini, arch: qwen_image}}
{process}",
            out = folder.path().display(),
            set = set.display()
        );
        fs::write(folder.path().join("job.yaml"), text).unwrap();
        Job { folder }
    }

    /// Replaces a text of the job file.
    pub fn rewrite(&self, from: &str, to: &str) {
        let path = self.folder.path().join("job.yaml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// `tenggat train`, with further arguments.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenggat"));
        command.args(["train", "--threads", "1"]).args(more).arg(self.folder.path().join("job.yaml"));
        command.env("TENGGAT_QUEUE", self.folder.path().join("queue"));
        command
    }

    /// Runs to the end; returns what was said.
    pub fn run(&self, more: &[&str]) -> String {
        let output = self.command(more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    /// A file in the folder of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("fox").join(name)
    }

    /// Bytes of the finished LoRA.
    pub fn lora(&self) -> Vec<u8> {
        fs::read(self.file("fox.safetensors")).unwrap()
    }

    /// Lines of the metrics.
    pub fn steps(&self) -> u64 {
        fs::read_to_string(self.file("metrics.jsonl")).map_or(0, |text| text.lines().count() as u64)
    }

    /// Step, loss, rate and norm of every line; the times differ from run to run.
    pub fn log(&self) -> Vec<[String; 4]> {
        let text = fs::read_to_string(self.file("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            ["step", "loss", "lr", "grad_norm"].map(|key| value[key].to_string())
        };
        text.lines().map(line).collect()
    }

    /// Starts it and sends a signal `delay` after it has done `step` steps. Returns whether it was still
    /// running.
    pub fn cut_off(&self, signal: &str, step: u64, delay: Duration) -> bool {
        let mut child = self.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while self.steps() < step {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success());
                return false;
            }
            assert!(began.elapsed().as_secs() < 120, "step {step} was not reached");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(delay);
        let id = child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let status = child.wait().unwrap();
        signal == "-KILL" && !status.success() || signal == "-TERM" && status.success()
    }
}

/// What a process said, on both outputs.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Job {
    /// Runs to the end with an error; returns what was said.
    pub fn fails(&self, more: &[&str]) -> String {
        let output = self.command(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        text(&output)
    }

    /// Starts a run and waits until it has done so many steps.
    pub fn start(&self, more: &[&str], step: u64) -> Running {
        let child = self.command(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Running(Some(child));
        let began = Instant::now();
        while self.steps() < step {
            let ended = running.0.as_mut().unwrap().try_wait().unwrap().is_some();
            assert!(!ended, "{}", running.said());
            assert!(began.elapsed().as_secs() < 120, "step {step} was not reached");
            std::thread::sleep(Duration::from_millis(1));
        }
        running
    }

    /// Names in the folder of the run, sorted.
    pub fn names(&self) -> Vec<String> {
        names(&self.file(""))
    }
}

/// Says that a test did nothing, where the test runner does not keep it to itself.
pub fn not_tested(why: &str) {
    #[expect(clippy::disallowed_methods, reason = "the test runner keeps what macros print to itself")]
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "NOT TESTED: {why}");
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A process that is killed at the latest when the test ends.
pub struct Running(Option<Child>);

impl Running {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// Sends a signal, such as `-TERM`.
    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.id().to_string()]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }

    /// Waits for its end, which must be a good one; returns what it said.
    pub fn succeeds(self) -> String {
        let output = self.end();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    fn said(self) -> String {
        text(&self.end())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
