//! A task from its start to the LoRA that is uploaded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tenggat_plan::WallClock;
use tenggat_train::contest::container;
use tenggat_train::lora::file as lora_file;

use super::setup::{Setup, deadline_s, keys};
use super::{TaskArgs, driven, own, rehearse};
use crate::device::Choice;
use crate::hooks::{Hooks, Outcome, hooked};
use crate::output::{self, say, warning};
use crate::signals;

/// Trains until shortly before the end. Once there is a LoRA nothing that goes wrong makes the exit code
/// other than 0: with another the contest uploads nothing.
pub fn task(args: &TaskArgs, clock: WallClock, choice: Choice) -> anyhow::Result<()> {
    let task = args.task()?;
    let roots = args.roots()?;
    if args.rehearse {
        return rehearse::rehearse(args, &task, &roots, clock, choice);
    }
    if args.events.is_some() {
        output::leave_stdout_to_events();
    }
    let body = |hooks: &mut Hooks| {
        let setup = Setup::find(args, &task, &roots)?;
        // With 0 hours, the end is known once the pictures are counted.
        let hours = Some(args.hours_to_complete).filter(|hours| *hours > 0.0);
        hooks.begin(&task.repository, clock, hours.map(deadline_s));
        play(&setup, clock, choice, hooks)
    };
    hooked(&args.terms, &task.repository, clock, body, |path| Outcome {
        lora: Some((path.clone(), lora_file::load(path).ok().and_then(|file| file.step()).unwrap_or(0))),
        ended: "the task has ended".into(),
    })
    .map(drop)
}

fn play(setup: &Setup<'_>, clock: WallClock, choice: Choice, hooks: &mut Hooks) -> anyhow::Result<PathBuf> {
    // A panic is a bug, but not one that may cost the LoRA that is there.
    let ended = catch_unwind(AssertUnwindSafe(|| train(setup, clock, choice, hooks)));
    let problem = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(anyhow::anyhow!("a bug in this program ended the training")),
    };
    let output = &setup.output;
    let delivered = container::picked(output)
        .ok()
        .flatten()
        .filter(|path| lora_file::load(path).is_ok_and(|file| file.is_finite()));
    let Some(path) = delivered else {
        return Err(problem.unwrap_or_else(|| anyhow::anyhow!("there is no LoRA in {}", output.display())));
    };
    if let Some(problem) = problem {
        output::complaint("warning", &format!("{problem:#}; what was saved before is delivered"));
    }
    if let Err(e) = fits(setup, &path) {
        warning!("the scorer would refuse {}: {e:#}", path.display());
    }
    say!("{:<14} {}", "delivered", path.display());
    Ok(path)
}

/// Whether every key of a LoRA fits a layer of the model.
fn fits(setup: &Setup<'_>, lora: &Path) -> anyhow::Result<()> {
    Ok(keys(setup)?.check(lora)?)
}

fn train(setup: &Setup<'_>, clock: WallClock, choice: Choice, hooks: &mut Hooks) -> anyhow::Result<()> {
    for broken in container::set_broken_aside(&setup.output)? {
        warning!("a file that is not a whole LoRA was in the way; it is now {}", broken.display());
    }
    if setup.kind.is_ours() {
        let stop = signals::listen(0)?;
        stop.set_has_deadline(true);
        own::train(setup, clock, (choice, &stop), hooks)
    } else {
        driven::train(setup, clock, hooks)
    }
}
