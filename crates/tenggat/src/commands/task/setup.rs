//! A task with all that is found out before anything is trained: its model, pictures, output and hours.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tenggat_drive::lora::ModelKeys;
use tenggat_plan::WallClock;
use tenggat_train::contest::container::{Roots, Task};
use tenggat_train::contest::work::Work;
use tenggat_train::contest::{HoldOut, ModelType, Split, split, unpack};
use tenggat_train::lora::file as lora_file;
use tenggat_train::run::{LAST, Stop};

use super::TaskArgs;
use crate::assets;
use crate::limit::Limited;
use crate::output::{say, warning};

/// Kept free before the end for what this process's clock does not show: share of the hours, and its bounds
/// in seconds.
const MARGIN_SHARE: f64 = 0.01;
const MARGIN_S: (f64, f64) = (1.0, 60.0);

/// A task with all that is found out before anything is trained.
pub struct Setup<'a> {
    pub args: &'a TaskArgs,
    pub task: &'a Task,
    pub roots: &'a Roots,
    pub kind: ModelType,
    /// The model's folder.
    pub model: PathBuf,
    /// The archive of pictures.
    pub archive: PathBuf,
    /// Long side of the pictures.
    pub side: usize,
    /// What is uploaded.
    pub output: PathBuf,
}

impl<'a> Setup<'a> {
    /// Finds the model and the archive.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn find(args: &'a TaskArgs, task: &'a Task, roots: &'a Roots) -> anyhow::Result<Self> {
        let is_mini = args.model == assets::MINI;
        let model = if is_mini { assets::mini()?.join("model") } else { roots.model(task)? };
        Ok(Setup {
            args,
            task,
            roots,
            kind: args.model_type,
            model,
            archive: roots.dataset(task)?,
            side: side(args),
            output: roots.output(task),
        })
    }

    /// The hours, which some revisions of the contest cut to whole ones: then what its rule gives for the
    /// pictures in the archive, which are not more than the task has.
    pub fn hours(&self, pictures: usize) -> f64 {
        if self.args.hours_to_complete > 0.0 {
            return self.args.hours_to_complete;
        }
        let hours = self.kind.hours(pictures);
        warning!(
            "--hours-to-complete 0: taken for {hours}, what the rule gives {pictures} pictures for {}",
            self.kind.name()
        );
        hours
    }

    /// Where a task of so many hours has to end.
    pub fn limited(&self, clock: WallClock, hours: f64) -> Limited {
        let mut limited = Limited { clock, deadline_s: Some(deadline_s(hours)), is_moment: true };
        self.args.terms.money.limit(&mut limited);
        // The hours count from each start of the container: what is left of them is known outside alone.
        limited.is_moment = true;
        limited
    }
}

/// Where a task of so many hours has to end, on the clock of its process, whatever it costs.
pub fn deadline_s(hours: f64) -> f64 {
    let (least_s, most_s) = MARGIN_S;
    hours * 3600.0 - (MARGIN_SHARE * hours * 3600.0).clamp(least_s, most_s)
}

/// Long side of a task's pictures.
pub fn side(args: &TaskArgs) -> usize {
    use tenggat_train::contest::rules::LONG_SIDE;
    args.long_side.map_or(if args.model == assets::MINI { 128 } else { LONG_SIDE }, usize::from)
}

/// The model's layers.
///
/// # Errors
/// Its weights are not there, or cannot be read.
pub fn keys(setup: &Setup<'_>) -> anyhow::Result<ModelKeys> {
    let weights = setup.kind.weights(&setup.model, setup.task).with_context(|| {
        format!(
            "{} has no weights of {} that can be told from others",
            setup.model.display(),
            setup.kind.name()
        )
    })?;
    ModelKeys::read(&weights).with_context(|| format!("the weights in {}", weights.display()))
}

/// Unpacks the archive and parts its pictures; those that cannot be used are named.
///
/// # Errors
/// The archive cannot be read, it holds no picture, or somebody asked for the end.
pub fn prepare(setup: &Setup<'_>, work: &Work, hold_out: HoldOut, stop: &Stop) -> anyhow::Result<Split> {
    let folder = work.path().join("archive");
    let unpacked = unpack(&setup.archive, &folder)?;
    unpacked.bad.iter().for_each(|bad| warning!("left out: {bad}"));
    stop.interrupt().check()?;
    let trigger = setup.args.trigger_word.as_deref();
    let pictures = split(&folder, work.path(), setup.side, trigger, hold_out)?;
    // The scaled ones are all that is needed, and the disk may be small.
    let _ = std::fs::remove_dir_all(&folder);
    pictures.bad.iter().for_each(|bad| warning!("left out: {bad}"));
    let (training, held) = pictures.pictures;
    say!("{:<14} {training} to train on, {held} held out, long side {}", "pictures", setup.side);
    Ok(pictures)
}

/// Rank of the LoRA that an earlier start delivered; 0 without one. It can be resumed at this rank or a
/// higher one.
pub fn delivered_rank(output: &Path) -> usize {
    let file = lora_file::load(&output.join(LAST)).ok().filter(|file| file.step() != Some(0));
    file.map_or(0, |file| file.modules.iter().map(|module| module.rank).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TaskArgs,
    }

    #[test]
    fn hours_that_were_cut_off_follow_from_the_rule() {
        let hours = |kind: &str, given: &str| {
            let line = ["task", "--task-id", "t", "--model", "m", "--dataset-zip", "z", "--model-type", kind];
            let more = ["--expected-repo-name", "r", "--hours-to-complete", given];
            let Line { args } = Line::parse_from(line.iter().chain(&more));
            let (task, roots) = (args.task().unwrap(), args.roots().unwrap());
            let (model, archive, output) = (PathBuf::new(), PathBuf::new(), PathBuf::new());
            let kind = args.model_type;
            let setup =
                Setup { args: &args, task: &task, roots: &roots, kind, model, archive, side: 64, output };
            (setup.hours(9), setup.hours(45))
        };
        assert_eq!(hours("krea2", "0"), (0.5, 1.0));
        assert_eq!(hours("qwen-image", "0"), (1.0, 1.5));
        assert_eq!((hours("qwen-image", "1.5"), hours("flux", "0.01")), ((1.5, 1.5), (0.01, 0.01)));
    }
}
