//! Hundreds of drives in simulated time: whatever the trainer does, the deadline holds and the newest whole
//! LoRA stays.

mod dice;
mod simulation;

use std::sync::atomic::AtomicBool;

use simulation::{Fault, Log, Script, Simulated};
use tenggat_drive::{Known, Plan, Summary, Trouble, fly};

struct Flown {
    summary: Summary,
    trainer: Simulated,
    log: Log,
}

fn plan(script: &Script) -> Plan {
    Plan {
        deadline_s: script.deadline_s,
        margin_s: None,
        steps: script.asked,
        fill: false,
        anneals: script.anneals,
        sample_every: script.sample_every,
        sample_from: 0,
        shrinks: 1,
        resume: 0,
        known: Known::default(),
    }
}

fn fly_it(script: Script) -> Flown {
    let plan = plan(&script);
    let mut trainer = Simulated::new(script);
    let mut log = Log::default();
    let summary = fly(&mut trainer, plan, &mut log, &AtomicBool::new(false)).unwrap();
    Flown { summary, trainer, log }
}

/// What must hold whatever happens.
fn check(flown: &Flown, what: &str) {
    let Flown { summary, trainer, log } = flown;
    let script = &trainer.script;
    let told = || format!("{what}\n{script:#?}\n{summary:?}\nended at {:.2}\n{}", trainer.now(), log.text());
    assert!(trainer.now() <= script.deadline_s, "overran: {}", told());
    assert!(!trainer.is_alive(), "the trainer is still there: {}", told());
    assert_eq!(summary.steps, trainer.published, "{}", told());
    assert!(trainer.whole_files.contains(&summary.steps) || summary.steps == 0, "not whole: {}", told());
}

/// The share of the budget that was used.
fn used(flown: &Flown) -> f64 {
    flown.trainer.now() / flown.trainer.script.deadline_s
}

/// Drives of each kind. `TENGGAT_DRIVES=1000` flies more.
fn drives(usual: u64) -> std::ops::Range<u64> {
    0..std::env::var("TENGGAT_DRIVES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

#[test]
fn steady_trainers_use_their_budget() {
    let mut shares = Vec::new();
    for seed in drives(60) {
        let script = Script::steady(seed);
        let flown = fly_it(script);
        check(&flown, &format!("seed {seed}"));
        let told =
            || format!("seed {seed} {:#?} {:?}\n{}", flown.trainer.script, flown.summary, flown.log.text());
        assert!(flown.summary.as_planned, "{}", told());
        if flown.trainer.script.asked.is_some_and(|asked| flown.summary.steps >= asked) {
            continue;
        }
        // Another start for a better number of steps has to pay for itself.
        let least = if flown.trainer.script.anneals { 0.9 } else { 0.95 };
        assert!(used(&flown) >= least, "used {:.3}: {}", used(&flown), told());
        shares.push(used(&flown));
    }
    shares.sort_by(f64::total_cmp);
    assert!(
        shares[shares.len() / 20] >= 0.95,
        "all but one in twenty: {:?}",
        &shares[..shares.len().min(30)]
    );
}

#[test]
fn a_drifting_pace_is_followed() {
    let mut shares = Vec::new();
    for seed in drives(60) {
        let flown = fly_it(Script::drifting(seed));
        check(&flown, &format!("seed {seed}"));
        let told =
            || format!("seed {seed} {:#?} {:?}\n{}", flown.trainer.script, flown.summary, flown.log.text());
        if flown.trainer.script.asked.is_some_and(|asked| flown.summary.steps >= asked) {
            continue;
        }
        // Where the trainer's number of steps must be right, a late change of pace leaves no time for another
        // start.
        let least = if flown.trainer.script.anneals { 0.85 } else { 0.93 };
        assert!(used(&flown) >= least, "used {:.3}: {}", used(&flown), told());
        shares.push(used(&flown));
    }
    shares.sort_by(f64::total_cmp);
    assert!(
        shares[shares.len() / 20] >= 0.95,
        "all but one in twenty: {:?}",
        &shares[..shares.len().min(30)]
    );
}

#[test]
fn no_fault_breaks_the_deadline_or_loses_what_was_published() {
    for seed in drives(300) {
        let flown = fly_it(Script::faulty(seed));
        check(&flown, &format!("seed {seed}"));
    }
}

#[test]
fn a_crash_costs_no_more_than_what_was_not_saved() {
    let script =
        Script { faults: vec![Fault::Crash { at_s: 60.0, trouble: Trouble::Driver }], ..Script::plain() };
    let flown = fly_it(script);
    check(&flown, "crash");
    assert_eq!(flown.summary.sessions, 2, "{}", flown.log.text());
    assert!(used(&flown) > 0.95);
    // 100 s at 0.1 s a step, less two loads of 2 s and what was lost.
    assert!(flown.summary.steps > 850, "{}", flown.summary.steps);
}

#[test]
fn out_of_memory_uses_the_list_and_then_gives_up() {
    let out = |at_s| Fault::Crash { at_s, trouble: Trouble::OutOfMemory };
    let flown = fly_it(Script { faults: vec![out(3.0)], ..Script::plain() });
    check(&flown, "once");
    assert_eq!((flown.trainer.session.number, flown.trainer.session.shrink), (2, 1));
    let flown = fly_it(Script { faults: vec![out(2.5), out(5.0), out(7.5), out(10.0)], ..Script::plain() });
    check(&flown, "always");
    assert!(!flown.summary.as_planned && flown.summary.ended.contains("GPU memory"), "{:?}", flown.summary);
}

#[test]
fn a_resume_at_zero_is_noticed_and_not_trusted() {
    for at_s in [20.0, 80.0] {
        let faults = vec![Fault::ResumesAtZero, Fault::Crash { at_s, trouble: Trouble::Error }];
        let flown = fly_it(Script { faults, ..Script::plain() });
        check(&flown, "resume at 0");
        assert!(flown.log.text().contains("not trusted"), "{}", flown.log.text());
        let published = &flown.log.saved;
        assert!(published.windows(2).all(|w| w[0] < w[1]), "never replaced by less: {published:?}");
    }
}

#[test]
fn one_correction_makes_the_schedule_fit() {
    let script = Script { anneals: true, ..Script::plain() };
    let flown = fly_it(script);
    check(&flown, "anneals");
    let given = flown.trainer.session.steps as f64;
    let trained = flown.trainer.trained as f64;
    assert!((0.9..=1.01).contains(&(trained / given)), "{trained} of {given}\n{}", flown.log.text());
    assert!(used(&flown) > 0.95);
}

#[test]
fn a_constant_rate_needs_no_restart() {
    let flown = fly_it(Script::plain());
    check(&flown, "constant");
    assert_eq!(flown.summary.sessions, 1);
    assert!(flown.summary.steps > 900);
}

#[test]
fn rounds_of_samples_do_not_eat_the_end() {
    // A round takes 20 s of 100 s and comes every 300 steps of 0.1 s.
    let script = Script { sample_every: Some(300), round_s: 20.0, ..Script::plain() };
    let flown = fly_it(script);
    check(&flown, "samples");
    assert!(flown.summary.as_planned, "{:?}", flown.summary);
    assert!(used(&flown) > 0.9, "{:.2}\n{}", used(&flown), flown.log.text());
    assert!(flown.summary.steps + 2 > flown.trainer.trained, "{}", flown.log.text());
}

#[test]
fn an_interrupt_saves_first() {
    let script = Script::plain();
    let plan = plan(&script);
    let mut trainer = Simulated::new(script);
    trainer.interrupt_at_s = Some(30.0);
    let stop = trainer.stop.clone();
    let mut log = Log::default();
    let summary = fly(&mut trainer, plan, &mut log, &stop).unwrap();
    assert!(summary.as_planned && trainer.now() < 33.0, "{summary:?} {}", trainer.now());
    assert!(summary.steps > 250 && summary.steps + 2 > trainer.trained, "{summary:?}");
}

#[test]
fn saves_come_often_enough_that_a_kill_loses_little() {
    let flown = fly_it(Script::plain());
    let times: Vec<f64> = flown.log.saved_at_s.clone();
    // √(2 · 0.3 s · 100 s / 0.2) ≈ 17 s, the last one left out if the end is near, and the first by 5 % of
    // the budget after the training began.
    assert!(times[0] < 9.0, "{times:?}");
    assert!(times.windows(2).all(|w| w[1] - w[0] < 35.0), "{times:?}");
}
