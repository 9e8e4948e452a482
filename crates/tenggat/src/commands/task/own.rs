//! A task that our own engine trains.

use tenggat_plan::WallClock;
use tenggat_train::contest::container;
use tenggat_train::contest::work::Work;
use tenggat_train::contest::{HoldOut, Split};
use tenggat_train::job::{self, Job};
use tenggat_train::run::{self, Stop};

use super::preset::{Choices, JobMaker, quantised};
use super::setup::{Setup, delivered_rank, prepare};
use crate::assets;
use crate::commands::train::{Setting, run_job, show_interrupted, show_warnings};
use crate::device::Choice;
use crate::events::EventLines;
use crate::hooks::Hooks;
use crate::output::{say, warning};
use crate::when::plural;

/// Prepares the pictures, decides what the task leaves open, and trains.
///
/// # Errors
/// The pictures cannot be prepared, or the run failed.
pub fn train(
    setup: &Setup<'_>,
    clock: WallClock,
    (choice, stop): (Choice, &Stop),
    hooks: &mut Hooks,
) -> anyhow::Result<()> {
    let &Setup { args, roots, ref model, ref output, side, .. } = setup;
    let events = args.events.map(|format| EventLines::new(clock, format));
    let mut choices = if args.model == assets::MINI { Choices::MINI } else { Choices::QWEN_IMAGE };
    choices.rank = args.rank.unwrap_or(choices.rank).max(delivered_rank(output));
    let mut maker = JobMaker { args, choices, model, side, quantised: quantised(model, roots)? };
    // Before anything is opened that may be broken: whatever happens from here on, there is a LoRA.
    let (mut job, _) = maker.job(&Split { train: "pictures".into(), ..Split::default() })?;
    job.folder.clone_from(output);
    run::deliver_untrained(&job, model)?;

    let work = Work::open(args.work_root.as_deref(), setup.task)?;
    work.remark.iter().for_each(|remark| warning!("{remark}"));
    let pictures = prepare(setup, &work, HoldOut::OneInTen, stop)?;
    maker.choices.consider(pictures.pictures.0);
    if let Some(lr) = args.lr {
        (maker.choices.lr, maker.choices.lr_times_steps) = (lr, None);
    }
    let (mut job, warnings) = maker.job(&pictures)?;
    let choices = &maker.choices;
    let rate = match choices.lr_times_steps {
        Some(product) => format!("{product:.3e} / steps"),
        None => format!("{:.1e}", choices.lr),
    };
    say!("{:<14} rank {}, batch {}, learning rate {rate}", "choices", choices.rank, choices.batch);
    show_warnings(&warnings);
    job.folder.clone_from(output);
    // What was delivered stays until there is something better or further; nothing of it is moved aside.
    job.resume = true;
    if let Some(change) = change(&job) {
        if delivered_rank(output) > 0 {
            warning!("the task changed: {change}; training continues from the delivered LoRA");
        }
        container::remove_state(output)?;
    }
    let limited = setup.limited(clock, setup.hours(pictures.pictures.0 + pictures.pictures.1));
    limited.deadline_s.into_iter().for_each(|deadline_s| hooks.moved(deadline_s));
    let setting = Setting { held_out: None, start_over: false, choice, stop, events, hooks, program: "task" };
    let summary = run_job(&job, &limited, setting)?;
    show_interrupted(&job, &summary);
    // What is uploaded at the end is the LoRA; a task that was interrupted may be started again.
    if !summary.interrupted {
        container::remove_state(output)?;
    }
    if let Some((first, best)) = summary.chosen {
        let (before, after) = (first.error.total, best.error.total);
        let change = 100.0 * (after / before - 1.0);
        say!(
            "{:<14} {after:.5} after {}, {:.2} % {} {} {before:.5}",
            "held-out error",
            plural(best.steps, "step"),
            change.abs(),
            if change > 0.0 { "above" } else { "below" },
            if first.steps == 0 { "the bare model's" } else { "that of the LoRA that it resumed from," }
        );
    }
    Ok(())
}

/// What differs between the job and that of an earlier start, if something that counts does.
fn change(job: &Job) -> Option<String> {
    let before = std::fs::read_to_string(job.folder.join("config.yaml")).ok()?;
    let changes = job::changes(&before, &job.text);
    changes.first().map(ToString::to_string)
}
