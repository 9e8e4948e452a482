//! Where time comes from: seconds since the moment the budget began to run.

use std::cell::Cell;
use std::time::Duration;

/// A source of time.
///
/// Everything that plans takes the present as an argument or through this trait, so that a twelve-hour run
/// can be rehearsed in milliseconds.
pub trait Clock {
    /// Seconds since the budget began to run. Never goes back.
    fn now_s(&self) -> f64;
}

/// The machine's monotonic clock, which also counts the time that the machine was suspended: a deadline is a
/// moment in the world, and sleeping does not move it. Setting the wall clock does not move it either.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    started: Moment,
    spent_before_s: f64,
}

#[cfg(not(unix))]
use std::time::Instant as Moment;

/// A reading of that clock. `std::time::Instant` stands still while a machine is suspended.
#[cfg(unix)]
#[derive(Debug, Clone, Copy)]
struct Moment(Duration);

#[cfg(unix)]
impl Moment {
    fn now() -> Self {
        use nix::time::{ClockId, clock_gettime};
        // The monotonic clock of macOS counts sleep already.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let clock = ClockId::CLOCK_BOOTTIME;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let clock = ClockId::CLOCK_MONOTONIC;
        let reading = clock_gettime(clock).or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
        Moment(reading.expect("every Unix has a monotonic clock").into())
    }

    fn elapsed(self) -> Duration {
        // Under emulation a clock may step back by a tick.
        Self::now().0.saturating_sub(self.0)
    }
}

impl WallClock {
    /// A clock that reads zero now.
    pub fn start() -> Self {
        Self::started_earlier(Duration::ZERO)
    }

    /// A clock that already reads `spent`, for a budget that began before this process did (`--clock-start`).
    pub fn started_earlier(spent: Duration) -> Self {
        Self { started: Moment::now(), spent_before_s: spent.as_secs_f64() }
    }
}

impl Clock for WallClock {
    fn now_s(&self) -> f64 {
        self.spent_before_s + self.started.elapsed().as_secs_f64()
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct SimulatedClock {
    now_s: Cell<f64>,
}

impl SimulatedClock {
    /// A clock that reads `now_s`.
    pub fn at(now_s: f64) -> Self {
        Self { now_s: Cell::new(now_s) }
    }

    /// Moves the clock forward; negative or undefined durations leave it where it is.
    pub fn advance(&self, seconds: f64) {
        if seconds > 0.0 {
            self.now_s.set(self.now_s.get() + seconds);
        }
    }
}

impl Clock for SimulatedClock {
    fn now_s(&self) -> f64 {
        self.now_s.get()
    }
}

impl<C: Clock + ?Sized> Clock for &C {
    fn now_s(&self) -> f64 {
        (**self).now_s()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_started_earlier_reads_what_was_spent() {
        let clock = WallClock::started_earlier(Duration::from_secs(90));
        let first_s = clock.now_s();
        assert!((90.0..91.0).contains(&first_s), "{first_s}");
        assert!(clock.now_s() >= first_s);
    }

    #[test]
    fn a_simulated_clock_never_goes_back() {
        let clock = SimulatedClock::at(5.0);
        clock.advance(-3.0);
        clock.advance(f64::NAN);
        assert_eq!(clock.now_s(), 5.0);
        clock.advance(1.5);
        assert_eq!(clock.now_s(), 6.5);
    }
}
