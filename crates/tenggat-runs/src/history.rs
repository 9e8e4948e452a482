//! What the events of a run add up to.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::lines::Reader;
use crate::words;

/// Lines of the log that are kept.
const MOST_LOG: usize = 400;
/// Saves, errors and the like that are kept of each kind.
const MOST_KEPT: usize = 400;
/// Measurements of memory that are kept; of more, every second one is.
const MOST_MEMORY: usize = 600;

/// What is known of a run by its events. Moments named `_s` are on the run's clock, which goes on where an
/// interrupted run is resumed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct History {
    /// The command that trains: `train`, `task`, `demo` or `drive`.
    pub program: Option<String>,
    /// When the run's clock read 0, in seconds since 1970; that of the newest process.
    pub zero_unix_s: Option<f64>,
    /// When the first process began, in seconds since 1970.
    pub began_unix_s: Option<f64>,
    /// When the newest event happened, in seconds since 1970.
    pub updated_unix_s: Option<f64>,
    /// Processes that have worked on it.
    pub processes: u32,
    /// Phases in the order in which they began.
    pub phases: Vec<PhaseSpan>,
    /// The deadline.
    pub deadline_s: Option<f64>,
    /// Steps at which the run was resumed.
    pub resumes: Vec<u64>,
    /// What was expected first: the plan.
    pub planned: Option<Expected>,
    /// What was expected last.
    pub expected: Option<Expected>,
    /// The newest step in the log; the metrics may be further.
    pub step: Option<StepNow>,
    /// LoRA files that were written.
    pub saves: Vec<Save>,
    /// Held-out errors: steps, the weighted mean, whether it is the best.
    pub errors: Vec<(u64, f64, bool)>,
    /// Memory in use.
    pub memory: Vec<Memory>,
    /// How far the phase under way is.
    pub progress: Option<(u64, u64)>,
    /// How it ended, if it has.
    pub ended: Option<Ended>,
    /// The newest news, for people.
    pub log: VecDeque<LogLine>,
    /// How far the clock of the newest process is behind the run's.
    #[serde(skip)]
    ahead_s: f64,
    /// Of the measurements of memory one is kept in so many.
    #[serde(skip)]
    memory_every: (u32, u32),
}

/// A phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseSpan {
    /// Its name in the events.
    pub phase: String,
    /// When it began.
    pub from_s: f64,
    /// When it ended, if it has.
    pub to_s: Option<f64>,
}

/// A forecast.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Expected {
    /// When it was made.
    pub at_s: f64,
    /// Steps of the whole run.
    pub steps_total: Option<u64>,
    /// Seconds per step.
    pub step_s: Option<f64>,
    /// Seconds of training to come.
    pub training_s: Option<f64>,
    /// Seconds of the phases after the last step.
    pub tail_s: f64,
    /// Seconds kept free before the deadline.
    pub margin_s: f64,
    /// When the process will end.
    pub end_s: Option<f64>,
    /// Whether the deadline ends the training, not the number of steps.
    pub by_deadline: bool,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepNow {
    /// When it was done.
    pub at_s: f64,
    /// Steps done.
    pub done: u64,
    /// Steps expected in all.
    pub total: Option<u64>,
    /// Loss averaged over about the last 50 steps.
    pub smoothed: Option<f64>,
    /// Seconds of the step.
    pub step_s: Option<f64>,
    /// When the process is expected to end.
    pub end_s: Option<f64>,
}

/// A LoRA file that was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Save {
    /// When.
    pub at_s: f64,
    /// Steps in it.
    pub steps: u64,
}

/// Memory in use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// When it was measured.
    pub at_s: f64,
    /// Bytes of the process.
    pub host_bytes: Option<f64>,
    /// Bytes of the device.
    pub device_bytes: Option<f64>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ended {
    /// When, in seconds since 1970.
    pub unix_s: f64,
    /// Whether it is done, was stopped, or failed.
    pub outcome: Outcome,
    /// Steps in what it delivered.
    pub steps: Option<u64>,
    /// What went wrong.
    pub error: Option<String>,
}

/// Ways to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// By itself.
    Done,
    /// Somebody asked for the end.
    Stopped,
    /// With an error.
    Failed,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogLine {
    /// When, in seconds since 1970.
    pub unix_s: f64,
    /// Whether it is a warning or an error.
    pub is_warning: bool,
    /// What it says.
    pub text: String,
}

/// An event on its way in.
struct Arrived<'a> {
    value: &'a Value,
    unix_s: f64,
    /// On the clock of its process.
    own_s: f64,
    /// On the run's clock.
    at_s: f64,
}

impl Arrived<'_> {
    fn number(&self, key: &str) -> Option<f64> {
        self.value[key].as_f64()
    }

    fn count(&self, key: &str) -> Option<u64> {
        self.value[key].as_u64()
    }

    fn text(&self, key: &str) -> Option<String> {
        self.value[key].as_str().map(str::to_owned)
    }
}

impl Reader for History {
    fn start_over(&mut self) {
        *self = History::default();
    }

    fn line(&mut self, line: &[u8]) {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return };
        let (Some(name), Some(own_s)) = (value["event"].as_str(), value["at_s"].as_f64()) else { return };
        let time = value["time"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let Some(unix_s) = time.map(|time| time.as_millisecond() as f64 / 1e3) else { return };
        let is_first = value["seq"].as_u64() == Some(0) || self.processes == 0;
        if is_first {
            self.begin(unix_s - own_s);
        }
        let arrived = Arrived { value: &value, unix_s, own_s, at_s: own_s + self.ahead_s };
        self.updated_unix_s = Some(unix_s);
        self.take(name, &arrived);
        if let Some((is_warning, text)) = words::of(name, &value) {
            self.log.push_back(LogLine { unix_s, is_warning, text });
            if self.log.len() > MOST_LOG {
                self.log.pop_front();
            }
        }
    }
}

impl History {
    /// Another process works on the run.
    fn begin(&mut self, zero_unix_s: f64) {
        self.processes += 1;
        self.ahead_s = 0.0;
        self.zero_unix_s = Some(zero_unix_s);
        self.began_unix_s.get_or_insert(zero_unix_s);
        // It may begin anew, or resume from a checkpoint before the newest step.
        (self.ended, self.progress, self.expected, self.step) = (None, None, None, None);
        // Those of a process that was killed.
        self.phases.retain(|phase| phase.to_s.is_some());
    }

    fn take(&mut self, name: &str, event: &Arrived<'_>) {
        match name {
            "started" => {
                self.program = event.text("program");
                self.deadline_s = event.number("deadline_s");
            }
            "resumed" => self.resume(event),
            "done" => self.has_done(event),
            "phase_started" => {
                let Some(phase) = event.text("phase") else { return };
                self.progress = None;
                self.phases.push(PhaseSpan { phase, from_s: event.at_s, to_s: None });
                keep_newest(&mut self.phases);
            }
            "phase_finished" => {
                let phase = event.text("phase").unwrap_or_default();
                self.progress = None;
                let open = self.phases.iter_mut().rev().find(|p| p.phase == phase && p.to_s.is_none());
                if let Some(open) = open {
                    open.to_s = Some(event.at_s);
                }
            }
            "progress" => self.progress = event.count("done").zip(event.count("total")),
            "forecast" => self.expect(event),
            "deadline_moved" => self.deadline_s = event.number("deadline_s").or(self.deadline_s),
            "step" => self.step(event),
            "saved" => {
                self.saves.extend(event.count("steps").map(|steps| Save { at_s: event.at_s, steps }));
                keep_newest(&mut self.saves);
            }
            "contender" => self.error(event, &event.value["error"], event.value["is_best"] == true),
            "scored" => self.error(event, &event.value["velocity"], false),
            "memory" => self.memory(event),
            "ended" => self.end(event),
            _ => {}
        }
    }

    fn resume(&mut self, event: &Arrived<'_>) {
        self.ahead_s = event.number("ahead_s").unwrap_or(0.0);
        self.zero_unix_s = Some(event.unix_s - event.own_s - self.ahead_s);
        self.deadline_s = event.number("deadline_s").or(self.deadline_s);
        self.has_done(event);
        if let Some(steps) = event.count("steps").filter(|steps| *steps > 0) {
            self.resumes.push(steps);
            keep_newest(&mut self.resumes);
        }
    }

    /// Steps of earlier processes.
    fn has_done(&mut self, event: &Arrived<'_>) {
        let Some(done) = event.count("steps") else { return };
        let at_s = event.at_s;
        self.step = Some(StepNow { at_s, done, total: None, smoothed: None, step_s: None, end_s: None });
    }

    fn expect(&mut self, event: &Arrived<'_>) {
        let expected = Expected {
            at_s: event.at_s,
            steps_total: event.count("steps_total"),
            step_s: event.number("step_s"),
            training_s: event.number("training_s"),
            tail_s: event.number("tail_s").unwrap_or(0.0),
            margin_s: event.number("margin_s").unwrap_or(0.0),
            end_s: event.number("end_s"),
            by_deadline: event.value["ruled_by"] == "deadline",
        };
        self.planned.get_or_insert_with(|| expected.clone());
        self.expected = Some(expected);
    }

    fn step(&mut self, event: &Arrived<'_>) {
        let Some(done) = event.count("done") else { return };
        self.step = Some(StepNow {
            at_s: event.at_s,
            done,
            total: event.count("total"),
            smoothed: event.number("smoothed"),
            step_s: event.number("step_s"),
            end_s: event.number("end_s"),
        });
    }

    fn error(&mut self, event: &Arrived<'_>, error: &Value, is_best: bool) {
        let Some(total) = words::total(error) else { return };
        let done = self.step.as_ref().map_or(0, |step| step.done);
        let after = if event.value["trained"] == false { 0 } else { done };
        let steps = event.count("steps").unwrap_or(after);
        self.errors.push((steps, total, is_best));
        keep_newest(&mut self.errors);
    }

    fn memory(&mut self, event: &Arrived<'_>) {
        let (seen, every) = &mut self.memory_every;
        *seen = seen.wrapping_add(1);
        let (host_bytes, device_bytes) = (event.number("host_bytes"), event.number("device_bytes"));
        if !seen.is_multiple_of((*every).max(1)) {
            return;
        }
        self.memory.push(Memory { at_s: event.at_s, host_bytes, device_bytes });
        if self.memory.len() > MOST_MEMORY {
            let mut n = 0;
            self.memory.retain(|_| {
                n += 1;
                n % 2 == 0
            });
            *every = (*every).max(1).saturating_mul(2);
        }
    }

    fn end(&mut self, event: &Arrived<'_>) {
        let outcome = match event.value["outcome"].as_str() {
            Some("done") => Outcome::Done,
            Some("stopped") => Outcome::Stopped,
            _ => Outcome::Failed,
        };
        let (steps, error) = (event.count("steps"), event.text("error"));
        self.ended = Some(Ended { unix_s: event.unix_s, outcome, steps, error });
    }

    /// The phase under way.
    pub fn phase(&self) -> Option<&PhaseSpan> {
        self.phases.iter().rev().find(|phase| phase.to_s.is_none())
    }
}

/// Drops the oldest of too many.
fn keep_newest<T>(kept: &mut Vec<T>) {
    if kept.len() > MOST_KEPT {
        kept.drain(..kept.len() - MOST_KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lines: &[String]) -> History {
        let mut history = History::default();
        lines.iter().for_each(|line| history.line(line.as_bytes()));
        history
    }

    fn line(seq: u64, at_s: f64, rest: &str) -> String {
        let time = Timestamp::from_millisecond(1_800_000_000_000 + (at_s * 1e3) as i64).unwrap();
        format!("{{\"v\":1,\"seq\":{seq},\"time\":\"{time}\",\"at_s\":{at_s},{rest}}}")
    }

    #[test]
    fn the_clock_goes_on_where_a_run_is_resumed() {
        let history = history(&[
            line(0, 0.0, r#""event":"started","program":"train","deadline_s":300.0"#),
            line(1, 1.0, r#""event":"phase_started","phase":"load""#),
            line(2, 3.0, r#""event":"phase_finished","phase":"load","seconds":2.0"#),
            line(3, 3.5, r#""event":"phase_started","phase":"train""#),
            // Killed; an hour later it goes on.
            line(0, 3600.0, r#""event":"started","program":"train","deadline_s":300.0"#),
            line(1, 3600.0, r#""event":"resumed","steps":40,"ahead_s":60.0,"deadline_s":300.0"#),
            line(2, 3610.0, r#""event":"phase_started","phase":"train""#),
        ]);
        assert_eq!((history.processes, history.resumes.as_slice()), (2, &[40][..]));
        let names: Vec<_> = history.phases.iter().map(|p| (p.phase.as_str(), p.from_s, p.to_s)).collect();
        assert_eq!(names, [("load", 1.0, Some(3.0)), ("train", 3670.0, None)]);
        assert_eq!(history.phase().unwrap().phase, "train");
        assert_eq!(history.zero_unix_s, Some(1_800_000_000.0 - 60.0));
    }

    #[test]
    fn steps_of_a_process_before_do_not_count_as_its_own() {
        let lines = [
            line(0, 0.0, r#""event":"started","program":"train","deadline_s":300.0"#),
            line(1, 5.0, r#""event":"step","done":47,"total":100,"end_s":90.0"#),
            // Killed; it goes on from a checkpoint.
            line(0, 60.0, r#""event":"started","program":"train","deadline_s":300.0"#),
            line(1, 60.1, r#""event":"resumed","steps":40,"ahead_s":6.0,"deadline_s":300.0"#),
            // Begun anew, and finished.
            line(0, 99.0, r#""event":"started","program":"train","deadline_s":300.0"#),
            line(1, 99.5, r#""event":"done","steps":100,"advice":"give more steps""#),
        ];
        let step = |count: usize| history(&lines[..count]).step.map(|step| (step.done, step.end_s));
        let steps: Vec<_> = (1..=6).map(step).collect();
        let expected = [None, Some((47, Some(90.0))), None, Some((40, None)), None, Some((100, None))];
        assert_eq!(steps, expected);
    }

    #[test]
    fn events_add_up() {
        let history = history(&[
            line(0, 0.0, r#""event":"started","program":"drive","deadline_s":null"#),
            line(
                1,
                5.0,
                r#""event":"forecast","steps_total":100,"ruled_by":"deadline","step_s":1.0,"training_s":90.0,"tail_s":4.0,"margin_s":1.0,"end_s":100.0"#,
            ),
            line(
                2,
                6.0,
                r#""event":"step","done":6,"total":101,"loss":0.5,"smoothed":0.6,"step_s":1.0,"end_s":99.0"#,
            ),
            line(3, 7.0, r#""event":"deadline_moved","deadline_s":400.0,"by_s":null"#),
            line(
                4,
                8.0,
                r#""event":"contender","steps":6,"error":{"captioned":0.4,"empty":0.8},"is_best":true"#,
            ),
            line(
                4,
                8.5,
                r#""event":"contender","steps":8,"error":{"captioned":0.4,"empty":0.8,"total":0.6},"is_best":false"#,
            ),
            line(5, 9.0, r#""event":"memory","host_bytes":1e9,"device_bytes":null"#),
            line(6, 10.0, r#""event":"saved","path":"last.safetensors","steps":6"#),
            line(7, 11.0, r#""event":"warning","text":"slow"#).as_str().to_owned() + "\"}",
            line(7, 11.0, r#""event":"warning","text":"slow \u001b[31m disk""#),
            line(8, 12.0, r#""event":"ended","outcome":"failed","steps":6,"error":"no disk""#),
            line(9, 13.0, r#""event":"of a later version","x":[1]"#),
        ]);
        assert_eq!(history.planned, history.expected);
        assert_eq!(history.step.as_ref().unwrap().end_s, Some(99.0));
        assert_eq!(history.deadline_s, Some(400.0));
        let (steps, error, is_best) = history.errors[0];
        assert!(steps == 6 && is_best && (error - 0.7).abs() < 1e-12);
        let (steps, error, is_best) = history.errors[1];
        assert!(steps == 8 && !is_best && (error - 0.6).abs() < 1e-12);
        assert_eq!(history.memory[0].host_bytes, Some(1e9));
        assert_eq!(history.ended.as_ref().unwrap().outcome, Outcome::Failed);
        assert!(history.log.iter().any(|line| line.is_warning && line.text.contains("disk")));
        assert!(history.log.iter().all(|line| !line.text.contains('\u{1b}')), "{:?}", history.log);
    }

    #[test]
    fn what_is_spoilt_is_left_out() {
        let mut history = History::default();
        for spoilt in [
            &b""[..],
            b"{",
            b"null",
            b"[]",
            b"{\"event\":\"step\"}",
            b"{\"event\":7,\"at_s\":1,\"time\":\"x\"}",
            b"{\"event\":\"step\",\"at_s\":1,\"time\":\"yesterday\",\"done\":-1}",
            b"\xff\xff\xff",
        ] {
            history.line(spoilt);
        }
        assert_eq!(history, History::default());
        // Fields of the wrong kind.
        for name in ["started", "resumed", "phase_started", "phase_finished", "progress", "forecast", "step"]
        {
            history
                .line(line(1, 1.0, &format!("\"event\":\"{name}\",\"phase\":[],\"done\":\"x\"")).as_bytes());
        }
        for name in ["deadline_moved", "saved", "contender", "scored", "memory", "ended", "wrote", "data"] {
            history.line(line(1, 1.0, &format!("\"event\":\"{name}\",\"error\":3,\"path\":{{}}")).as_bytes());
        }
        assert!(history.step.is_none() && history.phases.is_empty());
    }

    #[test]
    fn a_long_history_stays_small() {
        let mut history = History::default();
        for n in 0..5000_u32 {
            let at_s = f64::from(n);
            history.line(line(n.into(), at_s, r#""event":"memory","host_bytes":1"#).as_bytes());
            history.line(line(9, at_s, r#""event":"warning","text":"x""#).as_bytes());
            history.line(line(9, at_s, r#""event":"saved","path":"x","steps":1"#).as_bytes());
        }
        assert!(history.memory.len() <= MOST_MEMORY && history.memory.len() > MOST_MEMORY / 4);
        assert_eq!((history.log.len(), history.saves.len()), (MOST_LOG, MOST_KEPT));
        assert_eq!(history.memory.first().map(|m| m.at_s < 100.0), Some(true));
    }
}
