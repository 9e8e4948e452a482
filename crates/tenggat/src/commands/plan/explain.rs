//! `tenggat plan explain` and `tenggat plan steps`: runs with a fixed number of steps.

use std::path::Path;

use anyhow::Context;
use serde_json::json;
use tenggat_plan::{Plan, PlanOptions, Span, explain as look_back, recommend_steps};

use super::args::{ExplainArgs, ShapeArgs, StepsArgs};
use super::job::on;
use super::observed::Observed;
use super::shape::shaped;
use super::{machines, measured};
use crate::output::{self, say};

/// Says what became of a run.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let observed = args.log.as_deref().map(Observed::read).transpose()?;
    // A run under a budget has no set number of steps: it did as many as it could.
    let steps = args.steps.or(observed.as_ref().and_then(|o| o.asked)).or(observed.as_ref().map(|o| o.done));
    let steps = steps.context("the log does not say how many steps the run was to take; give --steps")?;
    let step_s = match (&observed, args.s_per_step) {
        (Some(observed), _) => Span::exactly(observed.step_s),
        (None, Some(span)) => span,
        (None, None) => anyhow::bail!("give --s-per-step or --log"),
    };
    let overhead_s = args.overhead.or(observed.as_ref().map(|o| o.beside_s)).unwrap_or(0.0);
    let explanation = look_back(args.duration, steps, step_s, overhead_s);
    if args.json {
        let all = json!({ "observed": observed, "explanation": explanation });
        output::json(&all)?;
        return Ok(());
    }
    if let Some(observed) = observed {
        say!("{observed}");
    }
    output::block(&explanation.to_string());
    Ok(())
}

/// Recommends a number of steps.
pub fn steps(args: &StepsArgs) -> anyhow::Result<()> {
    let (step_s, planned_s) = match (&args.job, args.s_per_step) {
        (Some(job), _) => planned(job, args)?,
        (None, Some(step_s)) => (step_s, 0.0),
        (None, None) => anyhow::bail!("give --s-per-step or --job"),
    };
    let advice = recommend_steps(args.budget, step_s, args.overhead.unwrap_or(planned_s));
    if args.json {
        output::json(&advice)?;
    } else {
        output::block(&format!("{} steps\n{}", advice.steps, advice.reason));
    }
    Ok(())
}

/// Seconds per step, and beside the steps, as `tenggat plan` has them for the same job, card and program.
fn planned(path: &Path, args: &StepsArgs) -> anyhow::Result<(Span, f64)> {
    let job = shaped(Some(path), &ShapeArgs::default())?.job;
    let machine = machines::chosen(args.gpu.as_deref(), args.trainer, |_| false)?;
    let [machine] = &machine[..] else { anyhow::bail!("--gpu must name one card") };
    let options = PlanOptions { measured: measured::known(), ..PlanOptions::default() };
    let plan = Plan::new(&on(&job, machine), machine, args.trainer, &options)?;
    let between_s = plan.training.map_or(0.0, |training| training.total_s() - training.steps_s);
    let span = Span { low: plan.mean_step_s.low, high: plan.mean_step_s.high };
    Ok((span, plan.other_phases_s() + between_s))
}
