use super::super::{BucketConfig, BudgetConfig, PhaseCosts, SamplePlan, ValidationPlan};
use super::*;

const DEADLINE_S: f64 = 1000.0;

/// Steps of 1 s before a deadline of 1000 s, and these phases.
fn budget(phases: PhaseCosts) -> Budget {
    Budget::new(config(phases)).unwrap()
}

fn config(phases: PhaseCosts) -> BudgetConfig {
    BudgetConfig {
        deadline_s: Some(DEADLINE_S),
        buckets: vec![BucketConfig { step_s: Some(1.0), share: None }],
        phases,
        ..BudgetConfig::default()
    }
}

fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-9 * expected.abs().max(1.0), "{got}, expected {expected}");
}

/// 2 % of the deadline within 0.1 and 0.75 s, or what the job says.
#[test]
fn seconds_for_ending_the_process() {
    let closing = |deadline_s, margin_s| {
        let config = BudgetConfig { deadline_s, margin_s, ..config(PhaseCosts::default()) };
        Budget::new(config).unwrap().closing_s()
    };
    for (deadline_s, expected) in [(2.0, 0.1), (20.0, 0.4), (1000.0, 0.75)] {
        close(closing(Some(deadline_s), None), expected);
    }
    close(closing(Some(1000.0), Some(3.0)), 3.0);
}

/// Three and a half standard deviations of all phases of the tail together, a fifth of each where nothing was
/// measured.
#[test]
fn the_margin_grows_with_what_is_uncertain() {
    let phases = PhaseCosts::default().with(Phase::FinalSave, 3.0).with(Phase::ScoreAfter, 4.0);
    let budget = budget(phases.with(Phase::Load, 10.0));
    close(budget.tail().0, 7.0);
    close(budget.tail().1, 0.2 * (3.0_f64 * 3.0 + 4.0 * 4.0).sqrt());
    close(budget.margin_s(), 0.75 + 3.5 * 0.2 * 5.0);
    close(budget.time_left_s(0.0).unwrap(), DEADLINE_S - 10.0 - 7.0 - budget.margin_s());
}

/// A phase that runs counts with its rest, one that is over no more, and none of the preparation once
/// training began.
#[test]
fn room_is_what_the_phases_to_come_leave() {
    let phases = PhaseCosts::default().with(Phase::Load, 10.0).with(Phase::Cache, 5.0);
    let mut budget = budget(phases.with(Phase::Report, 2.0));
    let fixed_s = 2.0 + budget.margin_s();
    let left = |budget: &Budget, now_s: f64| budget.time_left_s(now_s).unwrap();
    close(left(&budget, 0.0), DEADLINE_S - 15.0 - fixed_s);
    budget.phase_started(Phase::Load, 0.0);
    close(left(&budget, 4.0), DEADLINE_S - 4.0 - 6.0 - 5.0 - fixed_s);
    close(left(&budget, 12.0), DEADLINE_S - 12.0 - 5.0 - fixed_s);
    budget.phase_finished(Phase::Load, 14.0);
    close(left(&budget, 14.0), DEADLINE_S - 14.0 - 5.0 - fixed_s);
    budget.phase_started(Phase::Train, 14.0);
    close(left(&budget, 14.0), DEADLINE_S - 14.0 - fixed_s);
    close(budget.spare_s(14.0), left(&budget, 14.0));
    assert_eq!(budget.spare_s(2.0 * DEADLINE_S), 0.0);
    // A phase of the tail that has begun is no longer kept free for.
    budget.phase_started(Phase::Report, 500.0);
    close(left(&budget, 500.0), DEADLINE_S - 500.0 - 0.75);
}

/// What a score before training took against its prediction holds for the one after it, at the speed of
/// today.
#[test]
fn a_rehearsed_phase_errs_as_its_rehearsal_did() {
    let phases = PhaseCosts::default().with(Phase::ScoreBefore, 2.0).with(Phase::ScoreAfter, 4.0);
    let mut budget = budget(phases.with(Phase::FinalSample, 8.0));
    budget.phase_started(Phase::ScoreBefore, 0.0);
    budget.phase_finished(Phase::ScoreBefore, 3.0);
    for (slowdown, unrehearsed) in [(1.0, 1.0), (1.5, 1.5), (0.5, 1.0)] {
        budget.slowdown = slowdown;
        let (mean_s, deviation_s) = budget.expected_phase(Phase::ScoreAfter);
        close(mean_s, 4.0 * 3.0 / 2.0 * slowdown);
        close(deviation_s, 0.04 * mean_s);
        // Predicted alone: no cheaper on a machine that has become faster.
        let (mean_s, deviation_s) = budget.expected_phase(Phase::FinalSample);
        close(mean_s, 8.0 * unrehearsed);
        close(deviation_s, 0.2 * mean_s);
    }
    // Rounds of samples during training are the better rehearsal.
    budget.slowdown = 1.0;
    budget.config.samples = Some(SamplePlan { every_steps: 10, round_s: 4.0 });
    budget.observe_samples(10.0, 6.0);
    close(budget.expected_phase(Phase::FinalSample).0, 8.0 * 6.0 / 4.0);
    budget.config.samples = None;
    close(budget.expected_phase(Phase::FinalSample).0, 8.0);
}

/// The final save errs as those before it did, whatever the speed of the steps.
#[test]
fn the_final_save_errs_as_the_others_did() {
    let phases = PhaseCosts::default().with(Phase::FinalSave, 4.0);
    let mut budget = Budget::new(BudgetConfig { save_s: 2.0, ..config(phases) }).unwrap();
    budget.slowdown = 3.0;
    let (mean_s, deviation_s) = budget.expected_phase(Phase::FinalSave);
    close(mean_s, 4.0);
    close(deviation_s, 0.2 * 4.0);
    (1..=5).for_each(|k| budget.observe_save(10.0 * f64::from(k), 3.0));
    let (mean_s, deviation_s) = budget.expected_phase(Phase::FinalSave);
    close(mean_s, 4.0 * 3.0 / 2.0);
    close(deviation_s, budget.save_deviation() * mean_s);
    // Without a prediction of the others there is nothing to compare: the longer of the two.
    for (final_s, expected_s) in [(4.0, 4.0), (1.0, 3.0)] {
        let phases = PhaseCosts::default().with(Phase::FinalSave, final_s);
        let mut budget = Budget::new(config(phases)).unwrap();
        budget.observe_save(10.0, 3.0);
        close(budget.expected_phase(Phase::FinalSave).0, expected_s);
    }
}

/// `(exp(3.5·r) − 1) / 3.5` with r the relative deviation, `√(1 + 4/n)` times as large after n saves, 0.4 at
/// most.
#[test]
fn a_spread_seen_in_few_saves_is_doubted() {
    assert_eq!(budget(PhaseCosts::default()).save_deviation(), UNMEASURED_SAVE_DEVIATION);
    for (n, doubt) in [(2_u32, 3.0_f64.sqrt()), (4, 2.0_f64.sqrt()), (400, 1.01_f64.sqrt())] {
        let mut budget = budget(PhaseCosts::default());
        (0..n).for_each(|k| budget.observe_save(f64::from(k), if k % 2 == 0 { 0.99 } else { 1.01 }));
        let mean_s = budget.saves.mean().unwrap();
        let relative = doubt * budget.saves.deviation() / mean_s;
        assert!(relative < 0.4, "{n}");
        let expected = ((3.5 * relative).exp() - 1.0) / 3.5;
        close(budget.save_deviation(), expected.max(budget.saves.recent_excess() / 3.5));
        close(budget.save_high_s(), mean_s * (1.0 + 3.5 * budget.save_deviation()));
    }
    let mut wild = budget(PhaseCosts::default());
    [1.0, 2.0, 1.0, 2.0].into_iter().for_each(|s| wild.observe_save(1.0, s));
    close(wild.save_deviation(), ((3.5_f64 * 0.4).exp() - 1.0) / 3.5);
}

/// With a file on disk the final save begins if it ends in time at two standard deviations; without one
/// always.
#[test]
fn a_final_save_that_may_be_late_begins_only_where_nothing_was_saved() {
    let phases = PhaseCosts::default().with(Phase::FinalSave, 4.0);
    let mut budget = Budget::new(BudgetConfig { save_s: 4.0, ..config(phases) }).unwrap();
    let allows = |budget: &Budget, left_s: f64| budget.clone().allows(Phase::FinalSave, DEADLINE_S - left_s);
    // Nothing trained, nothing to lose.
    assert!(!allows(&budget, 4.0));
    budget.observe_step(1.0, 0, 1.0);
    assert!(allows(&budget, 0.0));
    (1..=3).for_each(|k| budget.observe_save(10.0 * f64::from(k), 4.0));
    let (mean_s, deviation_s) = budget.expected_phase(Phase::FinalSave);
    assert!(deviation_s > 0.1);
    assert!(!allows(&budget, mean_s + deviation_s));
    assert!(!allows(&budget, mean_s + 1.99 * deviation_s));
    assert!(allows(&budget, mean_s + 2.01 * deviation_s));
}

/// Two and a half standard deviations and most of the time for ending the process.
#[test]
fn a_phase_after_the_training_begins_if_it_ends_in_time() {
    let phases = PhaseCosts::default().with(Phase::Report, 4.0).with(Phase::Load, 1.0);
    let mut budget = budget(phases);
    let least_s = 4.0 + 2.5 * 0.2 * 4.0 + 0.8 * 0.75;
    assert!(budget.allows(Phase::Report, DEADLINE_S - least_s - 0.01));
    assert!(!budget.allows(Phase::Report, DEADLINE_S - least_s + 0.01));
    assert!(budget.allows(Phase::Load, DEADLINE_S));
    let endless = BudgetConfig { deadline_s: None, steps: Some(1), ..config(phases) };
    assert!(Budget::new(endless).unwrap().allows(Phase::Report, 1e9));
}

/// A part that is slow as never before may reach into half of the time for ending the process.
#[test]
fn a_part_begins_if_it_ends_in_time() {
    let mut part = PartTime::default();
    part.observe(1.0);
    let end_s = DEADLINE_S - 0.75;
    let needed_s = 2.0 * 1.0 - 0.5 * 0.75;
    let mut budget = budget(PhaseCosts::default());
    assert!(budget.allows_part(end_s - needed_s - 0.01, part));
    assert!(!budget.allows_part(end_s - needed_s + 0.01, part));
}

/// Four standard deviations, or the largest excess seen, or a sudden slowness: half of the step, or all of it
/// as far as half a percent of the budget pays for that.
#[test]
fn a_step_may_be_slow_and_still_end_in_time() {
    let high_s = |deadline_s: f64, seen: &[f64]| {
        let config = BudgetConfig { deadline_s: Some(deadline_s), ..config(PhaseCosts::default()) };
        let mut budget = Budget::new(config).unwrap();
        seen.iter().for_each(|s| budget.observe_step(1.0, 0, *s));
        let (mean_s, relative) = (budget.pace.bucket_mean_s(0).unwrap(), budget.pace.relative_deviation());
        (budget.step_high_s(0).unwrap() / mean_s - 1.0, relative, budget.pace.recent_excess())
    };
    let (excess, relative, _) = high_s(1000.0, &[]);
    close(excess, 4.0 * relative);
    let steady = [1.0; 400];
    for (deadline_s, expected) in [(1000.0, 1.0), (160.0, 0.8), (20.0, 0.5)] {
        close(high_s(deadline_s, &steady).0, expected);
    }
    let mut stalled = vec![1.0; 400];
    stalled.extend([9.0, 1.0]);
    let (excess, relative, recent) = high_s(1000.0, &stalled);
    assert!(recent > 1.9 && recent > 4.0 * relative);
    close(excess, recent);
}

/// The number of steps solves `j·a + 2.5·σ·√j ≤ left − first − e`.
#[test]
fn the_steps_that_fit_leave_a_reserve() {
    let budget = budget(PhaseCosts::default());
    let step = budget.pace.mixture().unwrap();
    let excess_s = budget.step_high_s(0).unwrap() - step.mean_s;
    for time_left_s in [3.5, 10.0, 100.0, 900.0] {
        let rest_s = time_left_s - 1.0 - (step.mean_s + excess_s - step.mean_s);
        let needed_s = |j: f64| j * step.mean_s + 2.5 * step.deviation_s * j.sqrt();
        let fit = budget.steps_that_fit(time_left_s, 1.0, step);
        let after_first = (fit - 1) as f64;
        assert!(needed_s(after_first) <= rest_s + 1e-9, "{fit} in {time_left_s} s");
        assert!(needed_s(after_first + 1.0) > rest_s, "{fit} in {time_left_s} s");
    }
    assert_eq!(budget.steps_that_fit(1.0, 1.0, step), 1);
}

/// A save every interval, a round every so many steps up to its share, as long as another one is to come.
#[test]
fn saves_samples_and_validation_take_their_share_of_each_step() {
    let of = |config: BudgetConfig, time_left_s| {
        Budget::new(config).unwrap().overhead_per_step_s(time_left_s, 1.0)
    };
    let plain = || config(PhaseCosts::default());
    let interval_s = cadence::interval_s(Some(DEADLINE_S), 1.0);
    let saving = || BudgetConfig { save_s: 1.0, ..plain() };
    close(of(saving(), 1.1 * interval_s), 1.0 / interval_s);
    close(of(saving(), 0.9 * interval_s), 0.0);
    for (share, expected) in [(0.5, 0.4), (0.2, 0.25)] {
        let samples = Some(SamplePlan { every_steps: 10, round_s: 4.0 });
        let sampling = || BudgetConfig { samples, sample_share_max: share, ..plain() };
        close(of(sampling(), 10.1), expected);
        close(of(sampling(), 9.9), 0.0);
        let validation = Some(ValidationPlan { every_steps: 10, round_s: 4.0, share_max: share });
        let validating = || BudgetConfig { validation, ..plain() };
        close(of(validating(), 10.1), expected);
        close(of(validating(), 9.9), 0.0);
        let endless = BudgetConfig { deadline_s: None, steps: Some(1), ..validating() };
        close(of(endless, f64::MAX), 0.4);
    }
}

#[test]
fn a_forecast_adds_up() {
    let phases = PhaseCosts::default().with(Phase::Load, 10.0).with(Phase::FinalSave, 4.0);
    let asked = BudgetConfig { steps: Some(100), ..config(phases) };
    let mut budget = Budget::new(asked.clone()).unwrap();
    let forecast = budget.forecast(2.0);
    close(forecast.training_s.unwrap(), 100.0);
    close(forecast.end_s.unwrap(), 2.0 + 10.0 + 100.0 + 4.0);
    close(forecast.idle_s, DEADLINE_S - forecast.margin_s - forecast.end_s.unwrap());
    close(forecast.left_s.unwrap(), DEADLINE_S - 2.0);
    assert!(matches!(forecast.notes[..], [Note::EndsEarly { steps: 100, .. }]), "{:?}", forecast.notes);
    // Less than a twentieth of the budget early is not worth a word.
    for (steps, words) in [(925, 1), (940, 0)] {
        let config = BudgetConfig { steps: Some(steps), ..asked.clone() };
        let mut budget = Budget::new(config).unwrap();
        (0..400).for_each(|_| budget.observe_step(0.0, 0, 1.0));
        budget.steps_done = 0;
        let forecast = budget.forecast(0.0);
        assert_eq!(forecast.notes.len(), words, "{forecast:?}");
    }
    budget.phase_started(Phase::FinalSave, 500.0);
    let forecast = budget.forecast(501.0);
    assert_eq!((forecast.steps_total, forecast.tail_s), (Some(0), 3.0));
}
