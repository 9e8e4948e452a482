//! `tenggat plan choose`: which card to rent.

use std::fs;

use anyhow::Context;
use serde_json::json;
use tenggat_plan::{
    Candidate, Choice, ChoiceOptions, Offer, PlanOptions, Storage, Verdict, aligned, format_duration,
    two_digits,
};

use super::args::ChooseArgs;
use super::measured;
use super::shape::shaped;
use crate::output::{self, say};

/// Tries every offer and prints the ones that do.
pub fn choose(args: &ChooseArgs) -> anyhow::Result<()> {
    let shaped = shaped(args.job.as_deref(), &args.shape)?;
    let steps = shaped.job.steps.context("the job does not say how many steps it wants; give --steps")?;
    anyhow::ensure!(
        args.download > 0.0 && args.download < 1e5,
        "--download {}: expected MB per second above 0",
        args.download
    );
    let offers = match &args.prices {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Offer::read_all(&text).with_context(|| path.display().to_string())?
        }
        None => Offer::known(),
    };
    let storage = Storage { download_bytes_per_s: args.download * 1e6, ..Storage::default() };
    let options = ChoiceOptions {
        program: args.trainer,
        deadline_s: args.deadline,
        most_usd: args.max_cost,
        offers,
        plan: PlanOptions { storage, measured: measured::known(), ..PlanOptions::default() },
        may_shrink: !args.as_is,
    };
    let choice = Choice::new(&shaped.job, steps, &options)?;
    if args.json {
        let all = json!({
            "schema": super::job::SCHEMA,
            "job": shaped.job,
            "steps": steps,
            "deadline_s": args.deadline,
            "most_usd": args.max_cost,
            "choice": choice,
            "notes": shaped.notes,
        });
        return output::json(&all);
    }
    show(&choice, args, steps, &shaped.name);
    shaped.notes.iter().for_each(|note| say!("note: {note}"));
    Ok(())
}

fn show(choice: &Choice, args: &ChooseArgs, steps: u64, name: &str) {
    let money = args.max_cost.map_or(String::new(), |usd| format!(" and for {} USD", two_digits(usd)));
    say!("{name}: {steps} steps by {} within {}{money}", args.trainer, format_duration(args.deadline));
    say!("");
    if choice.candidates.is_empty() {
        say!("No offer meets this.");
    } else {
        output::block(&aligned(&rows(&choice.candidates, steps)));
    }
    if !choice.rejected.is_empty() {
        say!("");
        say!("Too slow, too expensive or too small:");
        let row = |rejected: &tenggat_plan::Rejected| {
            vec![format!("  {}", label(&rejected.offer)), rejected.why.clone()]
        };
        output::block(&aligned_left(&choice.rejected.iter().map(row).collect::<Vec<_>>()));
    }
    say!("");
    say!(
        "Times and prices are likely ranges; every offer listed stays within the limits even at the upper \
         end. Fetching the model ({:.0} MB/s), loading and quantising are included; disk and upload are \
         not.",
        args.download
    );
    say!("note: prices change; `--prices FILE` uses today's");
}

fn label(offer: &Offer) -> String {
    let terms = if offer.terms.contains("interruptible") { ", interruptible" } else { "" };
    format!("{}, {}{terms}", offer.gpu, offer.provider)
}

fn rows(candidates: &[Candidate], steps: u64) -> Vec<Vec<String>> {
    let head = ["card", "USD/h", "price", "time", "of it fetching", "disk", "memory", "as of", "the job"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for candidate in candidates {
        rows.push(vec![
            label(&candidate.offer),
            format!("{:.2}", candidate.offer.usd_per_hour),
            format!("{} USD", candidate.usd),
            candidate.total_s.as_duration(),
            format_duration(candidate.download_s.round()),
            format!("{:.0} GB", candidate.disk_bytes / 1e9),
            candidate.memory_bytes.as_gigabytes(),
            candidate.offer.date.clone(),
            what(candidate, steps),
        ]);
    }
    rows
}

/// What is left of the job.
fn what(candidate: &Candidate, steps: u64) -> String {
    let mut parts = Vec::new();
    if candidate.loss > 0.0 {
        parts.push(format!("{}, rank {}", candidate.precision, candidate.rank));
        if candidate.side_share < 1.0 {
            parts.push(format!("images at {:.0} %", 100.0 * candidate.side_share));
        }
        if candidate.steps < steps {
            parts.push(format!("{} steps", candidate.steps));
        }
    } else {
        parts.push("whole".to_owned());
    }
    if candidate.verdict == Verdict::MayFit {
        parts.push("may not fit".to_owned());
    }
    parts.join(", ")
}

/// Two columns, both to the left.
fn aligned_left(rows: &[Vec<String>]) -> String {
    let width = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0);
    rows.iter().map(|row| format!("{:width$}  {}\n", row[0], row[1])).collect()
}
