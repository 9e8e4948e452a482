//! Whole drives of the stand-in for ai-toolkit: real processes, files, signals and seconds.
//!
//! `cargo test -p tenggat-drive --test stand_in -- --ignored` drives three hundred.
#![expect(clippy::print_stdout, reason = "the long tier tells what it tried")]

mod dice;
mod pulse;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dice::Dice;
use pulse::Pulse;
use serde_json::{Value, json};
use tenggat_drive::lora::{self, ModelKeys};
use tenggat_drive::{Driven, Error, Event, Installation, Options, OtherJob, ToolkitJob, drive};
use tenggat_plan::{Clock, WallClock};

fn stand_in() -> Installation {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in");
    Installation { folder, python: "python3".into() }
}

struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Scene { folder: tempfile::tempdir().unwrap() }
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("out/fox")
    }

    fn last(&self) -> PathBuf {
        self.run().join("last.safetensors")
    }

    /// A job of a trainer with these habits; `more` is put over the process.
    fn job(&self, habits: Value, more: Value) -> ToolkitJob {
        let mut process = json!({
            "type": "sd_trainer",
            "training_folder": self.folder.path().join("out"),
            "save": {"save_every": 1000},
            "train": {"lr": 1e-4},
            "model": {"arch": "krea2", "name_or_path": "x"},
            "stand_in": habits,
        });
        for (key, value) in more.as_object().unwrap() {
            process[key] = value.clone();
        }
        let job = json!({"job": "extension", "config": {"name": "fox", "process": [process]}});
        let path = self.folder.path().join("job.json");
        std::fs::write(&path, job.to_string()).unwrap();
        ToolkitJob::read(&path, None, &|_| None).unwrap()
    }

    fn drive(&self, job: &ToolkitJob, budget_s: f64) -> (Result<Driven, Error>, Vec<Event>, f64) {
        self.drive_for(None, job, budget_s)
    }

    /// Publishes only what fits this model.
    fn drive_for(
        &self,
        model: Option<Arc<ModelKeys>>,
        job: &ToolkitJob,
        budget_s: f64,
    ) -> (Result<Driven, Error>, Vec<Event>, f64) {
        let (clock, stop) = (WallClock::start(), AtomicBool::new(false));
        let options = Options {
            installation: stand_in(),
            clock: &clock,
            deadline_s: budget_s,
            deadline_is_moment: false,
            fill: false,
            margin_s: None,
            start_over: false,
            other_job: OtherJob::MoveAside,
            model,
            stop: &stop,
            save: None,
        };
        let mut events = Vec::new();
        let driven = drive(job, &options, &mut |event| events.push(event));
        (driven, events, clock.now_s())
    }

    /// Steps in the published LoRA, which must be whole.
    fn published(&self) -> u64 {
        lora::check(&self.last()).unwrap().steps.unwrap()
    }
}

fn warnings(events: &[Event]) -> String {
    let text = |event: &Event| match event {
        Event::Warning(text) | Event::Slowed(text) | Event::Note(text) => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_drive_ends_in_time_with_all_of_its_steps_saved() {
    let pulse = Pulse::start();
    let scene = Scene::new();
    let job = scene.job(json!({"step_s": 0.02, "load_s": 0.3}), json!({}));
    let (driven, events, end_s) = scene.drive(&job, 8.0);
    if pulse.stalled() {
        return;
    }
    let driven = driven.unwrap();
    assert!(end_s <= 8.0 && driven.as_planned, "{end_s} {driven:?}");
    assert_eq!(scene.published(), driven.steps);
    let steps: Vec<u64> =
        events.iter().filter_map(|e| if let Event::Step(s) = e { Some(s.done) } else { None }).collect();
    assert!(steps.windows(2).all(|w| w[0] < w[1]) && steps.len() > 10);
    assert!(driven.steps + 30 > *steps.last().unwrap(), "{driven:?} {:?}", steps.last());
    let metrics = std::fs::read_to_string(scene.run().join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), steps.len());
    assert!(metrics.contains("\"loss\":0.5,\"lr\":0.0001"), "{metrics}");
    // The user's job is as it was, and the trainer's own way on is open.
    assert!(scene.run().join(format!("fox_{:09}.safetensors", driven.steps)).is_file());
}

#[test]
fn steps_that_are_asked_for_end_the_drive() {
    let scene = Scene::new();
    let job = scene.job(json!({"step_s": 0.01}), json!({"train": {"steps": 40, "lr_scheduler": "cosine"}}));
    let (driven, _, end_s) = scene.drive(&job, 60.0);
    let driven = driven.unwrap();
    assert_eq!((driven.steps, scene.published()), (40, 40));
    assert!(driven.as_planned && end_s < 60.0, "{driven:?} {end_s}");
    // Again: there is nothing left to do, and nothing is started.
    let (again, _, _) = scene.drive(&job, 60.0);
    let again = again.unwrap();
    assert!(again.sessions == 0 && again.ended.contains("already done"), "{again:?}");
    // More steps go on where it stood.
    let job = scene.job(json!({"step_s": 0.01}), json!({"train": {"steps": 60, "lr_scheduler": "cosine"}}));
    let (more, events, _) = scene.drive(&job, 60.0);
    assert_eq!(more.unwrap().steps, 60);
    assert!(events.iter().any(|e| matches!(e, Event::Resumed { steps: 40, .. })));
    assert!(scene.run().join("fox_000000040.safetensors").is_file(), "the finished file is kept");
}

#[test]
fn a_restart_publishes_no_lora_that_its_model_refuses() {
    let scene = Scene::new();
    let job = |steps: u64| scene.job(json!({"step_s": 0.01}), json!({"train": {"steps": steps}}));
    scene.drive(&job(20), 60.0).0.unwrap();
    // As a killed drive leaves it whose saves were refused: this model has no layers at all.
    std::fs::remove_file(scene.last()).unwrap();
    let model = Some(Arc::new(ModelKeys::default()));
    for steps in [20, 30] {
        let (driven, events, _) = scene.drive_for(model.clone(), &job(steps), 60.0);
        let said = warnings(&events);
        assert!(said.contains("_000000020.safetensors is not published: 1 of its 1 keys fit no"), "{said}");
        assert!(matches!(driven, Err(Error::NothingDelivered(_))), "{driven:?}");
        assert!(!scene.last().exists() && !events.iter().any(|e| matches!(e, Event::Saved { .. })));
    }
}

#[test]
fn crashes_and_memory_are_answered() {
    let scene = Scene::new();
    let habits =
        json!({"step_s": 0.02, "faults": [[1.5, "crash", "CUDA out of memory. Tried to allocate 2 GiB"]]});
    let shrink = json!({"tenggat": {"on_out_of_memory": [{"train.batch_size": 1}]}});
    let (driven, events, end_s) = scene.drive(&scene.job(habits, shrink), 12.0);
    let driven = driven.unwrap();
    assert!(end_s <= 12.0 && driven.sessions == 2 && driven.as_planned, "{driven:?}\n{}", warnings(&events));
    assert!(warnings(&events).contains("entry 1 of `on_out_of_memory`"), "{}", warnings(&events));
    let told = std::fs::read_to_string(scene.run().join(".drive/job.json")).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["config"]["process"][0]["train"]["batch_size"], 1);
}

#[test]
fn a_job_that_the_trainer_refuses_is_told_in_its_words() {
    let scene = Scene::new();
    let habits = json!({"faults": [[0.0, "crash", "model krea/none is not a folder"]]});
    let (driven, _, end_s) = scene.drive(&scene.job(habits, json!({})), 60.0);
    let error = driven.unwrap_err().to_string();
    assert!(error.contains("krea/none") && error.contains("trainer.log") && end_s < 60.0, "{error}");
}

#[test]
fn a_trainer_that_hears_nothing_is_ended_in_time() {
    let pulse = Pulse::start();
    let scene = Scene::new();
    let job = scene.job(json!({"ignores_stop": true, "step_s": 0.02}), json!({}));
    let (driven, _, end_s) = scene.drive(&job, 8.0);
    if pulse.stalled() {
        return;
    }
    assert!(end_s <= 8.0, "{end_s}");
    assert_eq!(driven.unwrap().steps, scene.published());
}

#[test]
fn a_resume_at_zero_never_replaces_more_by_less() {
    let scene = Scene::new();
    let habits = json!({"step_s": 0.02, "resumes_at_zero": true, "faults": [[2.0, "die", 0]]});
    let more = json!({"train": {"steps": 120, "lr": 1e-4}, "save": {"save_every": 20}});
    let (driven, events, _) = scene.drive(&scene.job(habits, more), 60.0);
    assert_eq!(driven.unwrap().steps, scene.published());
    let saved: Vec<u64> = events
        .iter()
        .filter_map(|e| if let Event::Saved { steps, .. } = e { Some(*steps) } else { None })
        .collect();
    assert!(saved.windows(2).all(|w| w[0] < w[1]), "{saved:?}");
    assert!(warnings(&events).contains("the published LoRA stays"), "{}", warnings(&events));
}

#[test]
fn another_job_moves_the_results_aside() {
    let scene = Scene::new();
    let habits = json!({"step_s": 0.01});
    scene.drive(&scene.job(habits.clone(), json!({"train": {"steps": 10, "lr": 1e-4}})), 60.0).0.unwrap();
    let (driven, events, _) =
        scene.drive(&scene.job(habits, json!({"train": {"steps": 12, "lr": 2e-4}})), 60.0);
    assert_eq!(driven.unwrap().steps, 12);
    assert!(warnings(&events).contains("fox.old-1"), "{}", warnings(&events));
    let old = scene.folder.path().join("out/fox.old-1/last.safetensors");
    assert_eq!(lora::check(&old).unwrap().steps, Some(10));
}

/// Runs this test program again as a drive that may be killed.
fn child(scene: &Scene, budget_s: f64) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "drive_in_a_child", "--ignored", "--nocapture"]);
    command.env("DRIVE_JOB", scene.folder.path().join("job.json")).env("DRIVE_BUDGET", budget_s.to_string());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
}

#[test]
#[ignore = "a part of the tests that kill drives"]
fn drive_in_a_child() {
    let Some(path) = std::env::var_os("DRIVE_JOB") else { return };
    let budget_s = std::env::var("DRIVE_BUDGET").unwrap().parse().unwrap();
    let job = ToolkitJob::read(Path::new(&path), None, &|_| None).unwrap();
    let (clock, stop) = (WallClock::start(), AtomicBool::new(false));
    let options = Options {
        installation: stand_in(),
        clock: &clock,
        deadline_s: budget_s,
        deadline_is_moment: false,
        fill: false,
        margin_s: None,
        start_over: false,
        other_job: OtherJob::MoveAside,
        model: None,
        stop: &stop,
        save: None,
    };
    let _ = drive(&job, &options, &mut |_| {});
}

/// Whether any process works for a job file.
fn trainer_lives(scene: &Scene) -> bool {
    let needle = scene.folder.path().to_str().unwrap().to_owned();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.into_iter().any(|e| {
        let line = std::fs::read(e.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("stand_in/run.py") && line.contains(&needle)
    })
}

/// Kills a drive after so many seconds, and sees what is left.
fn kill_after(scene: &Scene, budget_s: f64, after_s: f64) {
    let mut drive = child(scene, budget_s);
    std::thread::sleep(std::time::Duration::from_secs_f64(after_s));
    drive.kill().unwrap();
    drive.wait().unwrap();
    if cfg!(target_os = "linux") {
        let began = Instant::now();
        while trainer_lives(scene) {
            assert!(began.elapsed().as_secs_f64() < 5.0, "the trainer outlived its drive");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn a_killed_drive_leaves_a_whole_lora_and_goes_on_inside_what_is_left() {
    let pulse = Pulse::start();
    let scene = Scene::new();
    let job = scene.job(json!({"step_s": 0.02, "load_s": 0.2, "save_s": 0.1}), json!({}));
    kill_after(&scene, 8.0, 3.0);
    if pulse.stalled() {
        return;
    }
    let before = scene.published();
    assert!(before > 0);
    let (driven, events, end_s) = scene.drive(&job, 8.0);
    if pulse.stalled() {
        return;
    }
    let driven = driven.unwrap();
    assert!(driven.steps > before && driven.steps == scene.published());
    // Some of the time is spent: the last mark is at most two seconds old.
    let spent = events.iter().find_map(|e| {
        if let Event::Resumed { spent_before_s, .. } = e { Some(*spent_before_s) } else { None }
    });
    let spent_s = spent.expect("it goes on");
    assert!(spent_s > 0.5 && end_s + spent_s <= 8.1, "{spent_s} + {end_s}");
}

/// A random trainer and budget.
fn random(seed: u64) -> (Scene, Value, Value, f64, Option<f64>) {
    let mut dice = Dice::new(seed ^ 0x57a4d);
    let budget_s = dice.between(4.0, 9.0);
    let step_s = dice.between(0.01, 0.06);
    let mut habits = json!({
        "step_s": step_s,
        "load_s": dice.between(0.1, 0.8),
        "save_s": dice.between(0.01, 0.15),
        "stop_s": dice.between(0.0, 0.3),
        "seed": seed,
    });
    if dice.chance(0.5) {
        let at = dice.between(0.2, 0.9) * budget_s;
        habits["pace"] = json!([[at, 0.3 * 10f64.powf(dice.roll())]]);
    }
    let at = dice.between(0.1, 0.95) * budget_s;
    let fault = match (dice.roll() * 8.0) as u32 {
        0 => json!([[at, "stall", dice.between(0.2, 6.0)]]),
        1 => json!([[at, "crash", "something broke"]]),
        2 => json!([[at, "crash", "CUDA out of memory"]]),
        3 => json!([[at, "die", 0]]),
        _ => json!([]),
    };
    habits["faults"] = fault;
    match (dice.roll() * 10.0) as u32 {
        0 => habits["ignores_stop"] = true.into(),
        1 => habits["resumes_at_zero"] = true.into(),
        2 => habits["spoils_save"] = (1 + (dice.roll() * 3.0) as u64).into(),
        _ => {}
    }
    let mut more = json!({"save": {"save_every": (dice.between(0.1, 0.6) * budget_s / step_s) as u64 + 1}});
    if dice.chance(0.3) {
        more["train"] = json!({"lr": 1e-4, "lr_scheduler": "cosine"});
    }
    if dice.chance(0.2) {
        more["sample"] = json!({"sample_every": (dice.between(0.2, 0.8) * budget_s / step_s) as u64 + 1});
        habits["round_s"] = dice.between(0.1, 1.0).into();
    }
    let kill = dice.chance(0.2).then(|| dice.between(0.3, 0.8) * budget_s);
    (Scene::new(), habits, more, budget_s, kill)
}

/// One random drive; returns its end as a share of the budget if it should have used all of it, and whether
/// it did as far as steps allow: what is left is less than a twentieth of the budget, or than one more step,
/// its save, which may take twice as long as usual, and the trainer's end would take.
fn random_drive(seed: u64) -> Option<(f64, bool)> {
    let (scene, habits, more, budget_s, kill) = random(seed);
    let job = scene.job(habits.clone(), more.clone());
    if let Some(after_s) = kill {
        kill_after(&scene, budget_s, after_s);
        if scene.last().exists() {
            lora::check(&scene.last()).unwrap();
        }
    }
    let pulse = Pulse::start();
    let (driven, events, end_s) = scene.drive(&job, budget_s);
    let stalled = pulse.stalled();
    let told = || {
        format!(
            "seed {seed}: {driven:?} after {end_s:.2} of {budget_s:.2} s\n{habits}\n{more}\n{}",
            warnings(&events)
        )
    };
    assert!(stalled || end_s <= budget_s, "overran: {}", told());
    assert!(!trainer_lives(&scene), "the trainer outlived the drive: {}", told());
    match &driven {
        // A publication that the deadline overtook may come to its end all the same.
        Ok(driven) => assert!(driven.steps <= scene.published(), "{}", told()),
        Err(_) if scene.last().exists() => drop(scene.published()),
        Err(_) => {}
    }
    let fair = habits["faults"] == json!([]) && kill.is_none() && habits["resumes_at_zero"].is_null();
    let steady =
        fair && more["train"].is_null() && more["sample"].is_null() && habits["spoils_save"].is_null();
    let pace = habits["pace"][0][1].as_f64().unwrap_or(1.0).max(1.0);
    let number = |name: &str| habits[name].as_f64().unwrap_or(0.0);
    // The stand-in sleeps for what it says and works a little besides.
    let more_s = 2.0 * pace * number("step_s") + 2.0 * number("save_s") + number("stop_s") + 0.1;
    let share = end_s / budget_s;
    (steady && !stalled).then_some((share, share >= 0.95 || budget_s - end_s < more_s))
}

/// Drives of a range of seeds, several at a time; most of their time is sleep.
fn random_drives(seeds: std::ops::Range<u64>, at_once: usize) {
    let next = std::sync::Mutex::new(seeds);
    let shares = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().unwrap().next() else { break };
                    if let Some((share, is_used)) = random_drive(seed) {
                        shares.lock().unwrap().push((share, is_used, seed));
                    }
                }
            });
        }
    });
    let mut shares = shares.into_inner().unwrap();
    shares.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mean = shares.iter().map(|(share, ..)| share).sum::<f64>() / shares.len().max(1) as f64;
    println!(
        "{} undisturbed drives used {:.1} % of their budget on average, the least {:?}",
        shares.len(),
        100.0 * mean,
        shares.first()
    );
    let idle: Vec<_> = shares.iter().filter(|(_, is_used, _)| !is_used).collect();
    assert!(idle.is_empty(), "time was left over: {idle:?} of {shares:?}");
}

#[test]
fn random_drives_keep_the_deadline() {
    random_drives(0..6, 3);
}

#[test]
#[ignore = "60 drives, two minutes"]
fn sixty_random_drives_keep_the_deadline() {
    random_drives(2000..2060, 4);
}

#[test]
#[ignore = "300 drives, some minutes"]
fn three_hundred_random_drives_keep_the_deadline() {
    random_drives(1000..1300, 6);
}
