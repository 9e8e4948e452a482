//! Signals from outside: whatever a run is doing, it is gone within seconds, and what it trained is on disk.
#![cfg(unix)]
// How long each end took is of interest.
#![allow(clippy::print_stdout)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use safetensors::{Dtype, SafeTensors};

/// What container engines leave between SIGTERM and SIGKILL.
const PROMISED: Duration = Duration::from_secs(10);

fn demo_dataset(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset").join(part)
}

/// A folder with a job on the mini model.
struct Job {
    folder: tempfile::TempDir,
}

impl Job {
    /// `train`, `process` and `own` are further keys of the sections that they are named after; `SET` stands
    /// for the data set.
    fn new(train: &str, process: &str, own: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("set");
        fs::create_dir(&set).unwrap();
        for file in ["fox.png", "fox.txt", "bell.png", "bell.txt"] {
            fs::copy(demo_dataset("train").join(file), set.join(file)).unwrap();
        }
        let text = format!(
            "job: extension
config:
  name: fox
  process:
    - type: sd_trainer
      training_folder: '{out}'
      training_seed: 5
      network: {{type: lora, linear: 4, linear_alpha: 4}}
      datasets: [{{folder_path: SET, resolution: 64}}]
      train: {{batch_size: 1, lr: 1e-3, optimizer: adamw, timestep_type: sigmoid, skip_first_sample: true, {train}}}
      model: {{name_or_path: mini, arch: qwen_image}}
      tenggat: {{{own}}}
{process}",
            out = folder.path().display(),
        );
        let text = text.replace("SET", &format!("'{}'", set.display()));
        fs::write(folder.path().join("job.yaml"), text).unwrap();
        Job { folder }
    }

    fn rewrite(&self, from: &str, to: &str) {
        let path = self.folder.path().join("job.yaml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("fox").join(name)
    }

    /// Lines of the log: updates, as long as none is skipped.
    fn steps(&self) -> u64 {
        fs::read_to_string(self.file("metrics.jsonl")).map_or(0, |text| text.lines().count() as u64)
    }

    fn start(&self, more: &[&str]) -> Run {
        let said = self.folder.path().join("said.txt");
        let out = File::create(&said).unwrap();
        // Whoever runs the tests may have been started by `nohup`.
        let child = Command::new("env")
            .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_tenggat"), "train", "-v"])
            .arg(self.folder.path().join("job.yaml"))
            .args(more)
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Run { child, said }
    }

    /// Runs to the end; what was said, and whether it succeeded.
    fn run(&self, more: &[&str]) -> (String, bool) {
        let mut run = self.start(more);
        let success = run.child.wait().unwrap().success();
        (run.said(), success)
    }
}

/// A process and what it says.
struct Run {
    child: Child,
    said: PathBuf,
}

impl Run {
    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    fn wait_until(&mut self, what: &str, is_so: impl Fn(&Run) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(self.child.try_wait().unwrap().is_none(), "ended before {what}: {}", self.said());
            assert!(began.elapsed().as_secs() < 120, "never came to {what}: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Sends a signal and waits for the end, which has to come in time and be a success.
    fn end(mut self, signal: &str) -> String {
        let asked = Instant::now();
        self.signal(signal);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if asked.elapsed() >= PROMISED {
                self.child.kill().unwrap();
                panic!("still there {PROMISED:?} after {signal}: {}", self.said());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        println!("{signal}: {:.2} s", asked.elapsed().as_secs_f64());
        assert!(status.success(), "{status}: {}", self.said());
        self.said()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The step that a LoRA names, which is whole and finite.
fn steps_of(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let finite = |b: &[u8]| match tensor.dtype() {
            Dtype::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).is_finite(),
            Dtype::F16 => half::f16::from_le_bytes([b[0], b[1]]).is_finite(),
            other => panic!("{other:?}"),
        };
        assert!(tensor.data().chunks(2).all(finite), "{name} in {}", path.display());
    }
    let info: serde_json::Value =
        serde_json::from_str(&header.metadata().as_ref().unwrap()["training_info"]).unwrap();
    info["step"].as_u64().unwrap()
}

/// Pictures that take minutes to draw.
const SLOW_SAMPLES: &str =
    "      sample: {sample_every: 3, width: 256, height: 256, prompts: [fox, cat], sample_steps: 900,
        guidance_scale: 4}
";

#[test]
fn nothing_trained_yet_ends_at_once_in_every_phase() {
    let fast = "steps: 4";
    let held_out = format!("held_out: '{}'", demo_dataset("test").display());
    let best = format!("{held_out}, deliver: best");
    let first_samples = format!("{fast}, force_first_sample: true");
    let cases = [
        ("cache", Job::new(fast, "", ""), false),
        ("score before", Job::new(fast, "", &held_out), false),
        ("score before", Job::new(fast, "", &best), true),
        ("first samples", Job::new(&first_samples, SLOW_SAMPLES, ""), false),
    ];
    for (phase, job, delivers_best) in cases {
        if phase == "cache" {
            // Some hundred pictures of some size.
            let set = job.folder.path().join("set");
            for i in 0..300 {
                fs::copy(set.join("fox.png"), set.join(format!("{i}.png"))).unwrap();
            }
        }
        let mut run = job.start(&[]);
        run.wait_until(phase, |run| run.said().contains(&format!("{phase} …")));
        std::thread::sleep(Duration::from_millis(100));
        print!("{phase}, ");
        let said = run.end("-TERM");
        assert!(said.contains("before the first step; there is nothing to save"), "{phase}: {said}");
        assert_eq!(job.steps(), 0);
        assert!(!job.file("fox.safetensors").exists(), "{phase}");
        // Where the best is to be delivered, a LoRA that changes nothing is there from the start.
        assert_eq!(job.file("last.safetensors").exists(), delivers_best, "{phase}");
        let entries = fs::read_dir(job.file("")).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(entries.into_iter().all(|name| !name.to_string_lossy().contains("unfinished")), "{phase}");
    }
}

/// Everything that may be under way between two steps: the whole work is on disk, in the LoRA and in the
/// state.
#[test]
fn what_was_trained_is_saved_in_every_phase_of_training() {
    for (signal, samples) in [
        ("-TERM", false),
        ("-INT", false),
        ("-XCPU", false),
        ("-HUP", false),
        ("-TERM", true),
        ("-HUP", true),
    ] {
        let job = Job::new("steps: 1000000", if samples { SLOW_SAMPLES } else { "" }, "");
        let mut run = job.start(&[]);
        run.wait_until("step 3", |_| job.steps() >= 3);
        std::thread::sleep(Duration::from_millis(if samples { 1500 } else { 0 }));
        print!("training, samples: {samples}, ");
        let said = run.end(signal);
        let steps = job.steps();
        assert!(said.contains(&format!("after {steps} steps, saved")), "{signal}: {said}");
        assert!(!samples || steps == 3, "{steps}");
        for name in ["last.safetensors", "fox.safetensors"] {
            assert_eq!(steps_of(&job.file(name)), steps, "{signal} {name}");
        }
        assert!(job.file("resume.state").exists());
    }
}

#[test]
fn a_step_is_kept_whose_validation_is_given_up() {
    let sigmas = vec!["0.5"; 5000].join(", ");
    let validation = format!(
        "steps: 1000000, validation_config: {{validate_every_n_steps: 3, resolution: 64, validation_sigmas: [{sigmas}],
        validation_items: [{{image_path: SET/bell.png}}]}}"
    );
    let job = Job::new(
        &validation.replace("SET/bell.png", &demo_dataset("test").join("PICTURE").to_string_lossy()),
        "",
        "",
    );
    let picture = fs::read_dir(demo_dataset("test")).unwrap().map(|entry| entry.unwrap().path());
    let picture = picture.filter(|path| path.extension().is_some_and(|x| x == "png")).min().unwrap();
    job.rewrite("PICTURE", picture.file_name().unwrap().to_str().unwrap());
    let mut run = job.start(&[]);
    run.wait_until("training", |run| run.said().contains("trainable parameters"));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(job.steps(), 0, "the validation after the first step is over: {}", run.said());
    print!("validation, ");
    let said = run.end("-TERM");
    assert!(said.contains("after 1 step, saved") && job.steps() == 1, "{said}");
    assert_eq!(steps_of(&job.file("last.safetensors")), 1);
}

#[test]
fn the_newest_is_kept_while_it_is_measured_for_the_best() {
    let job = Job::new(
        "steps: 1000000",
        "",
        &format!("held_out: '{}', deliver: best", demo_dataset("test").display()),
    );
    let mut run = job.start(&[]);
    run.wait_until("step 3", |_| job.steps() >= 3);
    run.signal("-USR1");
    run.wait_until("a state", |_| job.file("resume.state").exists());
    std::thread::sleep(Duration::from_millis(100));
    print!("measuring, ");
    let said = run.end("-TERM");
    let steps = job.steps();
    assert!(said.contains(&format!("after {steps} steps, saved")), "{said}");
    assert_eq!(loras(&job).iter().map(|(_, steps)| *steps).max(), Some(steps));
    let (said, success) = {
        job.rewrite("steps: 1000000", &format!("steps: {}", steps + 2));
        job.run(&[])
    };
    assert!(success && said.contains(&format!("after {steps} steps")), "{said}");
}

/// Even a process that is killed in the middle of a picture has lost nothing; the pictures come when it goes
/// on.
#[test]
fn a_save_precedes_a_round_of_samples_and_a_lost_round_is_drawn_again() {
    let samples = SLOW_SAMPLES.replace("900", "60").replace("256", "128");
    let (alone, job) = (Job::new("steps: 5", &samples, ""), Job::new("steps: 5", &samples, ""));
    assert!(alone.run(&[]).1);
    let pictures = |job: &Job, step: u64| {
        let entries = fs::read_dir(job.file("samples")).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut of_step: Vec<String> =
            names.filter_map(|name| Some(name.split_once("__")?.1.to_owned())).collect();
        of_step.retain(|name| name.starts_with(&format!("{step:09}_")));
        of_step.sort();
        of_step
    };
    let mut run = job.start(&[]);
    run.wait_until("the first picture", |_| pictures(&job, 3).len() == 1);
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    assert_eq!(steps_of(&job.file("last.safetensors")), 3);
    let first = fs::read_dir(job.file("samples")).unwrap().next().unwrap().unwrap().path();
    let before = fs::metadata(&first).unwrap().modified().unwrap();
    let (said, success) = job.run(&[]);
    assert!(success && said.contains("after 3 steps"), "{said}");
    for step in [3, 5] {
        assert_eq!(pictures(&job, step), pictures(&alone, step), "{said}");
        assert_eq!(pictures(&job, step).len(), 2);
    }
    assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), before, "it was drawn again");
    let lora = |job: &Job| fs::read(job.file("fox.safetensors")).unwrap();
    assert!(lora(&alone) == lora(&job));
    // A round that is whole is not drawn a second time.
    let count = |job: &Job| fs::read_dir(job.file("samples")).unwrap().count();
    assert_eq!(count(&job), 4);
}

#[test]
fn the_end_is_heard_while_the_finished_lora_is_measured_and_drawn() {
    let held_out = format!("held_out: '{}'", demo_dataset("test").display());
    let samples = SLOW_SAMPLES.replace("sample_every: 3", "sample_every: 1000");
    for (what, job) in [
        ("score after", Job::new("steps: 5", "", &held_out)),
        ("final samples", Job::new("steps: 5", &samples, "")),
    ] {
        let mut run = job.start(&[]);
        run.wait_until(what, |_| job.file("fox.safetensors").exists());
        print!("{what}, ");
        run.end("-TERM");
        assert_eq!(steps_of(&job.file("fox.safetensors")), 5);
    }
}

/// The last pictures come when the same command is given again, and the LoRA stays what it is.
#[test]
fn a_run_killed_in_its_last_samples_makes_them() {
    let samples = SLOW_SAMPLES.replace("sample_every: 3", "sample_every: 1000").replace("900", "60");
    let job = Job::new("steps: 5", &samples.replace("256", "128"), "");
    let pictures = || fs::read_dir(job.file("samples")).map_or(0, |entries| entries.count());
    let mut run = job.start(&[]);
    run.wait_until("the first of the last pictures", |_| pictures() == 1);
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    let lora = fs::read(job.file("fox.safetensors")).unwrap();
    let (said, success) = job.run(&[]);
    assert!(success && pictures() == 2, "{said}");
    assert!(fs::read(job.file("fox.safetensors")).unwrap() == lora);
    assert_eq!(job.steps(), 5);
    // Then it is finished.
    let (said, success) = job.run(&[]);
    assert!(success && said.contains("this job is finished") && pictures() == 2, "{said}");
}

/// A job with more and larger images to cache.
fn slow_to_cache(train: &str) -> Job {
    let job = Job::new(train, "", "");
    job.rewrite("resolution: 64", "resolution: 512");
    for entry in fs::read_dir(demo_dataset("train")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), job.folder.path().join("set").join(entry.file_name())).unwrap();
    }
    job
}

/// One run ended in each phase, and a table of how long that took.
#[test]
fn a_term_is_obeyed_within_ten_seconds_in_each_phase() {
    let held_out = format!("held_out: '{}'", demo_dataset("test").display());
    let last_samples = SLOW_SAMPLES.replace("sample_every: 3", "sample_every: 1000");
    let fast = "steps: 5";
    let endless = "steps: 1000000";
    let first_samples = "steps: 5, force_first_sample: true";
    let cases = [
        ("load", Job::new(endless, "", "")),
        ("cache", slow_to_cache(fast)),
        ("score before", Job::new(fast, "", &held_out)),
        ("first samples", Job::new(first_samples, SLOW_SAMPLES, "")),
        ("train", Job::new(endless, "", "")),
        ("samples", Job::new(endless, SLOW_SAMPLES, "")),
        ("final samples", Job::new(fast, &last_samples, "")),
        ("score after", Job::new(fast, "", &held_out)),
    ];
    let mut table = String::new();
    for (phase, job) in cases {
        let mut run = job.start(&[]);
        run.wait_until(phase, |run| match phase {
            "train" => job.steps() >= 2,
            "samples" => job.steps() >= 3,
            _ => run.said().contains(&format!("{phase} …")) || run.said().contains(&format!("{phase:<14} ")),
        });
        std::thread::sleep(Duration::from_millis(if phase == "samples" { 1000 } else { 50 }));
        let asked = Instant::now();
        let said = run.end("-TERM");
        table += &format!("| {phase:<14} | {:5.2} s |\n", asked.elapsed().as_secs_f64());
        // Most jobs are short: one that heard nothing ends soon as well. The model may be loaded by now.
        match phase {
            "final samples" => {}
            "score after" => assert!(!said.contains("unseen images"), "{phase}: {said}"),
            "load" | "train" | "samples" => assert!(said.contains("interrupted"), "{phase}: {said}"),
            _ => assert!(said.contains("interrupted") && !said.contains("step 1/"), "{phase}: {said}"),
        }
    }
    println!("| ended in       | after   |\n|---|---|\n{table}");
}

#[test]
fn a_closed_terminal_leaves_a_run_with_a_budget_alone_and_a_user_signal_saves() {
    let job = Job::new("weight_decay: 0", "", "");
    let mut run = job.start(&["--budget", "14s"]);
    run.wait_until("step 3", |_| job.steps() >= 3);
    run.signal("-HUP");
    run.signal("-USR1");
    let asked = job.steps();
    // The checkpoint comes first, then the LoRA.
    run.wait_until("a save", |_| job.file("last.safetensors").exists());
    let saved = steps_of(&job.file("last.safetensors"));
    assert!(saved >= asked, "{saved} {asked}");
    run.wait_until("more steps", |_| job.steps() > saved + 5);
    // The second time it is the end.
    run.signal("-TERM");
    run.child.wait().unwrap();
    assert!(steps_of(&job.file("fox.safetensors")) > saved);
}

#[test]
fn nohup_is_heeded() {
    let job = Job::new("steps: 1000000", "", "");
    let said = job.folder.path().join("said.txt");
    let child = Command::new("env")
        .args(["--ignore-signal=HUP", env!("CARGO_BIN_EXE_tenggat"), "train"])
        .arg(job.folder.path().join("job.yaml"))
        .stdout(File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let mut run = Run { child, said };
    run.wait_until("step 3", |_| job.steps() >= 3);
    run.signal("-HUP");
    let then = job.steps();
    run.wait_until("more steps", |_| job.steps() > then + 20);
    run.end("-TERM");
}

#[test]
fn a_second_signal_ends_at_once_and_a_hangup_is_none() {
    // A server that never answers: nothing but the second signal, or patience, ends this at once.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", server.local_addr().unwrap());
    std::thread::spawn(move || {
        let held: Vec<_> = server.incoming().collect();
        drop(held);
    });
    let job = Job::new("steps: 4", "", "");
    job.rewrite("name_or_path: mini", "name_or_path: org/model");
    let start = || {
        let said = job.folder.path().join("said.txt");
        let child = Command::new("env")
            .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_tenggat"), "train"])
            .arg(job.folder.path().join("job.yaml"))
            .env("HF_ENDPOINT", &endpoint)
            .env("HF_HOME", job.folder.path().join("hub"))
            .stderr(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        Run { child, said }
    };
    print!("download that hangs, ");
    start().end("-TERM");
    let mut run = start();
    run.signal("-TERM");
    run.signal("-HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert!(run.child.try_wait().unwrap().is_none(), "{}", run.said());
    let again = Instant::now();
    run.signal("-INT");
    assert_eq!(run.child.wait().unwrap().code(), Some(1));
    assert!(again.elapsed() < Duration::from_secs(2));
}

/// A download that trickles in ends between two pieces, and what has come is kept.
#[test]
fn a_slow_download_ends() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", server.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in server.incoming() {
            let Ok(mut connection) = connection else { continue };
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                let Ok(n) = connection.read(&mut request) else { return };
                let head = request[..n].starts_with(b"HEAD");
                let _ = write!(
                    connection,
                    "HTTP/1.1 200 OK\r\nETag: \"abc\"\r\nX-Repo-Commit: def\r\nContent-Length: 1000000\r\n\r\n"
                );
                while !head && connection.write_all(b" ").is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
    });
    let job = Job::new("steps: 4", "", "");
    let path = job.folder.path().join("job.yaml");
    job.rewrite("name_or_path: mini", "name_or_path: org/model");
    let said = job.folder.path().join("said.txt");
    let out = File::create(&said).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_tenggat"))
        .arg("train")
        .arg(&path)
        .env("HF_ENDPOINT", &endpoint)
        .env("HF_HOME", job.folder.path().join("hub"))
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap();
    let mut run = Run { child, said };
    let partial = job.folder.path().join("hub/hub/models--org--model/blobs/abc.incomplete");
    run.wait_until("some bytes", |_| fs::metadata(&partial).is_ok_and(|about| about.len() > 3));
    print!("download, ");
    let said = run.end("-TERM");
    assert!(said.contains("before the first step"), "{said}");
    assert!(fs::metadata(&partial).unwrap().len() > 3);
}

/// The LoRAs in the run's folder, by name, and the steps in them; each is whole and finite.
fn loras(job: &Job) -> Vec<(String, u64)> {
    let paths = fs::read_dir(job.file("")).unwrap().map(|entry| entry.unwrap().path());
    let loras = paths.filter(|path| path.extension().is_some_and(|x| x == "safetensors"));
    let mut named: Vec<_> =
        loras.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), steps_of(&path))).collect();
    named.sort();
    named
}

#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let deliver = format!("held_out: '{}', deliver: best", demo_dataset("test").display());
    let named = |names: &[(&str, u64)]| names.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect::<Vec<_>>();
    // The rate, steps, the type that is saved, how often, what is delivered, and what is there in the end.
    type Left = &'static [(&'static str, u64)];
    let cases: [(&str, u64, &str, u64, &str, Left); 7] = [
        // The first update is infinite: at the second step, or at the save after it.
        ("1e38", 15, "bf16", 2, "", &[]),
        ("1e38", 1, "bf16", 2, "", &[]),
        ("1e38", 15, "bf16", 1, "", &[]),
        // It is finite in 32 bits alone.
        ("1e10", 15, "float16", 1, "", &[]),
        // It is finite, and the loss after it never is.
        ("1e30", 15, "bf16", 2, "", &[("last", 15)]),
        ("1e30", 15, "bf16", 1, "", &[("fox_000000001", 1), ("last", 1)]),
        ("1e38", 15, "bf16", 2, &deliver, &[("last", 0)]),
    ];
    for (lr, steps, dtype, every, own, left) in cases {
        let save = format!("      save: {{save_every: {every}, dtype: {dtype}}}\n");
        let job = Job::new(&format!("steps: {steps}"), &save, own);
        job.rewrite("lr: 1e-3", &format!("lr: {lr}"));
        let (said, success) = job.run(&[]);
        assert!(!success && said.contains("ower the learning rate"), "{lr} {steps}: {said}");
        assert_eq!(loras(&job), named(left), "{lr} {steps} {dtype} every {every}: {said}");
    }
}

/// A rate at which the weights grow until there is no loss any more: what was saved while there was one
/// stays.
#[test]
fn a_good_lora_outlives_a_divergence() {
    let save = "      save: {save_every: 2, dtype: float16, max_step_saves_to_keep: 2}\n";
    let job = Job::new("steps: 400", save, "");
    job.rewrite("lr: 1e-3", "lr: 1e3");
    let (said, success) = job.run(&[]);
    assert!(!success && said.contains("ower the learning rate"), "{said}");
    let left = loras(&job);
    let newest = left.iter().map(|(_, steps)| *steps).max().unwrap();
    assert!((2..100).contains(&newest) && job.steps() >= newest, "{left:?}");
    assert!(left.contains(&("last".to_owned(), newest)), "{left:?}");
    assert!(!job.file("fox.safetensors").exists(), "{said}");
}

#[test]
fn the_newest_lora_is_there_without_a_budget_and_the_last_step_has_no_number() {
    let job = Job::new("steps: 6", "      save: {save_every: 2}\n", "");
    let mut run = job.start(&[]);
    run.wait_until("a numbered LoRA", |_| job.file("fox_000000002.safetensors").exists());
    run.child.wait().unwrap();
    assert!(job.file("fox_000000004.safetensors").exists());
    assert!(!job.file("fox_000000006.safetensors").exists());
    let read = |name: &str| fs::read(job.file(name)).unwrap();
    assert!(read("last.safetensors") == read("fox.safetensors"));
    assert_eq!(steps_of(&job.file("last.safetensors")), 6);

    // Killed later on, `last.safetensors` is the newest numbered one.
    let job = Job::new("steps: 1000000", "      save: {save_every: 50}\n", "");
    let mut run = job.start(&[]);
    run.wait_until("a LoRA", |_| job.file("last.safetensors").exists());
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    assert!(steps_of(&job.file("last.safetensors")) >= 50);
}
