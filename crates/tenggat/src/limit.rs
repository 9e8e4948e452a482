//! From `--budget`, `--deadline` and `--clock-start` to seconds on the run's clock; the other limits of the
//! job, as far as flags change them.

use std::time::Duration;

use jiff::Timestamp;
use tenggat_plan::{Clock, WallClock};
use tenggat_train::job::Limits;

use crate::cli::Limit;

/// A clock and the deadline on it.
pub struct Limited {
    pub clock: WallClock,
    pub deadline_s: Option<f64>,
    /// Whether the deadline is a moment rather than a time to be spent.
    pub is_moment: bool,
}

/// Applies the flags; without any, what the job says.
pub fn resolve(limit: &Limit, clock: WallClock, job: &mut Limits) -> anyhow::Result<Limited> {
    job.fill |= limit.fill;
    job.margin_s = limit.margin.or(job.margin_s);
    job.memory_bytes = limit.memory_limit.or(job.memory_bytes);
    let budget_s = limit.budget.as_deref().map(tenggat_plan::parse_duration_s).transpose()?;
    let now = Timestamp::now();
    let mut clock = clock;
    if let Some(start) = limit.clock_start {
        let spent_s = seconds(start, now);
        anyhow::ensure!(spent_s >= 0.0, "--clock-start {start} lies in the future; it is now {now}");
        clock = WallClock::started_earlier(Duration::from_secs_f64(spent_s));
    }
    let deadline_s = match (budget_s, limit.deadline) {
        (Some(budget_s), _) => Some(budget_s),
        (None, Some(deadline)) => Some(on_clock(&clock, now, deadline)?),
        (None, None) => match (job.budget_s, job.deadline) {
            (Some(budget_s), _) => Some(budget_s),
            (None, Some(deadline)) => Some(on_clock(&clock, now, deadline)?),
            (None, None) => None,
        },
    };
    anyhow::ensure!(
        deadline_s.is_some() || !limit.fill,
        "--fill uses the whole budget; give a --budget or a --deadline"
    );
    let spent = budget_s.is_some() || limit.deadline.is_none() && job.budget_s.is_some();
    let is_moment = deadline_s.is_some() && (!spent || limit.clock_start.is_some());
    Ok(Limited { clock, deadline_s, is_moment })
}

fn on_clock(clock: &WallClock, now: Timestamp, deadline: Timestamp) -> anyhow::Result<f64> {
    let left_s = seconds(now, deadline);
    anyhow::ensure!(left_s > 0.0, "the deadline {deadline} has passed; it is now {now}");
    Ok(clock.now_s() + left_s)
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}
