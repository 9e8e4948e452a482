//! `tenggat demo`: a real LoRA on the built-in mini model, inside a budget, from nothing but this binary.

use anyhow::Context;
use tenggat_plan::{Clock, WallClock};
use tenggat_train::job::Job;

use super::comparison;
use super::train::{Setting, run_job, show_interrupted, show_warnings};
use crate::assets;
use crate::cli;
use crate::device::Choice;
use crate::events::EventLines;
use crate::hooks::Hooks;
use crate::limit::Limited;
use crate::output::say;
use crate::signals;

/// The demo's job.
const JOB: &str = include_str!("../../../../assets/mini/demo.yaml");

/// Trains, scores before and after, and draws the pictures.
pub fn demo(args: &cli::Demo, clock: WallClock, choice: Choice) -> anyhow::Result<()> {
    let events = args.events.map(|format| EventLines::new(clock, format));
    let stop = signals::listen(0)?;
    let budget_s = tenggat_plan::parse_duration_s(&args.budget)?;
    let assets = assets::mini()?;
    let out = std::path::absolute(&args.out).with_context(|| format!("--out {}", args.out.display()))?;
    let (parent, name) = (out.parent(), out.file_name().and_then(|n| n.to_str()));
    let (Some(parent), Some(name)) = (parent, name) else {
        anyhow::bail!("--out {} is not the name of a folder", args.out.display());
    };
    let variable = |key: &str| match key {
        "DATA" => Some(assets.join("demo-dataset/train").display().to_string()),
        "OUT" => Some(parent.display().to_string()),
        "SEED" => Some(args.seed.to_string()),
        _ => None,
    };
    let (mut job, warnings) = Job::from_str(JOB, "demo.yaml".as_ref(), Some(name), &variable)?;
    show_warnings(&warnings);
    job.train.lr = args.lr.unwrap_or(job.train.lr);
    job.network.rank = args.rank.unwrap_or(job.network.rank);
    // Every demo is a new one.
    job.resume = false;
    let limited = Limited { clock, deadline_s: Some(budget_s), is_moment: false };
    let held_out = assets.join("demo-dataset/test");
    let (hooks, program) = (&mut Hooks::none("demo", clock), "demo");
    let setting =
        Setting { held_out: Some(&held_out), start_over: false, choice, stop: &stop, events, hooks, program };
    let summary = run_job(&job, &limited, setting)?;
    show_interrupted(&job, &summary);
    if summary.steps == 0 {
        return Ok(());
    }
    say!("");
    comparison::show(&summary, job.held_out_weights);
    say!("{:<14} {}", "LoRA", summary.lora.display());
    say!(
        "{:<14} {} steps of {:.0} ms; {:.1} s of {budget_s:.0} s used",
        "training",
        summary.steps,
        summary.step_s * 1e3,
        clock.now_s()
    );
    Ok(())
}
