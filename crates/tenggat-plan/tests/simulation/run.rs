//! One rehearsed run: a training loop without the training.

use tenggat_plan::{
    BucketConfig, Budget, BudgetConfig, Clock, Decision, FinishReason, PartTime, Phase, PhaseCosts,
    SamplePlan, SampleVerdict, SimulatedClock,
};

use crate::random::Random;
use crate::weather::{Kind, Stall, Weather};

/// What a run is like, undisturbed.
pub struct Scene {
    pub kind: Kind,
    pub budget_s: f64,
    pub step_s: f64,
    pub save_s: f64,
    buckets: Vec<(f64, f64)>,
    samples: Option<(u64, f64)>,
    phases: Vec<(Phase, f64)>,
    /// Predictions are off by this factor.
    misjudged: f64,
    forecast: bool,
    /// Whether the closing score takes further draws as long as there is time.
    scores_until_the_end: bool,
}

/// How it went.
pub struct Outcome {
    pub end_s: f64,
    pub steps: u64,
    pub last_progress: f64,
    pub reason: FinishReason,
    pub first_save_s: Option<f64>,
    pub train_began_s: f64,
    pub longest_unsaved_s: f64,
    pub skipped_phases: usize,
    pub skipped_parts: u64,
    pub parts: u64,
    pub skipped_samples: u64,
    pub saved: bool,
    pub stalls: Vec<Stall>,
    pub monotone: bool,
}

impl Scene {
    pub fn random(seed: u64, random: &mut Random) -> Self {
        let kind = Kind::ALL[(seed % Kind::ALL.len() as u64) as usize];
        let budget_s = random.log_between(60.0, 12.0 * 3600.0);
        // Up to 100,000 steps, else the rehearsals of long runs with short steps would take all the time.
        let step_s = random.log_between((budget_s / 1e5).max(0.05), 12.0);
        let part = |random: &mut Random, most: f64| budget_s * random.log_between(most / 50.0, most);
        let save_s = random.log_between(0.02, 20.0).min(0.015 * budget_s);
        let mut buckets = vec![(step_s, 1.0)];
        if kind == Kind::SlowBucket || kind == Kind::Everything {
            buckets.push((step_s * random.between(0.4, 0.9), random.between(0.3, 1.5)));
            // A single step of the slow bucket takes no more than a tenth of the budget while nothing
            // disturbs it.
            let slow_s = (step_s * random.between(2.0, 8.0)).min(0.1 * budget_s).max(step_s);
            buckets.push((slow_s, random.between(0.02, 0.4)));
        }
        let several = buckets.len() > 1;
        let score_s = part(random, 0.03);
        let sample_s = part(random, 0.02);
        let sampled = random.chance(0.5);
        let mut phases = vec![(Phase::Load, part(random, 0.1)), (Phase::Cache, part(random, 0.05))];
        if random.chance(0.7) {
            phases.push((Phase::ScoreBefore, score_s));
            phases.push((Phase::ScoreAfter, score_s));
        }
        phases.push((Phase::FinalSave, save_s));
        if sampled {
            phases.push((Phase::FinalSample, sample_s));
        }
        phases.push((Phase::Report, random.log_between(0.02, 2.0).min(0.01 * budget_s)));
        let every = (budget_s / step_s / random.between(2.0, 20.0)) as u64 + 1;
        Self {
            kind,
            budget_s,
            step_s,
            save_s,
            buckets,
            samples: sampled.then_some((every, sample_s)),
            phases,
            misjudged: random.log_between(0.5, 2.0),
            // How buckets compare follows from their shapes; a single bucket may well begin without a
            // forecast.
            forecast: several || random.chance(0.5),
            scores_until_the_end: false,
        }
    }

    /// A run on a small shared machine: 15 to 180 s, with another process that comes and goes.
    pub fn short(random: &mut Random) -> Self {
        let budget_s = random.between(15.0, 180.0);
        let step_s = random.between(0.05, 0.3);
        let save_s = random.between(0.01, 0.05);
        let score_s = random.between(0.03, 0.15) * budget_s.min(60.0);
        Self {
            kind: Kind::Neighbour,
            budget_s,
            step_s,
            save_s,
            buckets: vec![(step_s, 1.0)],
            samples: None,
            phases: vec![
                (Phase::Load, random.between(0.1, 1.0)),
                (Phase::Cache, random.between(0.1, 1.5)),
                (Phase::ScoreBefore, score_s),
                (Phase::FinalSave, save_s),
                (Phase::ScoreAfter, score_s),
                (Phase::Report, random.between(0.05, 0.3)),
            ],
            misjudged: random.log_between(0.7, 1.4),
            forecast: true,
            scores_until_the_end: true,
        }
    }

    fn config(&self) -> BudgetConfig {
        let phases = self.phases.iter().fold(PhaseCosts::default(), |costs, &(phase, seconds)| {
            // Writing the report cannot be rehearsed, so its prediction is taken as known.
            let off = if phase == Phase::Report { 1.0 } else { self.misjudged };
            costs.with(phase, seconds * off)
        });
        BudgetConfig {
            deadline_s: Some(self.budget_s),
            phases,
            save_s: self.save_s * self.misjudged,
            buckets: self
                .buckets
                .iter()
                .map(|&(seconds, share)| BucketConfig {
                    step_s: self.forecast.then_some(seconds * self.misjudged),
                    share: self.forecast.then_some(share),
                })
                .collect(),
            samples: self
                .samples
                .map(|(every_steps, seconds)| SamplePlan { every_steps, round_s: seconds * self.misjudged }),
            ..BudgetConfig::default()
        }
    }

    fn draw_bucket(&self, random: &mut Random) -> usize {
        let sum: f64 = self.buckets.iter().map(|b| b.1).sum();
        let mut at = random.between(0.0, sum);
        self.buckets
            .iter()
            .position(|&(_, share)| {
                at -= share;
                at < 0.0
            })
            .unwrap_or(0)
    }

    pub fn play(&self, random: &mut Random) -> Outcome {
        let clock = SimulatedClock::default();
        let mut weather = Weather::new(self.kind, self.budget_s, random);
        let mut budget = Budget::new(self.config()).expect("a plain configuration");
        for &(phase, seconds) in self.phases.iter().filter(|(phase, _)| *phase < Phase::Train) {
            budget.phase_started(phase, clock.now_s());
            clock.advance(weather.work(clock.now_s(), seconds, random));
            budget.phase_finished(phase, clock.now_s());
        }
        // From here on the budget can keep its promise; what came before it could only watch.
        let train_began_s = clock.now_s();
        let mut outcome = Outcome {
            end_s: 0.0,
            steps: 0,
            last_progress: 0.0,
            reason: FinishReason::StepsDone,
            first_save_s: None,
            train_began_s,
            longest_unsaved_s: 0.0,
            skipped_phases: 0,
            skipped_parts: 0,
            parts: 0,
            skipped_samples: 0,
            saved: false,
            stalls: Vec::new(),
            monotone: true,
        };
        let mut saved_at_s = train_began_s;
        let mut bucket = self.draw_bucket(random);
        budget.phase_started(Phase::Train, clock.now_s());
        loop {
            let now_s = clock.now_s();
            match budget.decide(now_s, bucket) {
                Decision::Step { progress, .. } => {
                    outcome.monotone &= progress >= outcome.last_progress;
                    outcome.last_progress = progress;
                    let took_s = weather.step(now_s, self.buckets[bucket].0, random);
                    clock.advance(took_s);
                    budget.observe_step(clock.now_s(), bucket, took_s);
                    bucket = self.draw_bucket(random);
                    self.sample_if_due(&mut budget, &clock, &mut weather, random, &mut outcome);
                }
                Decision::SaveLast => {
                    let took_s = weather.write(now_s, self.save_s, random);
                    clock.advance(took_s);
                    budget.observe_save(clock.now_s(), took_s);
                    outcome.saved = true;
                    outcome.first_save_s.get_or_insert(clock.now_s());
                    outcome.longest_unsaved_s = outcome.longest_unsaved_s.max(clock.now_s() - saved_at_s);
                    saved_at_s = clock.now_s();
                }
                Decision::Finish(reason) => {
                    outcome.reason = reason;
                    break;
                }
            }
        }
        outcome.steps = budget.steps_done();
        budget.phase_finished(Phase::Train, clock.now_s());
        for phase in Phase::TAIL {
            let Some(&(_, seconds)) = self.phases.iter().find(|(p, _)| *p == phase) else {
                continue;
            };
            match phase {
                Phase::FinalSample | Phase::ScoreAfter => {
                    // Picture by picture: up to ten seconds each.
                    let parts = (seconds / 10.0).ceil().max(40.0);
                    budget.phase_started(phase, clock.now_s());
                    let mut time = PartTime::default();
                    time.observe(seconds / parts);
                    for part in 0..usize::MAX {
                        let more = part >= parts as usize;
                        if more && !self.scores_until_the_end {
                            break;
                        }
                        let now_s = clock.now_s();
                        if !budget.allows_part(now_s, time) {
                            outcome.skipped_parts += (parts as u64).saturating_sub(part as u64);
                            break;
                        }
                        let took_s = weather.work(now_s, seconds / parts, random);
                        time.observe(took_s);
                        clock.advance(took_s);
                        outcome.parts += 1;
                    }
                }
                _ => {
                    let now_s = clock.now_s();
                    if !budget.allows(phase, now_s) {
                        outcome.skipped_phases += 1;
                        continue;
                    }
                    budget.phase_started(phase, now_s);
                    let took_s = weather.write(now_s, seconds, random);
                    outcome.saved |= phase == Phase::FinalSave;
                    clock.advance(took_s);
                }
            }
            budget.phase_finished(phase, clock.now_s());
        }
        outcome.end_s = clock.now_s();
        outcome.stalls = weather.stalls;
        outcome
    }

    fn sample_if_due(
        &self,
        budget: &mut Budget,
        clock: &SimulatedClock,
        weather: &mut Weather,
        random: &mut Random,
        outcome: &mut Outcome,
    ) {
        let Some((every, seconds)) = self.samples else {
            return;
        };
        if !budget.steps_done().is_multiple_of(every) {
            return;
        }
        if budget.allows_samples(clock.now_s()) != SampleVerdict::Go {
            outcome.skipped_samples += 1;
            return;
        }
        let took_s = weather.work(clock.now_s(), seconds, random);
        clock.advance(took_s);
        budget.observe_samples(clock.now_s(), took_s);
    }
}
