//! A trainer in simulated time that behaves like ai-toolkit's, and badly if its script says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::dice::Dice;
use tenggat_drive::{
    Ask, Delivery, Event, Exit, Look, Mark, Result, Room, Session, Stage, Tower, Trainer, Trouble,
};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The process dies.
    Crash { at_s: f64, trouble: Trouble },
    /// The step that is under way then takes so much longer.
    Stall { at_s: f64, for_s: f64 },
    /// The machine sleeps: the clock goes on, and nothing else does.
    Sleep { at_s: f64, for_s: f64 },
    /// Every session counts from 0.
    ResumesAtZero,
    /// The wish to stop is not heard.
    IgnoresStop,
    /// The first wish for a save is not heard.
    IgnoresOneSave,
    /// The so many-th save holds numbers that are none.
    SpoilsSave { number: u32 },
    /// A save takes so many times as long from then on.
    SlowSaves { from_s: f64, times: f64 },
}

/// How a simulated trainer behaves.
#[derive(Debug, Clone)]
pub struct Script {
    pub deadline_s: f64,
    pub asked: Option<u64>,
    pub anneals: bool,
    pub load_s: f64,
    pub step_s: f64,
    /// Largest random deviation of a step, as a share.
    pub noise: f64,
    /// From when on steps take how many times as long.
    pub pace: Vec<(f64, f64)>,
    pub save_s: f64,
    pub publish_s: f64,
    pub save_every: Option<u64>,
    pub sample_every: Option<u64>,
    pub round_s: f64,
    pub stop_s: f64,
    pub faults: Vec<Fault>,
    /// Room on the disk from when on, if it is looked at.
    pub room: Vec<(f64, Room)>,
    /// Bytes that old saves take, once.
    pub room_made: u64,
    pub seed: u64,
}

impl Script {
    /// 100 s, steps of 0.1 s, nothing special.
    pub fn plain() -> Self {
        Script {
            deadline_s: 100.0,
            asked: None,
            anneals: false,
            load_s: 2.0,
            step_s: 0.1,
            noise: 0.05,
            pace: Vec::new(),
            save_s: 0.2,
            publish_s: 0.05,
            save_every: None,
            sample_every: None,
            round_s: 0.0,
            stop_s: 0.5,
            faults: Vec::new(),
            room: Vec::new(),
            room_made: 0,
            seed: 0,
        }
    }

    /// A budget of a minute to some hours, and a steady pace.
    pub fn steady(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let deadline_s = 60.0 * 200f64.powf(dice.roll());
        let step_s = deadline_s * dice.between(0.0005, 0.006);
        let load_s = deadline_s * dice.between(0.005, 0.1);
        let fit = (deadline_s - load_s) / step_s;
        Script {
            deadline_s,
            asked: dice.chance(0.3).then(|| (fit * dice.between(0.3, 2.0)) as u64),
            anneals: dice.chance(0.5),
            load_s,
            step_s,
            noise: dice.between(0.0, 0.2),
            save_s: deadline_s * dice.between(0.0005, 0.005),
            publish_s: deadline_s * dice.between(0.0001, 0.002),
            save_every: dice.chance(0.5).then(|| (fit / dice.between(3.0, 12.0)) as u64 + 1),
            stop_s: deadline_s * dice.between(0.0005, 0.02),
            seed,
            ..Script::plain()
        }
    }

    /// The pace changes by ×0.3 to ×3, once or several times.
    pub fn drifting(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0xd1f7);
        let mut script = Script::steady(seed ^ 0x5eed);
        script.step_s = script.step_s.min(0.002 * script.deadline_s);
        let changes = 1 + (dice.roll() * 3.0) as usize;
        script.pace = (0..changes)
            .map(|_| (dice.between(0.05, 0.9) * script.deadline_s, 0.3 * 10f64.powf(dice.roll())))
            .collect();
        script.pace.sort_by(|a, b| a.0.total_cmp(&b.0));
        script
    }

    /// Up to three faults, samples, drift.
    pub fn faulty(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0xfa17);
        let mut script = if dice.chance(0.5) { Script::drifting(seed) } else { Script::steady(seed) };
        let d = script.deadline_s;
        if dice.chance(0.3) {
            script.sample_every = Some(1 + (d / script.step_s * dice.between(0.05, 0.6)) as u64);
            script.round_s = d * dice.between(0.01, 0.4);
        }
        let troubles =
            [Trouble::OutOfMemory, Trouble::Killed, Trouble::DiskFull, Trouble::Driver, Trouble::Error];
        for _ in 0..1 + (dice.roll() * 3.0) as usize {
            let at_s = dice.between(0.0, 1.0) * d;
            script.faults.push(match (dice.roll() * 7.0) as u32 {
                0 => Fault::Crash { at_s, trouble: troubles[(dice.roll() * 5.0) as usize] },
                1 => Fault::Stall { at_s, for_s: d * 0.005 * 2000f64.powf(dice.roll()) },
                2 => Fault::ResumesAtZero,
                3 => Fault::IgnoresStop,
                4 => Fault::IgnoresOneSave,
                5 => Fault::SpoilsSave { number: 1 + (dice.roll() * 4.0) as u32 },
                _ => Fault::SlowSaves { from_s: at_s, times: dice.between(1.0, 40.0) },
            });
        }
        script
    }
}

/// What the process is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Doing {
    Loading,
    FirstSamples,
    Step,
    /// A save; the step's own if `periodic`, else one that was asked for.
    Save {
        periodic: bool,
    },
    FinalSave,
    Samples,
    Ending {
        completed: bool,
    },
}

struct Process {
    doing: Doing,
    until_s: f64,
    step: u64,
    start: u64,
    reported: Option<u64>,
    save: bool,
    stop: bool,
    /// Steps in the file that is being written.
    writing: u64,
}

/// The trainer.
pub struct Simulated {
    pub script: Script,
    pub session: Session,
    pub published: u64,
    /// Most updates that any session did beyond what it began with.
    pub trained: u64,
    pub whole_files: Vec<u64>,
    pub stop: Arc<AtomicBool>,
    pub interrupt_at_s: Option<f64>,
    now_s: f64,
    process: Option<Process>,
    exit: Option<Exit>,
    spoilt: Vec<u64>,
    saves: u32,
    done: Vec<bool>,
    dice: Dice,
}

impl Simulated {
    pub fn new(script: Script) -> Self {
        Simulated {
            session: Session { number: 0, from: 0, steps: 0, no_samples: false, shrink: 0 },
            published: 0,
            trained: 0,
            whole_files: Vec::new(),
            stop: Arc::default(),
            interrupt_at_s: None,
            now_s: 0.0,
            process: None,
            exit: None,
            spoilt: Vec::new(),
            saves: 0,
            done: vec![false; script.faults.len()],
            dice: Dice::new(script.seed),
            script,
        }
    }

    pub fn now(&self) -> f64 {
        self.now_s
    }

    pub fn is_alive(&self) -> bool {
        self.process.is_some()
    }

    fn has(&self, fault: Fault) -> bool {
        self.script.faults.contains(&fault)
    }

    fn end(&mut self, completed: bool, trouble: Trouble) {
        if self.process.take().is_some() {
            self.exit = Some(Exit { completed, trouble, words: String::new() });
        }
    }

    fn step_time(&mut self) -> f64 {
        let factor = self.script.pace.iter().rev().find(|(from, _)| *from <= self.now_s).map_or(1.0, |p| p.1);
        let noise = 1.0 + self.script.noise * (2.0 * self.dice.roll() - 1.0);
        self.script.step_s * factor * noise
    }

    fn save_time(&self) -> f64 {
        let slow = self.script.faults.iter().filter_map(|f| match f {
            Fault::SlowSaves { from_s, times } if *from_s <= self.now_s => Some(*times),
            _ => None,
        });
        self.script.save_s * slow.fold(1.0, f64::max)
    }

    /// Faults that come at a moment.
    fn strike(&mut self) {
        for i in 0..self.done.len() {
            if self.done[i] || self.process.is_none() {
                continue;
            }
            match self.script.faults[i] {
                Fault::Crash { at_s, trouble } if at_s <= self.now_s => {
                    self.done[i] = true;
                    self.end(false, trouble);
                }
                Fault::Stall { at_s, for_s } if at_s <= self.now_s => {
                    self.done[i] = true;
                    if let Some(process) = &mut self.process {
                        process.until_s += for_s;
                    }
                }
                _ => {}
            }
        }
    }

    /// The machine sleeps if it is time to.
    fn sleep(&mut self) {
        for i in 0..self.done.len() {
            let Fault::Sleep { at_s, for_s } = self.script.faults[i] else { continue };
            if !self.done[i] && at_s <= self.now_s {
                self.done[i] = true;
                self.now_s += for_s;
                self.process.iter_mut().for_each(|process| process.until_s += for_s);
            }
        }
    }

    /// The process goes on until `to_s`.
    fn advance(&mut self, to_s: f64) {
        loop {
            self.strike();
            let Some(until_s) = self.process.as_ref().map(|p| p.until_s) else { break };
            let next_fault_s = self.next_fault_s();
            let event_s = until_s.min(next_fault_s);
            if event_s > to_s {
                break;
            }
            self.now_s = self.now_s.max(event_s);
            if event_s == until_s {
                self.finish_doing();
            }
        }
        self.now_s = self.now_s.max(to_s);
        if self.interrupt_at_s.is_some_and(|at_s| at_s <= self.now_s) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn next_fault_s(&self) -> f64 {
        let waiting = self.script.faults.iter().zip(&self.done).filter(|(_, done)| !**done);
        waiting
            .filter_map(|(fault, _)| match fault {
                Fault::Crash { at_s, .. } | Fault::Stall { at_s, .. } => Some(*at_s),
                _ => None,
            })
            .fold(f64::INFINITY, f64::min)
    }

    fn finish_doing(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        match process.doing {
            Doing::Loading if process.start == 0 && self.samples() => {
                self.go(&mut process, Doing::FirstSamples, self.script.round_s);
            }
            Doing::Loading | Doing::FirstSamples => {
                process.reported = Some(process.step);
                self.next_step(&mut process);
            }
            Doing::Step => {
                process.step += 1;
                self.trained = self.trained.max(process.step);
                let index = process.step - 1;
                let periodic =
                    self.script.save_every.is_some_and(|n| index % n == 0) && index != process.start;
                if periodic && process.stop && !self.has(Fault::IgnoresStop) {
                    // ai-toolkit looks for the wish before it writes.
                    self.go(&mut process, Doing::Ending { completed: false }, self.script.stop_s);
                } else if periodic {
                    self.begin_save(&mut process, Doing::Save { periodic: true }, index);
                } else {
                    self.after_save(&mut process);
                }
            }
            Doing::Save { periodic } => {
                self.written(process.writing);
                if periodic { self.after_save(&mut process) } else { self.next_step(&mut process) }
            }
            Doing::Samples => self.end_step(&mut process),
            Doing::FinalSave => {
                self.written(process.writing);
                self.go(&mut process, Doing::Ending { completed: true }, self.script.stop_s);
            }
            Doing::Ending { completed } => {
                self.exit = Some(Exit { completed, trouble: Trouble::None, words: String::new() });
                return;
            }
        }
        self.process = Some(process);
    }

    fn samples(&self) -> bool {
        self.script.sample_every.is_some() && !self.session.no_samples
    }

    fn go(&self, process: &mut Process, doing: Doing, seconds: f64) {
        process.doing = doing;
        process.until_s = self.now_s + seconds;
    }

    fn begin_save(&self, process: &mut Process, doing: Doing, steps: u64) {
        process.writing = steps;
        self.go(process, doing, self.save_time());
    }

    /// After the step's own save: its samples, then its end.
    fn after_save(&mut self, process: &mut Process) {
        let index = process.step - 1;
        let due = self.script.sample_every.is_some_and(|n| index.is_multiple_of(n)) && index != process.start;
        if due && self.samples() {
            self.go(process, Doing::Samples, self.script.round_s);
        } else {
            self.end_step(process);
        }
    }

    fn end_step(&mut self, process: &mut Process) {
        process.reported = Some(process.step);
        if process.stop && !self.has(Fault::IgnoresStop) {
            return self.go(process, Doing::Ending { completed: false }, self.script.stop_s);
        }
        if process.save {
            process.save = false;
            let ignored = self.script.faults.iter().position(|f| *f == Fault::IgnoresOneSave);
            match ignored.filter(|i| !self.done[*i]) {
                Some(i) => self.done[i] = true,
                None => return self.begin_save(process, Doing::Save { periodic: false }, process.step),
            }
        }
        self.next_step(process);
    }

    fn next_step(&mut self, process: &mut Process) {
        if process.step >= self.session.steps {
            return self.begin_save(process, Doing::FinalSave, process.step);
        }
        let seconds = self.step_time();
        self.go(process, Doing::Step, seconds);
    }

    fn written(&mut self, steps: u64) {
        self.saves += 1;
        let number = self.saves;
        let spoils = self.script.faults.contains(&Fault::SpoilsSave { number });
        if spoils { self.spoilt.push(steps) } else { self.whole_files.push(steps) }
    }
}

impl Trainer for Simulated {
    fn now_s(&self) -> f64 {
        self.now_s
    }

    fn wait(&mut self, seconds: f64) {
        assert!(seconds > 0.0, "a pilot that waits for {seconds} s burns the processor");
        self.advance(self.now_s + seconds);
        self.sleep();
    }

    fn start(&mut self, session: &Session) -> Result<()> {
        assert!(self.process.is_none(), "two trainers at once");
        self.session = session.clone();
        self.exit = None;
        let zero = self.has(Fault::ResumesAtZero);
        let start = if zero { 0 } else { self.published };
        assert_eq!(session.from, self.published);
        self.process = Some(Process {
            doing: Doing::Loading,
            until_s: self.now_s + self.script.load_s,
            step: start,
            start,
            reported: None,
            save: false,
            stop: false,
            writing: 0,
        });
        Ok(())
    }

    fn look(&mut self) -> Look {
        let stage = match self.process.as_ref().map(|p| p.doing) {
            None | Some(Doing::Loading) => Stage::Loading,
            Some(Doing::FirstSamples | Doing::Samples) => Stage::Sampling,
            Some(Doing::Step | Doing::Ending { .. }) => Stage::Training,
            Some(Doing::Save { .. } | Doing::FinalSave) => Stage::Saving,
        };
        Look {
            stage,
            step: self.process.as_ref().and_then(|p| p.reported),
            save_pending: self.process.as_ref().is_some_and(|p| p.save),
            loss: None,
            lr: None,
            exit: self.exit.clone(),
        }
    }

    fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Kill => self.end(false, Trouble::Killed),
            Ask::Interrupt if self.has(Fault::IgnoresStop) => {}
            Ask::Interrupt => {
                let saving = matches!(self.process.as_ref().map(|p| p.doing), Some(Doing::Save { .. }));
                assert!(!saving, "interrupted in a save");
                self.end(false, Trouble::None);
            }
            Ask::Save => self.process.iter_mut().for_each(|p| p.save = true),
            Ask::Stop => self.process.iter_mut().for_each(|p| p.stop = true),
        }
    }

    fn deliver(&mut self, beyond: u64, _until_s: f64) -> Delivery {
        if let Some(steps) = self.spoilt.pop() {
            return Delivery::Spoilt { path: format!("{steps}").into(), why: "it holds NaN".into() };
        }
        let Some(steps) = self.whole_files.iter().copied().max().filter(|steps| *steps > beyond) else {
            return Delivery::Nothing;
        };
        self.advance(self.now_s + self.script.publish_s);
        self.published = steps;
        Delivery::Delivered { path: "last.safetensors".into(), steps, seconds: self.script.publish_s }
    }

    fn room(&mut self) -> Option<Room> {
        self.script.room.iter().rev().find(|(from_s, _)| *from_s <= self.now_s).map(|(_, room)| room.clone())
    }

    fn make_room(&mut self) -> u64 {
        let made = std::mem::take(&mut self.script.room_made);
        self.script.room.iter_mut().for_each(|(_, room)| room.free += made);
        made
    }

    fn clues(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// What was told.
#[derive(Default)]
pub struct Log {
    pub lines: Vec<String>,
    pub saved: Vec<u64>,
    pub saved_at_s: Vec<f64>,
    last_s: f64,
}

impl Log {
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

impl Tower for Log {
    fn show(&mut self, event: Event) {
        match event {
            Event::Step(step) => self.last_s = step.time_s,
            Event::Saved { steps, .. } => {
                self.saved.push(steps);
                self.saved_at_s.push(self.last_s);
                self.lines.push(format!("{:.2} saved {steps}", self.last_s));
            }
            Event::Forecast(_) => {}
            other => self.lines.push(format!("{:.2} {other:?}", self.last_s)),
        }
    }

    fn keep(&mut self, _mark: Mark) {}
}
