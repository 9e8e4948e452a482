//! Trainers that are known by a command alone.

mod pulse;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use pulse::Pulse;
use tenggat_drive::{CommandOptions, Driven, Error, Event, Pattern, follow, lora};
use tenggat_plan::{Clock, WallClock};
use tenggat_runs::{Request, ask};

struct Ran {
    driven: Result<Driven, Error>,
    events: Vec<Event>,
    end_s: f64,
    folder: tempfile::TempDir,
}

fn run(budget_s: f64, arguments: &str) -> Ran {
    run_asked(budget_s, arguments, &mut |_, _| ())
}

/// The same, with every event and the folder of the run shown to somebody who may ask for something.
fn run_asked(budget_s: f64, arguments: &str, ask: &mut dyn FnMut(&Event, &Path)) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other_trainer.py");
    let mut command = vec!["python3".to_owned(), script.display().to_string(), out.display().to_string()];
    command.extend(arguments.split(' ').map(String::from));
    let (clock, stop) = (WallClock::start(), AtomicBool::new(false));
    let options = CommandOptions {
        command,
        saves: Pattern::new(&format!("{}/**/*.safetensors", out.display())).unwrap(),
        clock: &clock,
        deadline_s: budget_s,
        margin_s: None,
        stop: &stop,
    };
    let mut events = Vec::new();
    let driven = follow(&options, &mut |event| {
        ask(&event, &out);
        events.push(event);
    });
    Ran { driven, events, end_s: clock.now_s(), folder }
}

impl Ran {
    fn published(&self) -> u64 {
        lora::check(&self.folder.path().join("out/last.safetensors")).unwrap().steps.unwrap()
    }

    fn warnings(&self) -> String {
        let text = |event: &Event| match event {
            Event::Warning(text) | Event::Slowed(text) | Event::Note(text) => Some(text.clone()),
            _ => None,
        };
        self.events.iter().filter_map(text).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn a_trainer_that_is_done_in_time_is_let_end() {
    let ran = run(60.0, "--max_train_steps 40 --step_s 0.02");
    let driven = ran.driven.as_ref().unwrap();
    assert!(driven.as_planned && driven.ended.contains("finished its steps"), "{driven:?}");
    assert_eq!((driven.steps, ran.published()), (40, 40));
    assert!(ran.folder.path().join("out/metrics.jsonl").is_file());
}

#[test]
fn one_that_does_not_fit_is_told_and_ended_after_its_last_save_in_time() {
    let pulse = Pulse::start();
    let ran = run(10.0, "--max_train_steps 10000 --step_s 0.02 --save_every_n_steps 50");
    if pulse.stalled() {
        return;
    }
    let driven = ran.driven.as_ref().unwrap();
    assert!(ran.end_s <= 10.0 && driven.as_planned, "{driven:?} {}", ran.end_s);
    assert!(
        driven.steps >= 50 && driven.steps == ran.published() && driven.steps.is_multiple_of(50),
        "{driven:?}"
    );
    assert!(ran.warnings().contains("would fit"), "{}", ran.warnings());
}

#[test]
fn one_that_saves_when_interrupted_uses_the_time() {
    let pulse = Pulse::start();
    // OneTrainer is told by its option.
    let ran = run(10.0, "--max_train_steps 10000 --step_s 0.02 --saves_on_interrupt --config-path x");
    if pulse.stalled() {
        return;
    }
    let driven = ran.driven.as_ref().unwrap();
    assert!(ran.end_s <= 10.0 && driven.as_planned, "{driven:?} {}", ran.end_s);
    assert_eq!(driven.steps, ran.published());
    let newest =
        ran.events.iter().rev().find_map(|e| if let Event::Step(s) = e { Some(s.done) } else { None });
    assert!(driven.steps + 10 > newest.unwrap(), "{driven:?} {newest:?}");
}

#[test]
fn one_that_is_asked_to_stop_ends_with_its_newest_save_and_none_saves_when_asked() {
    let mut requests = vec![Request::Stop, Request::Save];
    // The first save leads to a request for another, and the answer to that to one for the end.
    let ran = run_asked(
        60.0,
        "--max_train_steps 100000 --step_s 0.02 --save_every_n_steps 10",
        &mut |event, out| {
            let is_due = match event {
                Event::Saved { .. } => requests.len() == 2,
                Event::Warning(text) => requests.len() == 1 && text.contains("cannot be asked to save"),
                _ => false,
            };
            if let Some(request) = requests.pop_if(|_| is_due) {
                ask(out, request).unwrap();
            }
        },
    );
    let driven = ran.driven.as_ref().unwrap();
    assert!(driven.as_planned && driven.ended.contains("stopped by hand"), "{driven:?} {}", ran.warnings());
    assert!(driven.steps >= 10 && driven.steps == ran.published(), "{driven:?}");
    assert!(requests.is_empty(), "{}", ran.warnings());
}

#[test]
fn one_that_fails_leaves_what_it_saved_and_its_words() {
    let ran = run(60.0, "--max_train_steps 100 --step_s 0.02 --save_every_n_steps 10 --crash broken-cable");
    let driven = ran.driven.as_ref().unwrap();
    assert!(!driven.as_planned && driven.ended.contains("broken-cable"), "{driven:?}");
    assert_eq!((driven.steps, ran.published()), (20, 20));
    let nothing = run(60.0, "--max_train_steps 100 --step_s 0.02 --crash broken-cable");
    assert!(nothing.driven.unwrap_err().to_string().contains("no whole save"));
}
