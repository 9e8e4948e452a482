//! Which of several ways of computing a product is the fastest, by the clock.
//!
//! Timing a shape costs ten milliseconds or so where a product takes less than one, and the first guess of
//! the library is good: only shapes that come very often win that back. Runs follow each other at once, so
//! that operands may still lie in the cache, as they seldom do in a training step. The numbers below are
//! estimates; none was measured on a GPU.

use std::time::Duration;

/// Uses after which a shape is timed. A training step has a shape 60 to 120 times, and is recorded after the
/// second one with the ways it has by then; a caption has one 28 to 56 times and may never come again.
const TIMED_AFTER: u32 = 100;
/// Floating-point operations of a product below which it is not timed.
const WORTH: f64 = 1e9;
/// By how much another way has to be faster than the first one: clocks and caches make as much difference.
const MARGIN: f64 = 0.02;
/// Time of a run below which it may be that of queueing it, the same for all ways.
const QUEUED: Duration = Duration::from_micros(8);
/// For how long a way is timed, and how many runs that is at least and at most.
const ENOUGH: Duration = Duration::from_millis(1);
const RUNS: (u32, u32) = (3, 256);

/// Whether to time a shape of `[rows, cols, inner]` that was used so often and can be computed in so many
/// ways.
pub(super) fn is_worth_it(extents: [usize; 3], uses: u32, ways: usize) -> bool {
    let operations = 2.0 * extents.iter().map(|&n| n as f64).product::<f64>();
    uses >= TIMED_AFTER && ways > 1 && operations >= WORTH
}

/// Time that `run` takes, by the `clock`; the first run does not count, which may have to load code. `run`
/// queues, `wait` waits for what was queued.
///
/// # Errors
/// Those of `run` and `wait`.
pub(super) fn measure<E>(
    run: impl Fn() -> Result<(), E>,
    wait: impl Fn() -> Result<(), E>,
    clock: impl Fn() -> Duration,
) -> Result<Duration, E> {
    run()?;
    wait()?;
    let (mut runs, most) = RUNS;
    loop {
        let begin = clock();
        for _ in 0..runs {
            run()?;
        }
        wait()?;
        let time = clock().saturating_sub(begin);
        if time >= ENOUGH || runs == most {
            return Ok(time / runs);
        }
        // A tenth more, lest it fall just short of enough.
        let enough = 1.1 * f64::from(runs) * ENOUGH.as_secs_f64() / time.as_secs_f64();
        runs = (enough.ceil() as u32).clamp(runs + 1, most);
    }
}

/// The way to keep, by the times of all, the first guess first; `None` stands for one that failed. The first
/// guess stays where no other is faster by a margin. `None` if all failed.
pub(super) fn winner(times: &[Option<Duration>]) -> Option<usize> {
    let measured = times.iter().enumerate().filter_map(|(way, time)| time.map(|time| (way, time)));
    let (fastest, least) = measured.min_by_key(|&(_, time)| time)?;
    match times[0] {
        Some(first) if first < QUEUED || least > first.mul_f64(1.0 - MARGIN) => Some(0),
        _ => Some(fastest),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn large_shapes_that_come_often_are_timed() {
        let large = [4300, 3072, 3072];
        assert!(is_worth_it(large, 100, 2));
        assert!(!is_worth_it(large, 99, 2), "too rare");
        assert!(!is_worth_it(large, 100, 1), "nothing to choose from");
        assert!(!is_worth_it([4300, 3072, 32], 10_000, 8), "an adapter's, 0.85 GFLOP");
        assert!(is_worth_it([1000, 1000, 500], 100, 8), "1 GFLOP");
    }

    #[test]
    fn the_first_guess_stays_unless_another_is_clearly_faster() {
        let of = |times: &[u64]| {
            let times: Vec<_> = times.iter().map(|&t| (t > 0).then(|| Duration::from_micros(t))).collect();
            winner(&times)
        };
        assert_eq!(of(&[100, 100, 100]), Some(0), "a tie");
        assert_eq!(of(&[100, 120, 99]), Some(0), "within 2 %");
        assert_eq!(of(&[100, 98]), Some(1), "2 %");
        assert_eq!(of(&[100, 90, 80, 80, 95]), Some(2), "of two equals the better guess");
        assert_eq!(of(&[100, 0, 0]), Some(0));
        assert_eq!(of(&[100, 0, 50]), Some(2));
        assert_eq!(of(&[0, 100, 99]), Some(2), "a first guess that fails has no margin");
        assert_eq!(of(&[0, 0]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7, 4]), Some(0), "the processor's time");
        assert_eq!(of(&[0, 7, 4]), Some(2));
    }

    /// Runs that take so long each, and 10 µs to wait for.
    fn timed(each_us: u64) -> (Duration, u32, u32) {
        let (now, runs, waits) = (Cell::new(Duration::ZERO), Cell::new(0), Cell::new(0));
        let pass = |us| now.set(now.get() + Duration::from_micros(us));
        let run = || {
            // The first one takes longer.
            pass(if runs.get() == 0 { 50_000 } else { each_us });
            runs.set(runs.get() + 1);
            Ok::<_, ()>(())
        };
        let wait = || {
            pass(10);
            waits.set(waits.get() + 1);
            Ok(())
        };
        let time = measure(run, wait, || now.get()).unwrap();
        (time, runs.get(), waits.get())
    }

    #[test]
    fn runs_are_as_many_as_it_takes() {
        assert_eq!(timed(2000), (Duration::from_micros(6010) / 3, 1 + 3, 2), "the least");
        // 310 µs for 3 are too little; 1.1 ms have room for 11.
        assert_eq!(timed(100), (Duration::from_micros(1110) / 11, 1 + 3 + 11, 3), "as many as fill the time");
        // 13 µs for 3, 264 for 254, then the most.
        assert_eq!(timed(1), (Duration::from_micros(266) / 256, 1 + 3 + 254 + 256, 4), "the most");
    }

    #[test]
    fn a_way_that_fails_is_not_timed_any_further() {
        let runs = Cell::new(0);
        let third = || {
            runs.set(runs.get() + 1);
            if runs.get() < 3 { Ok(()) } else { Err("run") }
        };
        assert_eq!(measure(third, || Ok(()), || Duration::ZERO), Err("run"));
        assert_eq!(runs.get(), 3);
        assert_eq!(measure(|| Ok(()), || Err("wait"), || Duration::ZERO), Err("wait"));
    }
}
