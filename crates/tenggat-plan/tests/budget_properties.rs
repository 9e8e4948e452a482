//! Properties of the budget that hold for any job and any input.
#![allow(clippy::print_stdout, reason = "tests say what they found")]

use proptest::prelude::*;
use tenggat_plan::{
    BucketConfig, Budget, BudgetConfig, Decision, FinishReason, Note, PartTime, Phase, PhaseCosts, Position,
    RuledBy, SamplePlan, Schedule, Shape, ValidationPlan,
};

/// Any number that a confused caller might hand over.
fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(0.0),
        Just(-0.0),
        Just(-1.0),
        Just(f64::MIN_POSITIVE),
        Just(5e-324),
        Just(f64::MAX),
        -1e6..1e6_f64,
        0.0..100.0_f64,
    ]
}

struct Ended {
    at_s: f64,
    progress: Vec<f64>,
    reason: FinishReason,
}

/// Runs steps of `step_s(k)` seconds until the budget says stop, then the final save.
fn run(budget: &mut Budget, save_s: f64, step_s: impl Fn(u64) -> f64) -> Ended {
    run_with(budget, save_s, step_s, |_, _| {})
}

fn run_with(
    budget: &mut Budget,
    save_s: f64,
    step_s: impl Fn(u64) -> f64,
    mut between: impl FnMut(&mut Budget, f64),
) -> Ended {
    let mut now_s = 0.0;
    let mut progress_of_steps = Vec::new();
    loop {
        between(budget, now_s);
        match budget.decide(now_s, 0) {
            Decision::Step { progress, .. } => {
                progress_of_steps.push(progress);
                let took_s = step_s(budget.steps_done());
                now_s += took_s;
                budget.observe_step(now_s, 0, took_s);
            }
            Decision::SaveLast => {
                now_s += save_s;
                budget.observe_save(now_s, save_s);
            }
            Decision::Finish(reason) => {
                budget.phase_started(Phase::FinalSave, now_s);
                now_s += save_s;
                budget.phase_finished(Phase::FinalSave, now_s);
                return Ended { at_s: now_s, progress: progress_of_steps, reason };
            }
        }
    }
}

fn config(deadline_s: f64, save_s: f64) -> BudgetConfig {
    BudgetConfig {
        deadline_s: Some(deadline_s),
        save_s,
        phases: PhaseCosts::default().with(Phase::FinalSave, save_s),
        ..BudgetConfig::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_learning_rate_ends_at_its_floor(
        deadline_s in 15.0..5000.0_f64,
        steps_in_budget in 50.0..2000.0_f64,
        save_share in 0.0..0.02_f64,
        ripple in 0.0..0.3_f64,
        drift in -0.4..1.5_f64,
        floor in 0.0..0.5_f64,
    ) {
        let mut budget = Budget::new(config(deadline_s, save_share * deadline_s)).unwrap();
        let nominal_s = deadline_s / steps_in_budget;
        let ended = run(&mut budget, save_share * deadline_s, |k| {
            let share = (k as f64 / steps_in_budget).min(1.0);
            nominal_s * (1.0 + drift * share) * (1.0 + ripple * (k as f64 * 1.7).sin())
        });
        prop_assert_eq!(ended.reason, FinishReason::BudgetSpent);
        prop_assert!(ended.at_s <= deadline_s);
        prop_assert_eq!(ended.progress[0], 0.0);
        prop_assert!(ended.progress.windows(2).all(|pair| pair[0] <= pair[1]));
        let last = *ended.progress.last().unwrap();
        prop_assert_eq!(last, 1.0);
        for shape in [Shape::Linear, Shape::Cosine, Shape::WarmupStableDecay { decay_share: 0.3 }] {
            let schedule = Schedule { shape, floor, ..Schedule::default() };
            let step = budget.steps_done() - 1;
            prop_assert_eq!(schedule.factor(Position { step, progress: last }), floor);
        }
    }

    #[test]
    fn steady_steps_anneal_in_a_straight_line(
        deadline_s in 60.0..5000.0_f64,
        steps_in_budget in 100.0..2000.0_f64,
    ) {
        let mut budget = Budget::new(config(deadline_s, 0.0)).unwrap();
        let ended = run(&mut budget, 0.0, |_| deadline_s / steps_in_budget);
        let steps = ended.progress.len() as f64;
        for (k, progress) in ended.progress.iter().enumerate() {
            prop_assert!((progress - k as f64 / steps).abs() < 0.06, "{progress} at {k} of {steps}");
        }
    }

    #[test]
    fn steps_asked_for_are_done_exactly(steps in 1..3000_u64, deadline in prop::option::of(1e5..1e6_f64)) {
        let mut budget = Budget::new(BudgetConfig {
            steps: Some(steps),
            deadline_s: deadline,
            ..BudgetConfig::default()
        })
        .unwrap();
        let ended = run(&mut budget, 0.1, |_| 2.0);
        prop_assert_eq!(ended.reason, FinishReason::StepsDone);
        prop_assert_eq!(ended.progress.len() as u64, steps);
        let last = *ended.progress.last().unwrap();
        prop_assert_eq!(last, if steps == 1 { 0.0 } else { 1.0 });
        for (k, progress) in ended.progress.iter().enumerate() {
            let line = k as f64 / (steps.max(2) - 1) as f64;
            prop_assert!((progress - line).abs() < 1e-9);
        }
    }

    #[test]
    fn an_extension_is_honoured(
        deadline_s in 30.0..2000.0_f64,
        steps_in_budget in 40.0..400.0_f64,
        at_share in 0.1..0.97_f64,
        by_share in 0.1..2.0_f64,
    ) {
        let mut budget = Budget::new(config(deadline_s, 0.0)).unwrap();
        let longer_s = deadline_s * (1.0 + by_share);
        let step_s = deadline_s / steps_in_budget;
        let mut extended = false;
        let ended = run_with(&mut budget, 0.0, |_| step_s, |budget, now_s| {
            if !extended && now_s >= at_share * deadline_s - step_s {
                extended = true;
                let got_s = budget.extend(now_s, by_share * deadline_s).unwrap();
                assert!((got_s - longer_s).abs() < 1e-9);
            }
        });
        prop_assert!(extended);
        prop_assert!(ended.at_s <= longer_s);
        prop_assert!(ended.at_s >= longer_s - 4.0 * step_s - 0.06 * longer_s, "{} of {longer_s}", ended.at_s);
        prop_assert_eq!(*ended.progress.last().unwrap(), 1.0);
    }

    #[test]
    fn a_shortened_deadline_is_kept(
        deadline_s in 100.0..2000.0_f64,
        steps_in_budget in 100.0..400.0_f64,
        at_share in 0.1..0.4_f64,
        to_share in 0.6..0.9_f64,
    ) {
        let mut budget = Budget::new(config(deadline_s, 0.0)).unwrap();
        let step_s = deadline_s / steps_in_budget;
        let mut shortened = false;
        let ended = run_with(&mut budget, 0.0, |_| step_s, |budget, now_s| {
            if !shortened && now_s >= at_share * deadline_s {
                shortened = true;
                budget.set_deadline(now_s, to_share * deadline_s);
            }
        });
        prop_assert!(ended.at_s <= to_share * deadline_s);
        prop_assert_eq!(*ended.progress.last().unwrap(), 1.0);
    }

    #[test]
    fn nothing_that_is_said_to_it_makes_it_panic_or_forecast_nonsense(
        deadline_s in prop::option::of(any_number()),
        steps in prop::option::of(any::<u64>()),
        fill in any::<bool>(),
        margin_s in prop::option::of(any_number()),
        costs in prop::array::uniform4(any_number()),
        shares in prop::array::uniform4(any_number()),
        every_steps in any::<u64>(),
        done in any::<u64>(),
        events in prop::collection::vec((0..11_u8, any_number(), any_number(), prop_oneof![0..5_usize, Just(usize::MAX)]), 0..60),
    ) {
        let made = Budget::new(BudgetConfig {
            deadline_s,
            steps,
            fill,
            margin_s,
            phases: PhaseCosts::default()
                .with(Phase::FinalSave, costs[0])
                .with(Phase::ScoreBefore, costs[1])
                .with(Phase::ScoreAfter, costs[2]),
            save_s: costs[3],
            buckets: vec![
                BucketConfig { step_s: Some(costs[0]), share: Some(shares[0]) },
                BucketConfig { step_s: Some(costs[1]), share: None },
            ],
            samples: Some(SamplePlan { every_steps, round_s: shares[1] }),
            validation: Some(ValidationPlan { every_steps, round_s: shares[2], share_max: shares[1] }),
            sample_share_max: shares[2],
            steps_done: done,
            progress_done: shares[3],
        });
        let Ok(mut budget) = made else { return Ok(()) };
        for (kind, a, b, bucket) in events {
            match kind {
                0 => budget.phase_started(Phase::ScoreBefore, a),
                1 => drop(budget.phase_finished(Phase::ScoreBefore, a)),
                2 => budget.observe_step(a, bucket, b),
                3 => budget.observe_save(a, b),
                4 => budget.observe_samples(a, b),
                9 => budget.observe_validation(a, b),
                5 => drop(budget.extend(a, b)),
                6 => drop(budget.set_deadline(a, b)),
                7 => {
                    let mut time = PartTime::default();
                    time.observe(b);
                    let _ = (budget.allows(Phase::FinalSave, a), budget.allows_part(a, time));
                }
                8 => drop((budget.allows_samples(a), budget.allows_save(a), budget.allows_validation(a))),
                _ => {
                    if let Decision::Step { progress, .. } = budget.decide(a, bucket) {
                        prop_assert!((0.0..=1.0).contains(&progress), "{progress}");
                    }
                }
            }
            let forecast = budget.forecast(a);
            let optional = [forecast.step_s, forecast.left_s, forecast.training_s, forecast.end_s];
            let always = [forecast.before_s, forecast.tail_s, forecast.margin_s, forecast.idle_s, forecast.progress];
            for seconds in optional.into_iter().flatten().chain(always) {
                prop_assert!(seconds >= 0.0, "{forecast:?}");
            }
            prop_assert!(budget.spare_s(b) >= 0.0);
        }
    }
}

#[test]
fn steps_that_end_early_are_used_as_asked_and_said_so() {
    let asked = BudgetConfig {
        deadline_s: Some(1000.0),
        steps: Some(100),
        buckets: vec![BucketConfig { step_s: Some(1.0), share: None }],
        ..BudgetConfig::default()
    };
    let mut budget = Budget::new(asked.clone()).unwrap();
    let forecast = budget.forecast(0.0);
    assert_eq!((forecast.steps_total, forecast.ruled_by), (Some(100), RuledBy::Steps));
    assert!(matches!(forecast.notes[..], [Note::EndsEarly { steps: 100, would_fit, .. }] if would_fit > 900));
    let ended = run(&mut budget, 0.0, |_| 1.0);
    assert_eq!((ended.progress.len(), ended.reason), (100, FinishReason::StepsDone));

    let mut filled = Budget::new(BudgetConfig { fill: true, ..asked }).unwrap();
    assert!(filled.forecast(0.0).notes.is_empty());
    let ended = run(&mut filled, 0.0, |_| 1.0);
    assert!(ended.progress.len() > 970, "{}", ended.progress.len());
}

#[test]
fn a_deadline_before_the_steps_cuts_them_and_says_so() {
    let mut budget = Budget::new(BudgetConfig { steps: Some(5000), ..config(1000.0, 1.0) }).unwrap();
    let ended = run_with(
        &mut budget,
        1.0,
        |_| 1.0,
        |budget, now_s| {
            if budget.steps_done() == 50 {
                let forecast = budget.forecast(now_s);
                assert!(
                    matches!(forecast.notes[..], [Note::StepsCut { steps: 5000, fit }] if (900..1000).contains(&fit)),
                    "{forecast:?}"
                );
            }
        },
    );
    assert_eq!(*ended.progress.last().unwrap(), 1.0);
    assert!((980.0..1000.0).contains(&ended.at_s), "{}", ended.at_s);
}

/// Steps of 1 s with measurements of `round_s` after every tenth: the steps forecast after the eleventh, and
/// those done.
fn validated(round_s: f64) -> (u64, u64) {
    let validation = Some(ValidationPlan { every_steps: 10, round_s: 0.0, share_max: 0.1 });
    let mut budget = Budget::new(BudgetConfig { validation, ..config(2000.0, 0.1) }).unwrap();
    let (mut now_s, mut early) = (0.0, 0);
    loop {
        match budget.decide(now_s, 0) {
            Decision::Step { .. } => {
                now_s += 1.0;
                budget.observe_step(now_s, 0, 1.0);
                if budget.steps_done().is_multiple_of(10) && budget.allows_validation(now_s) {
                    now_s += round_s;
                    budget.observe_validation(now_s, round_s);
                }
                if budget.steps_done() == 11 {
                    early = budget.forecast(now_s).steps_total.unwrap();
                }
            }
            Decision::SaveLast => {
                now_s += 0.1;
                budget.observe_save(now_s, 0.1);
            }
            Decision::Finish(_) => return (early, budget.steps_done()),
        }
    }
}

#[test]
fn validation_is_forecast_and_kept_to_its_share() {
    for (round_s, least) in [(0.5, 1850), (5.0, 1750)] {
        let (early, done) = validated(round_s);
        println!("{round_s} s after every tenth step: {early} steps forecast, {done} done");
        assert!(done >= least && early.abs_diff(done) <= done / 50, "{early} {done}");
    }
}

#[test]
fn a_stall_near_the_end_leaves_out_what_no_longer_fits() {
    let mut budget = Budget::new(BudgetConfig {
        phases: PhaseCosts::default().with(Phase::FinalSave, 2.0).with(Phase::ScoreAfter, 20.0),
        ..config(600.0, 2.0)
    })
    .unwrap();
    let mut now_s = 0.0;
    while now_s < 500.0 {
        match budget.decide(now_s, 0) {
            Decision::Step { .. } => {
                now_s += 1.0;
                budget.observe_step(now_s, 0, 1.0);
            }
            Decision::SaveLast => {
                now_s += 2.0;
                budget.observe_save(now_s, 2.0);
            }
            Decision::Finish(_) => panic!("there are 100 s left"),
        }
    }
    now_s = 590.0;
    assert_eq!(budget.decide(now_s, 0), Decision::Finish(FinishReason::OutOfTime));
    assert!(budget.allows(Phase::FinalSave, now_s));
    assert!(!budget.allows(Phase::ScoreAfter, now_s));
    // One second before the deadline the save of two seconds would be late, and an earlier one exists.
    assert!(!budget.allows(Phase::FinalSave, 599.0));
}

#[test]
fn asking_twice_gives_the_same_answer() {
    let mut budget = Budget::new(config(100.0, 0.0)).unwrap();
    let mut now_s = 0.0;
    for _ in 0..30 {
        assert_eq!(budget.decide(now_s, 0), budget.decide(now_s, 0));
        now_s += 1.0;
        budget.observe_step(now_s, 0, 1.0);
    }
}

#[test]
fn configurations_that_no_run_can_keep_are_refused_with_a_way_out() {
    let refused = |config: BudgetConfig| Budget::new(config).unwrap_err().to_string();
    assert!(refused(BudgetConfig::default()).contains("--budget"));
    let fill = BudgetConfig { fill: true, steps: Some(10), ..BudgetConfig::default() };
    assert!(refused(fill).contains("`fill`"));
    for deadline_s in [0.0, -5.0, f64::NAN, f64::INFINITY] {
        assert!(refused(config(deadline_s, 0.0)).contains("deadline"));
    }
    let margin = BudgetConfig { margin_s: Some(80.0), ..config(100.0, 0.0) };
    assert!(refused(margin).contains("half"));
}
