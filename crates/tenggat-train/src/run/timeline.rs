//! The one way to run a phase: it is timed, the budget learns of it, and events announce its start and its
//! end, however it ends.

use tenggat_plan::{Budget, Clock, Phase, PhaseRecord};

use super::Result;
use super::event::Event;
use super::stop::Stop;

/// What every part of a run needs: the time, the budget, who watches, and whether to stop.
pub(super) struct Timeline<'a, L = Budget> {
    /// The run's clock.
    pub clock: &'a dyn Clock,
    /// Where news goes.
    pub show: &'a mut dyn FnMut(Event),
    /// Interrupts the run, or requests a save, from outside.
    pub stop: &'a Stop,
    /// The budget; [`NoBudgetYet`] until enough is known to make one.
    pub budget: L,
}

/// What keeps the times of phases.
pub(super) trait Ledger {
    /// Notes that a phase began.
    fn started(&mut self, phase: Phase, now_s: f64);
    /// Notes that it ended.
    fn finished(&mut self, phase: Phase, now_s: f64);
    /// The phases so far.
    fn records(&self) -> &[PhaseRecord];
}

/// The phases before there is a budget; it is told of them when it is created.
#[derive(Debug, Default)]
pub(super) struct NoBudgetYet {
    records: Vec<PhaseRecord>,
}

impl Ledger for NoBudgetYet {
    fn started(&mut self, phase: Phase, now_s: f64) {
        self.records.push(PhaseRecord { phase, started_s: now_s, finished_s: None });
    }

    fn finished(&mut self, phase: Phase, now_s: f64) {
        let open = |r: &&mut PhaseRecord| r.phase == phase && r.finished_s.is_none();
        if let Some(record) = self.records.iter_mut().rev().find(open) {
            record.finished_s = Some(now_s);
        }
    }

    fn records(&self) -> &[PhaseRecord] {
        &self.records
    }
}

impl Ledger for Budget {
    fn started(&mut self, phase: Phase, now_s: f64) {
        self.phase_started(phase, now_s);
    }

    fn finished(&mut self, phase: Phase, now_s: f64) {
        self.phase_finished(phase, now_s);
    }

    fn records(&self) -> &[PhaseRecord] {
        self.phase_records()
    }
}

/// A run that has phases.
pub(super) trait Timed<'a> {
    /// What keeps its times.
    type Ledger: Ledger;

    /// Its timeline.
    fn timeline(&mut self) -> &mut Timeline<'a, Self::Ledger>;

    /// Does the work of a phase. Its end is noted and announced also if it failed or was interrupted.
    ///
    /// # Errors
    /// Those of `work`.
    fn phase<T>(&mut self, phase: Phase, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let time = self.timeline();
        let began_s = time.now_s();
        time.budget.started(phase, began_s);
        time.tell(Event::PhaseStarted(phase));
        let result = work(self);
        let time = self.timeline();
        let now_s = time.now_s();
        time.budget.finished(phase, now_s);
        time.tell(Event::PhaseFinished { phase, seconds: now_s - began_s });
        result
    }
}

impl<'a> Timeline<'a, NoBudgetYet> {
    /// The timeline of a new run.
    pub fn new(clock: &'a dyn Clock, stop: &'a Stop, show: &'a mut dyn FnMut(Event)) -> Self {
        Timeline { clock, show, stop, budget: NoBudgetYet::default() }
    }

    /// Continues with a budget, which knows the phases so far.
    pub fn with_budget(self, budget: Budget) -> Timeline<'a> {
        Timeline { clock: self.clock, show: self.show, stop: self.stop, budget }
    }
}

impl Timeline<'_> {
    /// Seconds until the deadline, if there is one.
    pub fn left_s(&self) -> Option<f64> {
        self.budget.deadline_s().map(|s| s - self.now_s())
    }

    /// Whether the budget has time for a phase that comes now.
    pub fn allows(&mut self, phase: Phase) -> bool {
        self.budget.allows(phase, self.clock.now_s())
    }
}

impl<L> Timeline<'_, L> {
    /// Seconds on the run's clock.
    pub fn now_s(&self) -> f64 {
        self.clock.now_s()
    }

    /// Tells whoever watches.
    pub fn tell(&mut self, event: Event) {
        (self.show)(event);
    }

    /// Tells what the user should know.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.tell(Event::Warning(text.into()));
    }

    /// Images that cannot be written are only a warning: the training is worth more.
    ///
    /// # Errors
    /// Everything but a file that cannot be read or written.
    pub fn unless_of_a_file<T>(&mut self, done: Result<T>) -> Result<Option<T>> {
        match done {
            Err(e) if e.is_of_a_file() => {
                self.warn(e.to_string());
                Ok(None)
            }
            done => done.map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use tenggat_plan::{BudgetConfig, SimulatedClock};

    use super::*;
    use crate::run::Error;

    /// A run that is nothing but a timeline.
    struct Bare<'a, L>(Timeline<'a, L>);

    impl<'a, L: Ledger> Timed<'a> for Bare<'a, L> {
        type Ledger = L;

        fn timeline(&mut self) -> &mut Timeline<'a, L> {
            &mut self.0
        }
    }

    #[test]
    fn every_phase_is_timed_and_announced_also_one_that_fails() {
        let (clock, stop, mut events) = (SimulatedClock::default(), Stop::default(), Vec::new());
        let mut show = |event| events.push(event);
        let mut run = Bare(Timeline::new(&clock, &stop, &mut show));
        run.phase(Phase::Load, |_| {
            clock.advance(2.0);
            Ok(())
        })
        .unwrap();
        let failed = run.phase(Phase::Cache, |_| -> Result<()> {
            clock.advance(3.0);
            Err(Error::Job("no images".into()))
        });
        assert!(failed.is_err());
        let times = |ledger: &dyn Ledger| -> Vec<_> {
            ledger.records().iter().map(|r| (r.phase, r.started_s, r.finished_s)).collect()
        };
        let known = [(Phase::Load, 0.0, Some(2.0)), (Phase::Cache, 2.0, Some(5.0))];
        assert_eq!(times(&run.0.budget), known);

        let config = BudgetConfig { deadline_s: Some(60.0), ..BudgetConfig::default() };
        let mut run = Bare(run.0.with_budget(Budget::new(config).unwrap()));
        run.phase(Phase::FinalSave, |run| {
            clock.advance(1.0);
            run.0.warn("slow disk");
            Ok(())
        })
        .unwrap();
        assert_eq!(times(&run.0.budget), [(Phase::FinalSave, 5.0, Some(6.0))]);
        assert_eq!(run.0.left_s(), Some(54.0));

        let phases = [(Phase::Load, 2.0), (Phase::Cache, 3.0), (Phase::FinalSave, 1.0)];
        let mut told = events.into_iter().filter(|event| !matches!(event, Event::Warning(_)));
        for (expected, lasted_s) in phases {
            let (begin, end) = (told.next(), told.next());
            assert!(matches!(begin, Some(Event::PhaseStarted(phase)) if phase == expected), "{begin:?}");
            let is_its_end = |phase, seconds| phase == expected && seconds == lasted_s;
            assert!(
                matches!(end, Some(Event::PhaseFinished { phase, seconds }) if is_its_end(phase, seconds)),
                "{end:?}"
            );
        }
        assert!(told.next().is_none());
    }
}
