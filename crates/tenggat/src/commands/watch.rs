//! `tenggat watch`: [`status`](mod@super::status), again and again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use tenggat_runs::{Overview, Run, Series, State, find, thin};

use super::status::{budget, count, end, folder, listed, refreshed, table, width};
use crate::output::{self, sparkline};
use crate::training_lines::per_step;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two tables where they are not drawn over one another.
const PRINT_EVERY: Duration = Duration::from_secs(10);
/// Time between two searches for runs.
const FIND_EVERY: Duration = Duration::from_secs(5);
/// Lines of the log below a single run.
const LOG: usize = 8;

/// `tenggat watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Folder with runs, or of one run (default: `output` if there is one, else the current folder).
    pub folder: Option<PathBuf>,
    /// Print a line of JSON for each run that changed, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Shows the runs until the process is ended.
pub fn watch(args: &WatchArgs) -> anyhow::Result<()> {
    let folder = folder(args.folder.as_deref())?;
    let (mut runs, mut found_at, mut told) = (Vec::new(), None::<Instant>, BTreeMap::new());
    let mut series = None;
    let mut printed_at = None::<Instant>;
    let draws = output::draws_on_stdout();
    loop {
        if found_at.is_none_or(|at| at.elapsed() >= FIND_EVERY) {
            found_at = Some(Instant::now());
            find_new(&folder, &mut runs);
        }
        let shown = refreshed(&mut runs);
        if args.json {
            for ((run, overview), line) in runs.iter().zip(&shown).zip(listed(&runs, &shown)) {
                if told.get(run.folder()).is_none_or(|before| overview.is_news_after(before)) {
                    output::json_line(&line)?;
                    told.insert(run.folder().to_path_buf(), overview.clone());
                }
            }
        } else if draws {
            output::screen(&picture(&folder, &runs, &shown, &mut series));
        } else if printed_at.is_none_or(|at| at.elapsed() >= PRINT_EVERY) {
            printed_at = Some(Instant::now());
            output::product(&table(&runs, &shown, width()))?;
        }
        if output::is_unread() {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Adds runs that have appeared, and drops those that are gone.
fn find_new(folder: &Path, runs: &mut Vec<Run>) {
    let found = find(folder);
    runs.retain(|run| found.iter().any(|path| path == run.folder()));
    for path in found {
        if runs.iter().all(|run| run.folder() != path) {
            runs.push(Run::new(&path));
        }
    }
}

/// The steps of a single run, and its folder.
type Steps = Option<(PathBuf, Series)>;

/// The steps of a run, of which what is new is read.
fn follow<'a>(steps: &'a mut Steps, folder: &Path) -> &'a Series {
    let kept = steps.take().filter(|(known, _)| known == folder).map(|(_, series)| series);
    let (_, series) = steps.insert((folder.to_path_buf(), kept.unwrap_or_else(|| Series::new(folder))));
    series.follow();
    series
}

/// What the screen shows.
fn picture(folder: &Path, runs: &[Run], shown: &[Overview], steps: &mut Steps) -> String {
    let mut text = match (runs, shown) {
        ([run], [overview]) => one(run, overview, follow(steps, run.folder()), width()),
        ([], _) => format!("no runs in {} yet\n", folder.display()),
        _ => format!("{} in {}\n\n{}", count(shown), folder.display(), table(runs, shown, width())),
    };
    text += "\nCtrl-C ends watching; the runs go on.\n";
    text
}

/// A single run: how far it is, its loss and its log.
fn one(run: &Run, overview: &Overview, series: &Series, width: usize) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, text: Option<String>| {
        lines.extend(text.map(|text| format!("{name:<9} {text}")));
    };
    line("run", Some(format!("{} ({})", overview.name, overview.state.name())));
    line("reason", overview.reason.clone());
    let phase = overview.phase.as_deref().filter(|phase| *phase != "train");
    line("phase", phase.map(|phase| phase.replace('_', " ")));
    let total = overview.total.map_or(String::new(), |total| format!(" of {total}"));
    let speed = overview.step_s.map_or(String::new(), |s| format!(", {} each", per_step(s)));
    line("steps", Some(format!("{}{total}{speed}", overview.step)));
    line("", overview.share().map(|share| bar(share, width.saturating_sub(10).min(60))));
    line(if overview.state == State::Running { "ends" } else { "ended" }, end(overview));
    line("budget", budget(overview));
    let curve = thin(series, 0, u32::MAX, 3000, None);
    let loss = curve.smoothed.last().filter(|loss| loss.is_finite());
    line(
        "loss",
        loss.map(|loss| {
            format!("{loss:.4} {}", sparkline(&curve.smoothed, width.saturating_sub(18).min(60)))
        }),
    );
    line("LoRA", overview.lora.as_ref().map(|lora| run.folder().join(lora).display().to_string()));
    let log = &run.history().log;
    lines.push(String::new());
    for entry in log.iter().skip(log.len().saturating_sub(LOG)) {
        lines.push(format!("{}  {}", crate::when::moment(crate::when::unix(entry.unix_s)), entry.text));
    }
    lines.iter().map(|line| console::truncate_str(line, width, "…").into_owned() + "\n").collect()
}

fn bar(share: f64, width: usize) -> String {
    let full = (share * width as f64).round() as usize;
    format!(
        "{}{} {:.0} %",
        "█".repeat(full.min(width)),
        "░".repeat(width.saturating_sub(full)),
        100.0 * share
    )
}
