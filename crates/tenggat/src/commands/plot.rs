//! `tenggat plot`: loss, time per step and budget of runs, as a picture.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use tenggat_runs::{Curve, Run, Series, find, thin};
use tenggat_train::outcome::report::panels::{self, Panel, Panels};

use crate::output::say;
use crate::when::plural;

/// Points of a curve; a page is 1920 pixels wide.
const POINTS: usize = 1500;
/// Most runs in one picture: there are as many colours.
const MOST_RUNS: usize = 8;
/// Share of the steps at either end that may be so slow or so fast that the axis does not reach them.
const TRIM: f64 = 0.01;

/// `tenggat plot`.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// Folders of runs, or folders with runs in them.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The picture, a PNG.
    #[arg(long, value_name = "FILE", default_value = "plot.png")]
    pub out: PathBuf,
}

/// Draws the runs.
pub fn plot(args: &PlotArgs) -> anyhow::Result<()> {
    let folders = folders(&args.runs)?;
    let runs: Vec<Read> = folders.iter().map(|folder| Read::new(folder)).collect();
    let steps: usize = runs.iter().map(|run| run.curve.of).sum();
    if steps == 0 {
        bail!("{} has no steps yet; there is nothing to draw", args.runs[0].display());
    }
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    let title = if let [only] = &names[..] { only.clone() } else { plural(names.len() as u64, "run") };
    let panels = panels(&runs);
    panels::save(&Panels { title: &title, runs: &names, panels: &panels }, &args.out)?;
    say!(
        "{:<14} {} ({}, {})",
        "plot",
        args.out.display(),
        plural(runs.len() as u64, "run"),
        plural(steps as u64, "step")
    );
    Ok(())
}

/// The runs that are named or lie in what is named, in that order and each once.
fn folders(named: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in named {
        let found = find(path);
        if found.is_empty() {
            bail!("{} is not a run, and there is none in it", path.display());
        }
        for run in found {
            if !folders.contains(&run) {
                folders.push(run);
            }
        }
    }
    if folders.len() > MOST_RUNS {
        bail!("{} runs are too many for one picture; name {MOST_RUNS} at most", folders.len());
    }
    Ok(folders)
}

/// A run as it is drawn.
struct Read {
    name: String,
    curve: Curve,
    resumes: Vec<f64>,
    budget_s: Option<f64>,
}

impl Read {
    fn new(folder: &Path) -> Read {
        let (mut run, mut series) = (Run::new(folder), Series::new(folder));
        run.refresh();
        series.follow();
        let overview = run.overview();
        Read {
            name: overview.name,
            curve: thin(&series, 0, u32::MAX, POINTS, None),
            resumes: run.history().resumes.iter().map(|step| *step as f64).collect(),
            budget_s: overview.budget_s,
        }
    }

    fn drawn(&self, values: &[f32], scale: f64) -> panels::Curve {
        let points = self.curve.step.iter().zip(values);
        let points = points.map(|(step, value)| (f64::from(*step), f64::from(*value) * scale)).collect();
        panels::Curve { points, resumes: self.resumes.clone(), limit: None }
    }
}

fn panels(runs: &[Read]) -> Vec<Panel> {
    let longest_s = runs.iter().flat_map(|run| run.curve.time_s.iter().copied()).fold(0.0, f32::max);
    let longest_s = runs.iter().filter_map(|run| run.budget_s).fold(f64::from(longest_s), f64::max);
    let (unit, seconds) = match longest_s {
        s if s < 600.0 => ("s", 1.0),
        s if s < 36_000.0 => ("min", 60.0),
        _ => ("h", 3600.0),
    };
    let with_limit = |run: &Read| panels::Curve {
        limit: run.budget_s.map(|s| s / seconds),
        ..run.drawn(&run.curve.time_s, 1.0 / seconds)
    };
    let of = |curve: &dyn Fn(&Read) -> panels::Curve| runs.iter().map(curve).collect();
    let panel = |name: String, curves, from_zero, trim| Panel { name, curves, from_zero, trim };
    let deadline = if runs.iter().any(|run| run.budget_s.is_some()) { "; dashed: the deadline" } else { "" };
    let clock = format!("time on the run's clock, {unit}{deadline}");
    let loss = "loss, averaged over about 50 steps; dotted: resumed".into();
    vec![
        panel(loss, of(&|run| run.drawn(&run.curve.smoothed, 1.0)), false, TRIM),
        panel("time per step, s".into(), of(&|run| run.drawn(&run.curve.step_s, 1.0)), true, TRIM),
        panel(clock, of(&with_limit), true, 0.0),
    ]
}
