//! What a run tells whoever watches it. Names and fields are stable, see `docs/events.md`.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use tenggat_plan::{Forecast, Phase};

use crate::measure::score::{Scored, Weighed};

/// News of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A process begins to work on the run.
    Started {
        /// The command: `train`, `task`, `demo` or `drive`.
        program: &'static str,
        /// Number of the process.
        process: u32,
        /// Version of the program.
        version: &'static str,
        /// Deadline on the clock of the process.
        deadline_s: Option<f64>,
    },
    /// The process is about to end.
    Ended {
        /// How: `done`, `stopped` because somebody asked for it, or `failed`.
        outcome: &'static str,
        /// Updates in what is delivered.
        steps: u64,
        /// What went wrong.
        error: Option<String>,
    },
    /// How far a phase is.
    Progress {
        /// Parts that are done.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// Memory in use.
    Memory {
        /// Bytes of the process.
        host_bytes: Option<u64>,
        /// Bytes of the device, if it has memory of its own.
        device_bytes: Option<u64>,
    },
    /// A phase begins.
    PhaseStarted(#[serde(serialize_with = "as_phase")] Phase),
    /// A phase is over, whether it succeeded or not.
    PhaseFinished {
        /// Which.
        phase: Phase,
        /// How long it took.
        seconds: f64,
    },
    /// The first quantisation of a model is in progress, or done.
    Quantised {
        /// Bytes that are written.
        done: u64,
        /// Bytes of the quantised model.
        total: u64,
    },
    /// Something the user should know.
    Warning(#[serde(serialize_with = "as_text")] String),
    /// What is trained on.
    Data {
        /// Entries of an epoch: pictures × resolutions × repeats × mirrored copies.
        entries: usize,
        /// Different picture sizes among them.
        buckets: usize,
        /// Parameters that are trained.
        trainable: usize,
    },
    /// An interrupted run resumes.
    Resumed {
        /// Steps that it had done.
        steps: u64,
        /// Seconds that the run's clock is ahead of the process's for that.
        #[serde(rename = "ahead_s")]
        spent_before_s: f64,
        /// Deadline on the run's clock.
        deadline_s: Option<f64>,
    },
    /// The run had been finished before; nothing is done.
    Done {
        /// Steps that it has done.
        steps: u64,
        /// What to do to get more.
        advice: String,
    },
    /// A forecast of the rest, after the first steps and when somebody moved the deadline.
    Forecast(Forecast),
    /// Somebody moved the deadline.
    DeadlineMoved {
        /// The new one, in seconds on the run's clock.
        deadline_s: f64,
        /// Seconds by which it is later, negative if earlier; `None` if there was none before.
        by_s: Option<f64>,
    },
    /// A step is done.
    Step(Step),
    /// A LoRA file was written.
    Saved {
        /// The file.
        #[serde(serialize_with = "as_text_path")]
        path: PathBuf,
        /// Updates in it.
        steps: u64,
    },
    /// Held-out errors are known.
    Scored(Scored),
    /// A LoRA was measured on the held-out pictures, to choose the best.
    Contender(Contender),
    /// A file for the user to look at was written.
    Wrote {
        /// What it shows.
        what: &'static str,
        /// The file.
        #[serde(serialize_with = "as_text_path")]
        path: PathBuf,
    },
}

/// A LoRA of the run, measured on the held-out pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Contender {
    /// Updates in it.
    pub steps: u64,
    /// Velocity error.
    pub error: Weighed,
    /// Whether it is the best so far.
    pub is_best: bool,
}

/// One finished step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Step {
    /// Steps done.
    pub done: u64,
    /// Steps expected in all, if known.
    pub total: Option<u64>,
    /// Loss of this step.
    pub loss: f64,
    /// Loss averaged over about the last 50 steps.
    pub smoothed: f64,
    /// Learning rate.
    pub lr: f64,
    /// Seconds of this step.
    pub step_s: f64,
    /// Seconds until the deadline, if there is one.
    pub left_s: Option<f64>,
    /// Moment on the run's clock at which the process is expected to end.
    pub end_s: Option<f64>,
}

impl Event {
    /// Its name, as in `docs/events.md`.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Started { .. } => "started",
            Event::Ended { .. } => "ended",
            Event::Progress { .. } => "progress",
            Event::Memory { .. } => "memory",
            Event::PhaseStarted(_) => "phase_started",
            Event::PhaseFinished { .. } => "phase_finished",
            Event::Quantised { .. } => "quantised",
            Event::Warning(_) => "warning",
            Event::Data { .. } => "data",
            Event::Resumed { .. } => "resumed",
            Event::Done { .. } => "done",
            Event::Forecast(_) => "forecast",
            Event::DeadlineMoved { .. } => "deadline_moved",
            Event::Step(_) => "step",
            Event::Saved { .. } => "saved",
            Event::Scored(_) => "scored",
            Event::Contender(_) => "contender",
            Event::Wrote { .. } => "wrote",
        }
    }
}

/// A phase as an object, so that other fields can be added.
fn as_phase<S: Serializer>(phase: &Phase, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Named {
        phase: Phase,
    }
    Named { phase: *phase }.serialize(to)
}

/// A text as an object, for the same reason.
fn as_text<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Named<'a> {
        text: &'a str,
    }
    Named { text }.serialize(to)
}

/// A path, even one that is not Unicode.
fn as_text_path<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;
    use tenggat_plan::{Note, RuledBy};

    use super::*;
    use crate::job::ErrorWeights;
    use crate::measure::score::{Extent, HeldOutError, Scores};

    const DOCUMENT: &str = include_str!("../../../../docs/events.md");
    /// Fields of every line, which the program adds.
    const OF_LINES: [&str; 4] = ["v", "seq", "time", "at_s"];

    /// One event of each variant, with its documented name.
    fn all() -> Vec<(&'static str, Event)> {
        let (error, even) =
            (HeldOutError { captioned: 0.25, empty: 0.5 }, "1:1".parse::<ErrorWeights>().unwrap());
        let extent = Extent { images: 4, all_images: 8, levels: 5 };
        let scores = Scores { trained: true, picture: error, velocity: Some(error), seeds: 2, extent };
        let scores = scores.weighed(even);
        let error = error.weighed(even);
        let (loss, smoothed, lr, step_s) = (0.4, 0.5, 1e-4, 0.25);
        let (left_s, end_s) = (None, Some(20.0));
        let step = Step { done: 6, total: Some(48), loss, smoothed, lr, step_s, left_s, end_s };
        let forecast = Forecast {
            steps_done: 5,
            steps_total: Some(48),
            ruled_by: RuledBy::Deadline,
            step_s: Some(0.5),
            progress: 0.1,
            left_s: Some(30.0),
            before_s: 0.0,
            training_s: Some(24.0),
            tail_s: 3.0,
            margin_s: 1.0,
            end_s: Some(59.0),
            idle_s: 0.0,
            notes: vec![Note::StepsCut { steps: 60, fit: 48 }],
        };
        let (phase, steps, path) = (Phase::FinalSave, 48, PathBuf::from("fox.safetensors"));
        let moved = Event::DeadlineMoved { deadline_s: 90.0, by_s: Some(30.0) };
        vec![
            ("phase_started", Event::PhaseStarted(phase)),
            ("phase_finished", Event::PhaseFinished { phase, seconds: 0.5 }),
            ("quantised", Event::Quantised { done: 1, total: 2 }),
            ("warning", Event::Warning("left out: b.png".into())),
            ("data", Event::Data { entries: 12, buckets: 2, trainable: 100 }),
            ("resumed", Event::Resumed { steps, spent_before_s: 2.0, deadline_s: Some(60.0) }),
            ("done", Event::Done { steps, advice: "give more steps".into() }),
            ("forecast", Event::Forecast(forecast)),
            ("deadline_moved", moved),
            ("step", Event::Step(step)),
            ("saved", Event::Saved { path: path.clone(), steps }),
            ("scored", Event::Scored(scores)),
            ("contender", Event::Contender(Contender { steps, error, is_best: true })),
            ("wrote", Event::Wrote { what: "loss curve", path }),
            (
                "started",
                Event::Started { program: "train", process: 1234, version: "0.1.0", deadline_s: Some(300.0) },
            ),
            ("ended", Event::Ended { outcome: "done", steps, error: None }),
            ("progress", Event::Progress { done: 3, total: 24 }),
            ("memory", Event::Memory { host_bytes: Some(1), device_bytes: None }),
        ]
    }

    /// The place of a variant in [`all`]; a new one does not compile without one.
    fn place(event: &Event) -> usize {
        match event {
            Event::PhaseStarted(_) => 0,
            Event::PhaseFinished { .. } => 1,
            Event::Quantised { .. } => 2,
            Event::Warning(_) => 3,
            Event::Data { .. } => 4,
            Event::Resumed { .. } => 5,
            Event::Done { .. } => 6,
            Event::Forecast(_) => 7,
            Event::DeadlineMoved { .. } => 8,
            Event::Step(_) => 9,
            Event::Saved { .. } => 10,
            Event::Scored(_) => 11,
            Event::Contender(_) => 12,
            Event::Wrote { .. } => 13,
            Event::Started { .. } => 14,
            Event::Ended { .. } => 15,
            Event::Progress { .. } => 16,
            Event::Memory { .. } => 17,
        }
    }

    /// Keys of an object and of the objects in it, and whether each is a number, a text and so on.
    fn kinds(value: &Value) -> BTreeMap<String, Value> {
        let Value::Object(fields) = value else { return BTreeMap::new() };
        let mut kinds = BTreeMap::new();
        for (key, value) in fields {
            let kind = match value {
                Value::Null | Value::Number(_) => "number",
                Value::Bool(_) => "bool",
                Value::String(_) => "text",
                Value::Array(_) => "list",
                Value::Object(_) => "object",
            };
            kinds.insert(key.clone(), kind.into());
            kinds
                .extend(self::kinds(value).into_iter().map(|(inner, kind)| (format!("{key}.{inner}"), kind)));
        }
        kinds
    }

    /// The sections of the document: each event's name with its text.
    fn sections() -> BTreeMap<&'static str, &'static str> {
        let parts = DOCUMENT.split("\n### `").skip(1);
        parts.map(|part| part.split_once('`').unwrap()).collect()
    }

    #[test]
    fn every_event_has_its_documented_name_and_fields() {
        let mut sections = sections();
        for (n, (name, event)) in all().into_iter().enumerate() {
            assert_eq!(place(&event), n);
            let value = serde_json::to_value(&event).unwrap();
            assert_eq!((&value["event"], event.name()), (&name.into(), name));
            let section = sections.remove(name).unwrap_or_else(|| panic!("{name} is not documented"));
            let example = section.split("```json\n").nth(1).unwrap().split('\n').next().unwrap();
            let mut example: Value = serde_json::from_str(example).unwrap();
            for field in OF_LINES {
                assert!(example.as_object_mut().unwrap().remove(field).is_some(), "{name}: {field}");
            }
            assert_eq!(kinds(&value), kinds(&example), "{name}");
            for field in value.as_object().unwrap().keys().filter(|field| *field != "event") {
                assert!(section.contains(&format!("`{field}`")), "{name}: `{field}` is not documented");
            }
        }
        // Written beside the events of a run.
        assert!(sections.remove("note").is_some());
        assert!(sections.is_empty(), "documented and not there: {sections:?}");
    }

    #[test]
    fn every_phase_has_its_documented_name() {
        for phase in Phase::ALL {
            let value = serde_json::to_value(Event::PhaseStarted(phase)).unwrap();
            let name = value["phase"].as_str().unwrap();
            assert!(sections()["phase_started"].contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn what_is_no_number_is_null_and_any_path_is_shown() {
        let (loss, lr) = (f64::NAN, f64::INFINITY);
        let (left_s, end_s) = (None, None);
        let step = Step { done: 1, total: None, loss, smoothed: 1.0, lr, step_s: 1.0, left_s, end_s };
        let value = serde_json::to_value(Event::Step(step)).unwrap();
        assert!(["loss", "lr", "total", "left_s"].iter().all(|key| value[key].is_null()), "{value}");
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStringExt;
            let path = PathBuf::from(std::ffi::OsString::from_vec(b"f\xffx.safetensors".to_vec()));
            let value = serde_json::to_value(Event::Saved { path, steps: 1 }).unwrap();
            assert_eq!(value["path"], "f\u{fffd}x.safetensors");
        }
    }

    #[test]
    fn held_out_errors_have_their_total_by_the_weights_of_the_job() {
        for (name, event) in all() {
            let value = serde_json::to_value(event).unwrap();
            match name {
                "scored" => assert_eq!(
                    (&value["picture"]["total"], &value["velocity"]["total"]),
                    (&0.375.into(), &0.375.into())
                ),
                "contender" => assert_eq!(value["error"]["total"], 0.375),
                _ => {}
            }
        }
    }
}
