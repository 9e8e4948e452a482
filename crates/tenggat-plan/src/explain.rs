//! Looking back at a run, and choosing steps for one without a budget.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::quantity::{Span, format_duration};

/// How a run with fixed steps ends within a fixed time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// All steps were done in time at any speed of the range.
    Finished,
    /// The time was over first at any speed of the range.
    Killed,
    /// It depends on the speed.
    Depends,
}

/// What became of a run with fixed steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Time that the run had, seconds.
    pub duration_s: f64,
    /// Steps asked for.
    pub steps: u64,
    /// Seconds per step.
    pub step_s: Span,
    /// Seconds beside the steps: loading, caching, saving.
    pub overhead_s: f64,
    /// How it ended.
    pub ending: Ending,
    /// Steps reached, at the slow and at the fast end of the range.
    pub reached: (u64, u64),
    /// Time left unused, at the slow and at the fast end, seconds.
    pub idle_s: (f64, f64),
    /// Time that all steps need, seconds.
    pub needed_s: Span,
    /// The slowest step that still finishes, seconds; 0 if there is no time for steps at all.
    pub slowest_finishing_step_s: f64,
}

/// Works out how a run of `steps` ended that had `duration_s`, of which `overhead_s` went to other work.
///
/// Negative and undefined numbers count as 0.
pub fn explain(duration_s: f64, steps: u64, step_s: Span, overhead_s: f64) -> Explanation {
    let (duration_s, overhead_s) = (positive(duration_s), positive(overhead_s));
    let for_steps_s = (duration_s - overhead_s).max(0.0);
    let needed = |step_s: f64| overhead_s + steps as f64 * positive(step_s);
    let reached = |step_s: f64| match positive(step_s) {
        s if s > 0.0 => ((for_steps_s / s * (1.0 + 1e-12)) as u64).min(steps),
        _ => steps,
    };
    let idle = |step_s: f64| (duration_s - needed(step_s)).max(0.0);
    let finishes = |step_s: f64| needed(step_s) <= duration_s * (1.0 + 1e-12);
    let ending = match (finishes(step_s.high), finishes(step_s.low)) {
        (true, _) => Ending::Finished,
        (false, true) => Ending::Depends,
        (false, false) => Ending::Killed,
    };
    Explanation {
        duration_s,
        steps,
        step_s,
        overhead_s,
        ending,
        reached: (reached(step_s.high), reached(step_s.low)),
        idle_s: (idle(step_s.high), idle(step_s.low)),
        needed_s: Span { low: needed(step_s.low), high: needed(step_s.high) },
        slowest_finishing_step_s: if steps > 0 { for_steps_s / steps as f64 } else { 0.0 },
    }
}

fn positive(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, duration_s, .. } = self;
        let duration = format_duration(*duration_s);
        let span = |(a, b): (f64, f64)| {
            let (a, b) = (format_duration(a), format_duration(b));
            if a == b { a } else { format!("{a} to {b}") }
        };
        write!(f, "{steps} steps at {} s", self.step_s)?;
        if self.overhead_s > 0.0 {
            write!(f, " and {} of other work", format_duration(self.overhead_s))?;
        }
        writeln!(f, " need {}; there was {duration}.", span((self.needed_s.low, self.needed_s.high)))?;
        let share = |idle_s: f64| 100.0 * idle_s / duration_s.max(f64::MIN_POSITIVE);
        match self.ending {
            Ending::Finished => {
                writeln!(f, "Finished: all {steps} steps were done.")?;
                let (low, high) = self.idle_s;
                write!(f, "Idle: {}", span((low, high)))?;
                if share(low).round() == share(high).round() {
                    writeln!(f, ", {:.0} % of the time.", share(high))?;
                } else {
                    writeln!(f, ", {:.0} to {:.0} % of the time.", share(low), share(high))?;
                }
                let (slow, fast) =
                    (self.steps_in_time(self.step_s.high), self.steps_in_time(self.step_s.low));
                if slow == fast {
                    write!(f, "The same time had room for {slow} steps.")
                } else {
                    write!(f, "The same time had room for {slow} to {fast} steps.")
                }
            }
            Ending::Killed => {
                let (low, high) = self.reached;
                let range = if low == high { format!("{low}") } else { format!("{low} to {high}") };
                writeln!(f, "Killed after {range} of {steps} steps; idle: 0 s.")?;
                write!(
                    f,
                    "What was trained after the last save is lost, and the learning rate had not reached its \
                     end. Every step would have had to take {:.2} s or less.",
                    self.slowest_finishing_step_s
                )
            }
            Ending::Depends => {
                writeln!(
                    f,
                    "Finished if a step takes up to {:.2} s, with up to {} idle ({:.0} %); else killed, at \
                     {} s after {} of {steps} steps.",
                    self.slowest_finishing_step_s,
                    format_duration(self.idle_s.1),
                    share(self.idle_s.1),
                    Span::exactly(self.step_s.high),
                    self.reached.0
                )?;
                write!(f, "No fixed number of steps is right for both; a budget is.")
            }
        }
    }
}

impl Explanation {
    fn steps_in_time(&self, step_s: f64) -> u64 {
        let for_steps_s = (self.duration_s - self.overhead_s).max(0.0);
        if step_s > 0.0 { (for_steps_s / step_s) as u64 } else { self.steps }
    }
}

/// A number of steps for a run that cannot measure its own speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepAdvice {
    /// Steps to ask for.
    pub steps: u64,
    /// Time left unused at the fast and the slow end of the range, seconds.
    pub idle_s: (f64, f64),
    /// Why this number.
    pub reason: String,
}

/// Share of the time kept free by [`recommend_steps`] for what nobody foresaw.
const UNFORESEEN: f64 = 0.03;

/// The largest round number of steps that ends in time even at the slow end of the range.
pub fn recommend_steps(budget_s: f64, step_s: Span, overhead_s: f64) -> StepAdvice {
    let (budget_s, overhead_s) = (positive(budget_s), positive(overhead_s));
    let for_steps_s = (budget_s * (1.0 - UNFORESEEN) - overhead_s).max(0.0);
    let most = if step_s.high > 0.0 { (for_steps_s / step_s.high) as u64 } else { 0 };
    let steps = round_down(most);
    let at = |step_s: f64| explain(budget_s, steps, Span::exactly(step_s), overhead_s).idle_s.0;
    let idle_s = (at(step_s.low), at(step_s.high));
    let kept = format_duration(budget_s * UNFORESEEN);
    let left = format_duration(for_steps_s);
    let beside = if overhead_s > 0.0 {
        format!(" and {} for everything but training", format_duration(overhead_s))
    } else {
        String::new()
    };
    let mut reason = format!(
        "Of {}, keep {kept} ({:.0} %) for the unforeseen, since a fixed number of steps cannot \
         adapt{beside}: {left} for steps. At {} s a step that is {most}, so {steps} in round numbers.",
        format_duration(budget_s),
        100.0 * UNFORESEEN,
        Span::exactly(step_s.high),
    );
    if steps == 0 {
        reason = format!("{} leaves no time for a step of {} s{beside}.", format_duration(budget_s), step_s);
    } else if !step_s.is_exact() {
        reason.push_str(&format!(
            " The slow end of the range counts, because a killed run loses more than an idle one; if steps \
             take {} s, {} ({:.0} %) stay unused.",
            Span::exactly(step_s.low),
            format_duration(idle_s.0),
            100.0 * idle_s.0 / budget_s.max(f64::MIN_POSITIVE)
        ));
    }
    StepAdvice { steps, idle_s, reason }
}

/// Two significant digits and a half: down to a multiple of 5 in the second digit's place, less for small
/// numbers.
fn round_down(steps: u64) -> u64 {
    let grain = match steps {
        0..50 => 1,
        50..500 => 10,
        500..5000 => 50,
        _ => 100,
    };
    steps / grain * grain
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_S: f64 = 3600.0;

    #[test]
    fn the_run_of_the_readme() {
        let run = explain(2.0 * HOUR_S, 1500, Span::exactly(4.5), 0.0);
        assert_eq!(run.ending, Ending::Finished);
        assert_eq!(run.reached, (1500, 1500));
        assert_eq!(run.idle_s, (450.0, 450.0));
        let text = run.to_string();
        assert!(
            text.contains("Finished") && text.contains("7 min 30 s, 6 %") && text.contains("1600 steps"),
            "{text}"
        );
    }

    #[test]
    fn a_range_may_end_either_way() {
        let run = explain(2.0 * HOUR_S, 1500, Span { low: 4.0, high: 6.0 }, 0.0);
        assert_eq!(run.ending, Ending::Depends);
        assert_eq!(run.reached, (1200, 1500));
        assert_eq!(run.idle_s, (0.0, 1200.0));
        assert!((run.slowest_finishing_step_s - 4.8).abs() < 1e-12);
        let text = run.to_string();
        assert!(
            text.contains("4.80 s") && text.contains("1200 of 1500") && text.contains("20 min"),
            "{text}"
        );
    }

    #[test]
    fn a_run_that_is_too_long_is_killed() {
        let run = explain(HOUR_S, 3000, Span { low: 4.0, high: 5.0 }, 600.0);
        assert_eq!((run.ending, run.reached), (Ending::Killed, (600, 750)));
        assert!(run.to_string().contains("Killed after 600 to 750 of 3000"), "{run}");
    }

    #[test]
    fn nonsense_does_no_harm() {
        for value in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            let run = explain(value, 100, Span { low: value, high: value }, value);
            assert!(run.idle_s.0 >= 0.0 && run.reached.0 <= 100);
            assert!(!run.to_string().is_empty());
            assert!(!recommend_steps(value, Span::exactly(value), value).reason.is_empty());
        }
    }

    #[test]
    fn steps_are_recommended_for_the_slow_end() {
        let advice = recommend_steps(3.0 * HOUR_S, Span { low: 5.0, high: 7.0 }, 300.0);
        // (10800 · 0.97 − 300) / 7 = 1453.
        assert_eq!(advice.steps, 1450);
        assert!(advice.reason.contains("1453") && advice.reason.contains("slow end"), "{}", advice.reason);
        assert_eq!(advice.idle_s.0, 10_800.0 - 300.0 - 1450.0 * 5.0);
        assert_eq!(recommend_steps(60.0, Span::exactly(5.0), 100.0).steps, 0);
    }

    /// What lies beside the steps counts once; a run that ends to the second is finished.
    #[test]
    fn the_time_beside_the_steps_is_counted() {
        let run = explain(1000.0, 90, Span { low: 8.0, high: 10.0 }, 100.0);
        assert_eq!(run.ending, Ending::Finished);
        assert_eq!((run.needed_s.low, run.needed_s.high), (100.0 + 90.0 * 8.0, 1000.0));
        assert_eq!((run.idle_s, run.reached), ((0.0, 180.0), (90, 90)));
        assert_eq!(run.slowest_finishing_step_s, 10.0);
        let text = run.to_string();
        for part in [
            "1 min 40 s of other work",
            "13 min 40 s to 16 min 40 s",
            "0 to 18 % of the time",
            "90 to 112 steps",
        ] {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        let more = explain(1000.0, 91, Span { low: 8.0, high: 10.0 }, 100.0);
        assert_eq!((more.ending, more.reached), (Ending::Depends, (90, 91)));
        let most = explain(1000.0, 113, Span { low: 8.0, high: 10.0 }, 100.0);
        assert_eq!((most.ending, most.reached), (Ending::Killed, (90, 112)));
        assert_eq!(explain(1000.0, 0, Span::exactly(10.0), 100.0).slowest_finishing_step_s, 0.0);
        assert_eq!(explain(100.0, 5, Span::exactly(10.0), 200.0).reached, (0, 0));
    }

    #[test]
    fn steps_are_recommended_in_round_numbers() {
        for (most, steps) in [(49, 49), (57, 50), (499, 490), (549, 500), (4999, 4950), (5099, 5000)] {
            assert_eq!(round_down(most), steps);
        }
        // 970 s of 1000 for steps of 10 s.
        let advice = recommend_steps(1000.0, Span::exactly(10.0), 0.0);
        assert_eq!((advice.steps, advice.idle_s), (90, (100.0, 100.0)));
        assert!(advice.reason.contains("keep 30 s (3 %) for the unforeseen"), "{}", advice.reason);
        assert!(
            advice.reason.contains(": 16 min 10 s for steps. At 10 s a step that is 97"),
            "{}",
            advice.reason
        );
        assert!(!advice.reason.contains("slow end"), "{}", advice.reason);
        let advice = recommend_steps(1000.0, Span { low: 5.0, high: 10.0 }, 70.0);
        assert_eq!((advice.steps, advice.idle_s), (90, (480.0, 30.0)));
        assert!(advice.reason.contains("and 1 min 10 s for everything but training"), "{}", advice.reason);
        assert!(
            advice.reason.contains("8 min 0 s (48 %)") || advice.reason.contains("8 min (48 %)"),
            "{}",
            advice.reason
        );
        assert!(recommend_steps(5.0, Span::exactly(10.0), 0.0).reason.contains("no time for a step of 10 s"));
    }
}
