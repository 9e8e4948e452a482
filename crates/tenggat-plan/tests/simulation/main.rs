//! Thousands of rehearsed runs: none ends late, and next to nothing of the budget is left over.
#![allow(clippy::print_stdout, reason = "tests say what they found")]

mod random;
mod run;
mod weather;

use random::Random;
use run::{Outcome, Scene};
use tenggat_plan::FinishReason;
use weather::Kind;

const RUNS: u64 = 12_000;

struct Played {
    seed: u64,
    scene: Scene,
    outcome: Outcome,
}

impl Played {
    fn use_of_budget(&self) -> f64 {
        self.outcome.end_s / self.scene.budget_s
    }

    /// Whether a stall took all the time that was left, nothing but the deadline considered.
    fn stalled_past_the_deadline(&self) -> bool {
        let deadline_s = self.scene.budget_s;
        let stalls = &self.outcome.stalls;
        stalls.iter().any(|s| s.length_s > deadline_s - s.began_s)
    }

    /// Whether a stall left no time for the rest of the very operation that it interrupted.
    fn stalled_past_its_operation(&self) -> bool {
        let deadline_s = self.scene.budget_s;
        let stalls = &self.outcome.stalls;
        stalls.iter().any(|s| s.length_s > deadline_s - s.began_s - s.unfinished_s)
    }

    fn describe(&self) -> String {
        format!(
            "seed {}: {:?}, budget {:.0} s, step {:.2} s, save {:.2} s, ended {:.2} s after the deadline, {} steps, {:?}",
            self.seed,
            self.scene.kind,
            self.scene.budget_s,
            self.scene.step_s,
            self.scene.save_s,
            self.outcome.end_s - self.scene.budget_s,
            self.outcome.steps,
            self.outcome.reason,
        )
    }
}

fn play(seed: u64) -> Played {
    let mut random = Random::new(seed);
    let scene = Scene::random(seed, &mut random);
    let outcome = scene.play(&mut random);
    Played { seed, scene, outcome }
}

fn play_short(seed: u64) -> Played {
    let mut random = Random::new(seed ^ 0x5eed);
    let scene = Scene::short(&mut random);
    let outcome = scene.play(&mut random);
    Played { seed, scene, outcome }
}

fn play_all(runs: u64, play: fn(u64) -> Played) -> Vec<Played> {
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || (worker..runs).step_by(workers as usize).map(play).collect::<Vec<_>>())
            })
            .collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("no rehearsal panics")).collect()
    })
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

#[test]
fn no_run_ends_late_and_little_is_left_over() {
    let began = std::time::Instant::now();
    let played = play_all(RUNS, play);
    println!(
        "{} runs, {} steps, {:.1} s",
        played.len(),
        played.iter().map(|p| p.outcome.steps).sum::<u64>(),
        began.elapsed().as_secs_f64()
    );

    let (hopeless, late): (Vec<&Played>, Vec<&Played>) = played
        .iter()
        .filter(|p| p.outcome.end_s > p.scene.budget_s)
        .partition(|p| p.outcome.train_began_s > p.scene.budget_s);
    println!("the deadline passed before the training could begin: {}", hopeless.len());
    let (stalled, rest): (Vec<&Played>, Vec<&Played>) =
        late.iter().copied().partition(|p| p.stalled_past_the_deadline());
    let (cut, guilty): (Vec<&Played>, Vec<&Played>) =
        rest.into_iter().partition(|p| p.stalled_past_its_operation());
    println!(
        "late: {} ({} by a stall longer than the time to the deadline, {} by a stall longer than that less the rest of the operation it hit, {} otherwise)",
        late.len(),
        stalled.len(),
        cut.len(),
        guilty.len()
    );
    for p in stalled.iter().take(3).chain(cut.iter().take(3)) {
        println!("  excused: {}", p.describe());
    }
    for p in guilty.iter().take(20) {
        println!("  LATE: {}", p.describe());
    }

    let long = |p: &&Played| p.scene.budget_s > 600.0;
    for kind in Kind::ALL {
        let of_kind = |p: &&Played| p.scene.kind == kind;
        let used = sorted(played.iter().filter(long).filter(of_kind).map(Played::use_of_budget));
        let short = sorted(played.iter().filter(|p| !long(p)).filter(of_kind).map(Played::use_of_budget));
        let runs = played.iter().filter(of_kind).count();
        let ends = played.iter().filter(of_kind).filter(|p| p.outcome.last_progress == 1.0).count();
        println!(
            "{kind:?}: use over 10 min median {:.4} 5 % {:.4} 1 % {:.4}; under median {:.4} 5 % {:.4}; at the floor {ends} of {runs}",
            quantile(&used, 0.5),
            quantile(&used, 0.05),
            quantile(&used, 0.01),
            quantile(&short, 0.5),
            quantile(&short, 0.05),
        );
    }
    let used = sorted(played.iter().filter(long).map(Played::use_of_budget));
    let (median, fifth) = (quantile(&used, 0.5), quantile(&used, 0.05));
    println!("use of budgets over 10 minutes: median {median:.4}, 5th percentile {fifth:.4}");
    let off = sorted(played.iter().map(|p| 1.0 - p.outcome.last_progress));
    println!(
        "distance of the last step from the end of the schedule: 90 % {:.5}, 99 % {:.5}, most {:.5}",
        quantile(&off, 0.9),
        quantile(&off, 0.99),
        quantile(&off, 1.0)
    );
    let first_save = sorted(played.iter().map(|p| {
        (p.outcome.first_save_s.unwrap_or(p.scene.budget_s) - p.outcome.train_began_s) / p.scene.budget_s
    }));
    let unsaved = sorted(played.iter().map(|p| p.outcome.longest_unsaved_s / p.scene.budget_s));
    println!(
        "first save after the start of training, share of the budget: median {:.3}, 95 % {:.3}; longest stretch unsaved: median {:.3}, 95 % {:.3}",
        quantile(&first_save, 0.5),
        quantile(&first_save, 0.95),
        quantile(&unsaved, 0.5),
        quantile(&unsaved, 0.95)
    );
    println!(
        "closing phases left out {} times, {} of {} parts of others left out, rounds of samples skipped {} times, unsaved runs {}, out of time {}",
        played.iter().map(|p| p.outcome.skipped_phases).sum::<usize>(),
        played.iter().map(|p| p.outcome.skipped_parts).sum::<u64>(),
        played.iter().map(|p| p.outcome.skipped_parts + p.outcome.parts).sum::<u64>(),
        played.iter().map(|p| p.outcome.skipped_samples).sum::<u64>(),
        played.iter().filter(|p| !p.outcome.saved).count(),
        played.iter().filter(|p| p.outcome.reason == FinishReason::OutOfTime).count(),
    );

    assert!(hopeless.len() < 20);
    assert!(guilty.is_empty(), "{} runs ended late", guilty.len());
    assert!(median >= 0.99, "median use {median}");
    assert!(fifth >= 0.97, "5th percentile of use {fifth}");
    assert!(played.iter().all(|p| p.outcome.saved || p.outcome.steps == 0));
    assert!(played.iter().all(|p| p.outcome.monotone));
}

#[test]
fn short_runs_beside_another_process_use_their_budget_and_end_in_time() {
    let played = play_all(5000, play_short);
    let used = sorted(played.iter().map(Played::use_of_budget));
    println!(
        "budgets of 15 to 180 s: use least {:.4}, 1 % {:.4}, median {:.4}, most {:.4}",
        used[0],
        quantile(&used, 0.01),
        quantile(&used, 0.5),
        quantile(&used, 1.0)
    );
    let idle = sorted(played.iter().map(|p| p.scene.budget_s - p.outcome.end_s));
    println!(
        "seconds before the deadline: least {:.3}, 1 % {:.3}, median {:.3}, 99 % {:.3}, most {:.3}; parts of the score left out {} of {}",
        idle[0],
        quantile(&idle, 0.01),
        quantile(&idle, 0.5),
        quantile(&idle, 0.99),
        quantile(&idle, 1.0),
        played.iter().map(|p| p.outcome.skipped_parts).sum::<u64>(),
        played.iter().map(|p| p.outcome.skipped_parts + p.outcome.parts).sum::<u64>(),
    );
    assert!(idle[0] > 0.0, "a run ended {} s late", -idle[0]);
    assert!(quantile(&used, 0.01) >= 0.95);
    let annealed = played.iter().filter(|p| p.outcome.last_progress == 1.0).count();
    println!("at the floor: {annealed} of {}", played.len());
    assert!(annealed as f64 > 0.97 * played.len() as f64);
}
