//! `tenggat status`: the runs in a folder, from their files alone.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tenggat_runs::{Overview, Run, State, find};

use crate::output::{self, say};
use crate::when::{self, plural};

/// Folder of the results where the job names none.
const USUAL: &str = "output";
/// Columns where nobody knows the width.
const WIDTH: usize = 80;

/// `tenggat status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Folder with runs, or of one run (default: `output` if there is one, else the current folder).
    pub folder: Option<PathBuf>,
    /// Print a list of objects for programs.
    #[arg(long)]
    pub json: bool,
}

/// A run as programs read it.
#[derive(Serialize)]
struct Listed<'a> {
    folder: String,
    #[serde(flatten)]
    overview: &'a Overview,
}

/// Shows the runs once.
pub fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let folder = folder(args.folder.as_deref())?;
    let mut runs: Vec<Run> = find(&folder).iter().map(|run| Run::new(run)).collect();
    let shown = refreshed(&mut runs);
    if args.json {
        return output::json(&listed(&runs, &shown));
    }
    if shown.is_empty() {
        say!("no runs in {}", folder.display());
        return Ok(());
    }
    output::block(&table(&runs, &shown, width()));
    Ok(())
}

/// Where runs are looked for.
///
/// # Errors
/// There is no such folder.
pub fn folder(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let usual = || if Path::new(USUAL).is_dir() { USUAL.into() } else { PathBuf::from(".") };
    let folder = named.map_or_else(usual, Path::to_path_buf);
    if !folder.is_dir() {
        bail!("{} is not a folder; name one with runs in it, or a run's own", folder.display());
    }
    Ok(folder)
}

/// Reads what is new of each run.
pub fn refreshed(runs: &mut [Run]) -> Vec<Overview> {
    let one = |run: &mut Run| {
        run.refresh();
        run.overview()
    };
    runs.iter_mut().map(one).collect()
}

/// The runs for programs.
pub fn listed<'a>(runs: &[Run], shown: &'a [Overview]) -> Vec<impl Serialize + use<'a>> {
    let folder = |run: &Run| run.folder().display().to_string();
    runs.iter().zip(shown).map(|(run, overview)| Listed { folder: folder(run), overview }).collect()
}

/// Columns of standard output.
pub fn width() -> usize {
    output::width().unwrap_or(WIDTH)
}

/// A line for each run, in so many columns: running ones first, then the newest. A single one has its LoRA
/// and its reason below it.
pub fn table(runs: &[Run], shown: &[Overview], width: usize) -> String {
    let mut order: Vec<usize> = (0..shown.len()).collect();
    let newest = |i: &usize| shown[*i].updated_unix_s.unwrap_or(0.0);
    order.sort_by(|a, b| {
        let running = |i: &usize| shown[*i].state != State::Running;
        running(a).cmp(&running(b)).then(newest(b).total_cmp(&newest(a)))
    });
    let mut rows = vec![["run", "state", "step", "loss", "end", "deadline", "LoRA"].map(String::from)];
    rows.extend(order.iter().map(|&i| row(&shown[i])));
    // The last two are dropped, and names cut, where they do not fit.
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(console::measure_text_width(cell));
        }
    }
    let mut columns: Vec<usize> = (0..7).collect();
    let total = |columns: &[usize]| columns.iter().map(|&i| widths[i] + 2).sum::<usize>() - 2;
    for dropped in [6, 3] {
        let shortest = total(&columns) - widths[0].saturating_sub(16);
        if shortest > width {
            columns.retain(|&i| i != dropped);
        }
    }
    let over = total(&columns).saturating_sub(width);
    widths[0] = widths[0].saturating_sub(over).max(8);
    let mut text = String::new();
    for row in &rows {
        let cells = columns.iter().map(|&i| {
            let cell = console::truncate_str(&row[i], widths[i], "…");
            console::pad_str(&cell, widths[i], console::Alignment::Left, None).into_owned()
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text += &console::truncate_str(line.trim_end(), width, "…");
        text.push('\n');
    }
    for (overview, run) in shown.iter().zip(runs).filter(|_| shown.len() == 1) {
        if let Some(reason) = &overview.reason {
            text += &format!("reason  {reason}\n");
        }
        if let Some(lora) = &overview.lora {
            text += &format!("LoRA    {}\n", run.folder().join(lora).display());
        }
    }
    text
}

fn row(run: &Overview) -> [String; 7] {
    let step = match (run.total, &run.phase) {
        (_, Some(phase)) if run.step == 0 && phase != "train" => {
            let of = run.progress.map_or(String::new(), |(done, total)| format!(" {done}/{total}"));
            format!("{}{of}", phase.replace('_', " "))
        }
        (Some(total), _) => format!("{}/{total}", run.step),
        (None, _) => run.step.to_string(),
    };
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    let deadline = run.deadline_unix_s.map(|s| when::moment(when::unix(s)));
    [
        run.name.clone(),
        run.state.name().into(),
        step,
        or_none(run.loss.map(|loss| format!("{loss:.4}"))),
        or_none(end(run)),
        or_none(deadline),
        or_none(run.lora.clone()),
    ]
}

/// When a run ended or will end: `16:47, in 1:12 h`.
pub fn end(run: &Overview) -> Option<String> {
    let at_s = run.end_unix_s?;
    let moment = when::moment(when::unix(at_s));
    if run.state != State::Running {
        return Some(moment);
    }
    let in_s = at_s - Timestamp::now().as_millisecond() as f64 / 1e3;
    Some(format!("{moment}, in {}", when::span(in_s)))
}

/// What a run has used of its budget: `12:30 min of 2:00 h`.
pub fn budget(run: &Overview) -> Option<String> {
    Some(format!("{} of {}", when::span(run.spent_s?), when::span(run.budget_s?)))
}

/// `3 runs, 1 running`.
pub fn count(shown: &[Overview]) -> String {
    let running = shown.iter().filter(|run| run.state == State::Running).count();
    format!("{}, {running} running", plural(shown.len() as u64, "run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overview(name: &str) -> Overview {
        Overview {
            name: name.into(),
            state: State::Running,
            reason: None,
            program: Some("train".into()),
            phase: Some("train".into()),
            progress: None,
            step: 1200,
            total: Some(4800),
            loss: Some(0.41234),
            step_s: Some(0.5),
            began_unix_s: Some(1.8e9),
            updated_unix_s: Some(1.8e9),
            deadline_unix_s: Some(4e9),
            end_unix_s: Some(4e9 - 60.0),
            spent_s: Some(600.0),
            budget_s: Some(7200.0),
            lora: Some("last.safetensors".into()),
            process: Some(7),
        }
    }

    #[test]
    fn the_table_fits_80_columns() {
        let folder = tempfile::tempdir().unwrap();
        let runs = [Run::new(folder.path()), Run::new(folder.path())];
        let long = "a name that is much longer than any table has room for, with 日本 in it";
        let mut shown = [overview(long), overview("fox")];
        shown[1].state = State::Finished;
        for width in [80, 120, 200] {
            let text = table(&runs, &shown, width);
            assert!(text.lines().all(|line| console::measure_text_width(line) <= width), "{text}");
            assert!(
                text.contains("1200/4800")
                    && text.contains("finished")
                    && text.contains('…') == (width < 200)
            );
        }
        assert!(table(&runs, &shown, 200).contains("last.safetensors"));
    }

    #[test]
    fn a_run_that_has_not_begun_to_train_shows_its_phase() {
        let run = Overview {
            step: 0,
            phase: Some("score_before".into()),
            progress: Some((3, 24)),
            ..overview("fox")
        };
        assert_eq!(row(&run)[2], "score before 3/24");
        assert_eq!(budget(&run).unwrap(), "10:00 min of 2:00 h");
        assert_eq!(count(&[run]), "1 run, 1 running");
    }
}
