//! `tenggat plan JOB`: steps, phases, memory and price of a job.

use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use serde_json::json;
use tenggat_plan::{
    Comparison, ComparisonTable, Machine, Modulation, Plan, PlanJob, PlanOptions, PlanTable, Precision,
    Trainer, compare_with_reports,
};
use tenggat_train::job::Job;
use tenggat_train::planned::{ModelFacts, Planned, plan_job};

use super::args::JobArgs;
use super::machines;
use crate::assets;
use crate::commands::train::show_warnings;
use crate::output::{self, say};

/// Plans the job and prints the plans.
pub fn plan(path: &Path, args: &JobArgs) -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    let (mut job, warnings) = Job::from_file(path, None, &variable)?;
    show_warnings(&warnings);
    override_by(&mut job, args);
    let (facts, model) = facts(&job.model.name_or_path)?;
    let Planned { job: planned, mut notes } = plan_job(&job, &facts, Precision::Bf16);
    notes.extend(model);
    let options = PlanOptions {
        budget_s: budget_s(&job, args)?,
        price_per_hour: args.price_per_hour,
        ..PlanOptions::default()
    };
    let fits = |machine: &Machine| {
        Plan::new(&on(&planned, machine), machine, Trainer::Tenggat, &options).is_ok_and(|plan| plan.fit.fits)
    };
    let machines = machines::chosen(args.gpu.as_deref(), args.trainer, fits)?;
    let trainers: &[Trainer] = match args.trainer {
        Trainer::Tenggat => &[Trainer::Tenggat],
        Trainer::AiToolkit => &[Trainer::Tenggat, Trainer::AiToolkit],
    };
    let mut plans = Vec::new();
    for machine in &machines {
        for trainer in trainers {
            plans.push(Plan::new(&on(&planned, machine), machine, *trainer, &options)?);
        }
    }
    notes.extend(evidence(&machines));
    let comparisons = match args.trainer {
        Trainer::Tenggat => Vec::new(),
        Trainer::AiToolkit => compare_with_reports(),
    };
    if args.json {
        let all = json!({ "job": planned, "plans": plans, "reports": comparisons, "notes": notes });
        output::json(&all)?;
    } else {
        output::block(&heading(&job, &planned));
        say!("");
        show(&plans, &comparisons);
        if plans.len() > 1 {
            say!("");
        }
        notes.iter().for_each(|note| say!("note: {note}"));
    }
    Ok(())
}

/// What the command line says in place of the job file.
fn override_by(job: &mut Job, args: &JobArgs) {
    job.network.rank = args.rank.unwrap_or(job.network.rank);
    job.train.steps = args.steps.or(job.train.steps);
    job.limits.fill |= args.fill;
    job.limits.memory_bytes = args.memory_limit.or(job.limits.memory_bytes);
    if !args.resolution.is_empty() {
        job.datasets.iter_mut().for_each(|set| set.resolutions.clone_from(&args.resolution));
    }
}

/// The model of the job if it lies on this machine, else Qwen-Image and a note that says so.
pub fn facts(name_or_path: &str) -> anyhow::Result<(ModelFacts, Option<String>)> {
    let folder = match name_or_path {
        assets::MINI => assets::mini()?.join("model"),
        other => other.into(),
    };
    if folder.join("transformer/config.json").is_file() {
        let read = ModelFacts::read(&folder);
        return Ok((read.with_context(|| format!("the model in {}", folder.display()))?, None));
    }
    let note = (!name_or_path.starts_with("Qwen/Qwen-Image"))
        .then(|| format!("{name_or_path} is not on this machine; planned with the dimensions of Qwen-Image"));
    Ok((ModelFacts::qwen_image(), note))
}

/// Seconds for everything: the flag, else the job's budget, else what is left until its deadline.
fn budget_s(job: &Job, args: &JobArgs) -> anyhow::Result<Option<f64>> {
    let left = |deadline: Timestamp| {
        let left_s = deadline.duration_since(Timestamp::now()).as_secs_f64();
        anyhow::ensure!(left_s > 0.0, "the job's deadline {deadline} has passed; give a --budget");
        Ok(left_s)
    };
    match (args.budget.or(job.limits.budget_s), job.limits.deadline) {
        (None, Some(deadline)) => left(deadline).map(Some),
        (budget_s, _) => Ok(budget_s),
    }
}

/// The job as it runs on a machine: processors compute in 32 bits, and stream modulation where that saves memory.
pub fn on(job: &PlanJob, machine: &Machine) -> PlanJob {
    let mut job = job.clone();
    if machine.shares_host_memory {
        if job.precision == Precision::Bf16 {
            job.precision = Precision::F32;
        }
        let step = job.buckets.first().map(|bucket| job.step_config(bucket, machine.activation_bytes));
        job.modulation = step
            .map_or(Modulation::EveryStep, |step| step.advised_modulation(machine, job.memory_limit_bytes));
    }
    job
}

/// How far the machines' figures can be relied on.
fn evidence(machines: &[Machine]) -> Option<String> {
    let gpus = machines.iter().any(|machine| !machine.shares_host_memory);
    let guessed = machines.iter().any(|machine| machine.shares_host_memory && machine.assumed);
    match (gpus, guessed) {
        (true, _) => Some(
            "GPU figures follow from vendors' peaks and mostly assumed efficiencies; nothing was \
             measured on a card"
                .to_owned(),
        ),
        (_, true) => {
            Some("this processor's rates are assumed; measure them with `tenggat plan calibrate`".to_owned())
        }
        _ => None,
    }
}

/// One line on what is planned.
fn heading(job: &Job, planned: &PlanJob) -> String {
    let mut parts = vec![format!("rank {}", planned.rank)];
    let recovery = if planned.ara_rank.is_some() { " with recovery adapter" } else { "" };
    parts.push(format!("{}{recovery}", planned.precision));
    let batch = planned.batch * planned.accumulation;
    parts.push(format!("batch {batch}"));
    parts.push(format!("{} text tokens", planned.text_tokens));
    if let Some(steps) = planned.steps {
        parts.push(format!("{steps} steps asked for"));
    }
    format!("{}: {}", job.name, parts.join(", "))
}

fn show(plans: &[Plan], comparisons: &[Comparison]) {
    match plans {
        [only] => output::block(&only.to_string()),
        several => output::block(&PlanTable(several).to_string()),
    }
    if !comparisons.is_empty() {
        output::block(&format!("\n{}", ComparisonTable(comparisons)));
    }
}
