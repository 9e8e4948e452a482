//! Putting jobs into the queue.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use jiff::Timestamp;
use tenggat_drive::ToolkitJob;
use tenggat_plan::{Plan, PlanOptions, Precision, Program as Trainer};
use tenggat_queue::{NewEntry, Program, Queue};
use tenggat_train::job::Job;
use tenggat_train::plan::job::plan_job;

use super::whereabouts::{now_unix_s, unix_s};
use crate::commands::plan::facts::facts;
use crate::commands::plan::job::on;
use crate::device::Choice;
use crate::processor;

/// Limits and ways that jobs are added with.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    pub budget_s: Option<f64>,
    pub by: Option<Timestamp>,
    pub name: Option<&'a str>,
    pub program: Program,
    pub device: Choice,
}

/// Reads the jobs and, if all can be read, adds them; returns their numbers.
///
/// # Errors
/// A job cannot be read, the time is over, or the queue cannot be written.
pub fn add(queue: &mut Queue, jobs: &[PathBuf], terms: &Terms<'_>) -> anyhow::Result<Vec<i64>> {
    if terms.by.is_some_and(|by| by <= Timestamp::now()) {
        bail!("--by lies in the past; it is now {}", Timestamp::now());
    }
    let entries = jobs.iter().map(|job| entry(job, terms)).collect::<anyhow::Result<Vec<_>>>()?;
    entries.iter().map(|entry| Ok(queue.add(entry, now_unix_s())?)).collect()
}

fn entry(job: &Path, terms: &Terms<'_>) -> anyhow::Result<NewEntry> {
    let asked = match terms.program {
        Program::Train => trained(job, terms.name)?,
        Program::Drive => driven(job, terms.name)?,
    };
    let budget_s = terms.budget_s.or(asked.budget_s);
    let by_unix_s = terms.by.or(asked.deadline).map(unix_s);
    if terms.program == Program::Drive && budget_s.is_none() && by_unix_s.is_none() {
        bail!("{}: a drive needs a time to end; give --budget or --by", job.display());
    }
    let (device, lane) = device(terms.device);
    Ok(NewEntry {
        job: text(&std::path::absolute(job)?)?,
        program: terms.program,
        name: terms.name.map(str::to_owned),
        working_folder: text(&std::env::current_dir()?)?,
        run: text(&std::path::absolute(asked.folder)?)?,
        lane,
        device,
        budget_s,
        by_unix_s,
        expected_s: asked.expected_s,
    })
}

/// What a job says of itself.
struct Asked {
    folder: PathBuf,
    budget_s: Option<f64>,
    deadline: Option<Timestamp>,
    expected_s: Option<f64>,
}

fn trained(path: &Path, name: Option<&str>) -> anyhow::Result<Asked> {
    let (job, _) = Job::from_file(path, name, &|name| std::env::var(name).ok())?;
    Ok(Asked {
        budget_s: job.limits.budget_s,
        deadline: job.limits.deadline,
        expected_s: expected_s(&job),
        folder: job.folder,
    })
}

fn driven(path: &Path, name: Option<&str>) -> anyhow::Result<Asked> {
    let job = ToolkitJob::read(path, name, &|name| std::env::var(name).ok())?;
    let budget_s = job.wishes.budget.as_deref().map(tenggat_plan::parse_duration_s).transpose()?;
    let deadline = job.wishes.deadline.as_deref().map(str::parse::<Timestamp>).transpose();
    let deadline = deadline.with_context(|| format!("{}: `deadline`", path.display()))?;
    Ok(Asked { folder: job.folder, budget_s, deadline, expected_s: None })
}

/// Seconds that its steps take on this processor. How jobs compare is much the same on a GPU, and that is all
/// the queue needs.
fn expected_s(job: &Job) -> Option<f64> {
    job.train.steps?;
    let (facts, _) = facts(&job.model.name_or_path).ok()?;
    let planned = plan_job(job, &facts, Precision::Bf16).job;
    let machine = processor::calibrated().unwrap_or_else(processor::uncalibrated);
    let plan = Plan::new(&on(&planned, &machine), &machine, Trainer::Tenggat, &PlanOptions::default());
    plan.ok()?.total_s.map(|total| total.likely)
}

/// What the run is told of its device, and the lane in which it waits: one for each device.
fn device(choice: Choice) -> (String, String) {
    let (device, lane) = match choice {
        Choice::Auto if choice.may_be_a_gpu() => ("auto".into(), "cuda:0".into()),
        Choice::Auto => ("auto".into(), "cpu".into()),
        Choice::Cuda(number) => (format!("cuda:{number}"), format!("cuda:{number}")),
        Choice::Cpu => ("cpu".into(), "cpu".into()),
        Choice::Emulated(usize::MAX) => ("emulated".into(), "cpu".into()),
        Choice::Emulated(bytes) => (format!("emulated:{}MB", bytes as f64 / 1e6), "cpu".into()),
    };
    (device, lane)
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{}: the path is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_for_one_device_share_a_lane() {
        assert_eq!(device(Choice::Cuda(1)), ("cuda:1".into(), "cuda:1".into()));
        assert_eq!(device(Choice::Cpu).1, device(Choice::Emulated(1 << 30)).1);
        let (_, auto) = device(Choice::Auto);
        assert_eq!(auto, if tenggat_gpu::driver_is_there() { "cuda:0" } else { "cpu" });
        for choice in [
            Choice::Auto,
            Choice::Cpu,
            Choice::Cuda(2),
            Choice::Emulated(usize::MAX),
            Choice::Emulated(7 << 20),
        ] {
            assert_eq!(device(choice).0.parse(), Ok(choice));
        }
    }
}
