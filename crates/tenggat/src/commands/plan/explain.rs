//! `tenggat plan explain` and `tenggat plan steps`: runs with a fixed number of steps.

use anyhow::Context;
use serde_json::json;
use tenggat_plan::{Span, explain as look_back, recommend_steps};

use super::args::{ExplainArgs, StepsArgs};
use super::observed::Observed;
use crate::output::{self, say};

/// Says what became of a run.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let observed = args.log.as_deref().map(Observed::read).transpose()?;
    let steps = args.steps.or(observed.as_ref().and_then(|o| o.asked));
    let steps = steps.context("the log does not say how many steps were asked for; give --steps")?;
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
    let advice = recommend_steps(args.budget, args.s_per_step, args.overhead.unwrap_or(0.0));
    if args.json {
        output::json(&advice)?;
    } else {
        output::block(&format!("{} steps\n{}", advice.steps, advice.reason));
    }
    Ok(())
}
