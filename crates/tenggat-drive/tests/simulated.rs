//! Hundreds of drives in simulated time: whatever the trainer does, the deadline holds and the newest whole
//! LoRA stays.

mod dice;
mod simulation;

use std::sync::atomic::AtomicBool;

use simulation::{Fault, Log, Script, Simulated};
use tenggat_drive::{Known, Plan, Room, Summary, Trouble, fly};

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
        delivered: 0,
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

/// Whether a drive used its budget as far as steps allow: 95 % of it, or so much that another start of the
/// trainer would leave no time for ten steps.
fn uses_its_budget(flown: &Flown) -> bool {
    let script = &flown.trainer.script;
    let left_s = script.deadline_s - flown.trainer.now();
    let factor = script.pace.last().map_or(1.0, |(_, factor)| *factor);
    let another_s =
        script.load_s + script.save_s + script.publish_s + script.stop_s.min(0.01 * script.deadline_s);
    used(flown) >= 0.95 || left_s < another_s + 13.0 * factor * script.step_s
}

/// Flies scripts whose trainers do nothing wrong; each must use its budget, and four of five 97 % of it.
fn use_their_budgets(script: fn(u64) -> Script) {
    let mut shares = Vec::new();
    for seed in drives(60) {
        let flown = fly_it(script(seed));
        check(&flown, &format!("seed {seed}"));
        let told =
            || format!("seed {seed} {:#?} {:?}\n{}", flown.trainer.script, flown.summary, flown.log.text());
        assert!(flown.summary.as_planned, "{}", told());
        if flown.trainer.script.asked.is_some_and(|asked| flown.summary.steps >= asked) {
            continue;
        }
        assert!(uses_its_budget(&flown), "used {:.3}: {}", used(&flown), told());
        shares.push(used(&flown));
    }
    shares.sort_by(f64::total_cmp);
    assert!(shares[shares.len() / 5] >= 0.97, "{:?}", &shares[..shares.len().min(30)]);
    assert!(shares[shares.len() / 20] >= 0.95, "{:?}", &shares[..shares.len().min(30)]);
}

#[test]
fn steady_trainers_use_their_budget() {
    use_their_budgets(Script::steady);
}

#[test]
fn a_drifting_pace_is_followed() {
    use_their_budgets(Script::drifting);
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
        assert!(flown.log.text().contains("the published LoRA stays"), "{}", flown.log.text());
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
fn a_machine_that_sleeps_loses_its_time_and_nothing_else() {
    // Asleep in the middle: the end is where it was.
    let slept = |at_s, for_s| Script { faults: vec![Fault::Sleep { at_s, for_s }], ..Script::plain() };
    let flown = fly_it(slept(40.0, 30.0));
    check(&flown, "in the middle");
    assert!(used(&flown) > 0.95 && flown.summary.as_planned, "{:?}", flown.summary);
    assert!((600..720).contains(&flown.summary.steps), "{}", flown.summary.steps);
    // Asleep past the deadline: the end comes at once, with what was published.
    let flown = fly_it(slept(60.0, 100.0));
    let (now_s, steps) = (flown.trainer.now(), flown.summary.steps);
    assert!((160.0..160.6).contains(&now_s) && !flown.trainer.is_alive(), "{now_s}");
    assert!(steps > 300 && steps == flown.trainer.published, "{steps}\n{}", flown.log.text());
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

#[test]
fn a_disk_that_fills_up_is_told_once_and_room_is_made() {
    let room = |at_s, free| (at_s, Room { folder: "out".into(), free, needed: 100 });
    // Old saves are worth 40 bytes.
    let flown =
        fly_it(Script { room: vec![room(0.0, 500), room(30.0, 70)], room_made: 40, ..Script::plain() });
    check(&flown, "made");
    let said = flown.log.text();
    assert!(said.contains("old saves of") && !said.contains("filling up"), "{said}");
    let flown =
        fly_it(Script { room: vec![room(0.0, 500), room(30.0, 10)], room_made: 0, ..Script::plain() });
    check(&flown, "told");
    assert_eq!(flown.log.text().matches("the disk is filling up").count(), 1, "{}", flown.log.text());
}

#[test]
fn a_full_disk_ends_a_drive_only_if_no_room_can_be_made() {
    let full = Fault::Crash { at_s: 50.0, trouble: Trouble::DiskFull };
    for (room_made, sessions) in [(0, 1), (1000, 2)] {
        let flown = fly_it(Script { faults: vec![full], room_made, ..Script::plain() });
        check(&flown, "full");
        assert_eq!(flown.summary.sessions, sessions, "{}", flown.log.text());
    }
}
