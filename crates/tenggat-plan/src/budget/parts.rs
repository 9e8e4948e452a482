//! How long the parts of a phase take.

use super::sane_s;

/// How much of the slowest part is remembered from one part to the next.
const MEMORY: f64 = 0.8;
/// Weight of the newest part in the usual duration.
const WEIGHT: f64 = 0.2;
/// How much slower than usual the next part may be and still end in time.
const SLACK: f64 = 2.0;

/// What the parts of a phase took so far: usually, and at worst of late. Nothing is known by default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PartTime {
    parts: u32,
    usual_s: f64,
    slowest_s: f64,
}

impl PartTime {
    /// Takes in a part; durations that are no durations are passed over.
    pub fn observe(&mut self, seconds: f64) {
        let Some(seconds) = sane_s(seconds) else { return };
        self.parts = self.parts.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(self.parts));
        self.usual_s += weight * (seconds - self.usual_s);
        self.slowest_s = (MEMORY * self.slowest_s).max(seconds);
    }

    /// So many parts as if they were one.
    #[must_use]
    pub fn times(self, parts: f64) -> Self {
        Self { usual_s: parts * self.usual_s, slowest_s: parts * self.slowest_s, ..self }
    }

    /// Seconds of the usual part.
    pub(super) fn usual_s(&self) -> f64 {
        self.usual_s
    }

    /// Seconds that the next part will hardly exceed. Stalls of a busy machine are as long for short parts as
    /// for long ones, so one that was seen counts as it was and not twice over.
    pub(super) fn hardly_more_s(&self) -> f64 {
        self.slowest_s.max(SLACK * self.usual_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_once_and_fades() {
        let mut time = PartTime::default();
        assert_eq!(time.hardly_more_s(), 0.0);
        (0..10).for_each(|_| time.observe(0.1));
        assert!((time.hardly_more_s() - 0.2).abs() < 1e-12);
        time.observe(1.0);
        assert!((time.hardly_more_s() - 1.0).abs() < 1e-12);
        (0..20).for_each(|_| time.observe(0.1));
        assert!(time.hardly_more_s() < 0.22);
        let before = time;
        time.observe(f64::NAN);
        time.observe(-1.0);
        assert_eq!(time, before);
        assert!((time.times(2.0).usual_s() - 2.0 * time.usual_s()).abs() < 1e-12);
    }

    /// The mean of the first five, then a fifth of each; the slowest fades by a fifth.
    #[test]
    fn usual_and_slowest_part() {
        let mut time = PartTime::default();
        for (seconds, usual_s, slowest_s) in [
            (1.0, 1.0, 1.0),
            (3.0, 2.0, 3.0),
            (2.0, 2.0, 2.4),
            (2.0, 2.0, 2.0),
            (2.0, 2.0, 2.0),
            (4.0, 2.4, 4.0),
        ] {
            time.observe(seconds);
            assert!((time.usual_s() - usual_s).abs() < 1e-12, "{time:?}");
            assert!((time.slowest_s - slowest_s).abs() < 1e-12, "{time:?}");
        }
        assert!((time.hardly_more_s() - 4.8).abs() < 1e-12);
        assert!((time.times(3.0).hardly_more_s() - 14.4).abs() < 1e-12);
    }
}
