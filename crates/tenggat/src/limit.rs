//! From `--budget`, `--deadline` and `--clock-start` to seconds on the run's clock; the other limits of the
//! job, as far as flags change them.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tenggat_plan::{Clock, WallClock};
use tenggat_train::job::{Limits, parse_local_moment, parse_past_moment};

/// When a run must have ended.
#[derive(Debug, Args)]
pub struct Limit {
    /// Time the whole run may take, from the start of the program: 90s, 45m, 2h, 1h30m.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, conflicts_with = "deadline")]
    pub budget: Option<String>,
    /// Time by which the program must have ended: 18:00, '2026-12-01 18:00' (both of this machine's time
    /// zone), or with a zone 2026-12-01T18:00:00+07:00.
    #[arg(long, value_name = "TIME", value_parser = parse_local_moment)]
    pub deadline: Option<Timestamp>,
    /// When the budget began to run, if before the program started; written as for --deadline.
    #[arg(long, value_name = "TIME", requires = "budget", value_parser = parse_past_moment)]
    pub clock_start: Option<Timestamp>,
    /// Use the whole budget, even if the job's steps are done earlier.
    #[arg(long)]
    pub fill: bool,
    /// Time kept free before the end; normally worked out by the run; for example 2s.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub margin: Option<f64>,
    /// Memory that may be used; blocks that do not fit recompute their activations: 24GB, 22.5GiB.
    #[arg(long, value_name = "MEMORY", value_parser = tenggat_plan::parse_bytes)]
    pub memory_limit: Option<f64>,
}

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
