//! `tenggat plan JOB`: steps, phases, memory and price of a job.

use jiff::Timestamp;
use serde_json::json;
use tenggat_plan::{
    Basis, Evidence, Machine, Modulation, Plan, PlanJob, PlanOptions, PlanTable, Precision, Program,
};

use super::args::JobArgs;
use super::shape::{Shaped, shaped};
use super::{machines, measured};
use crate::output::{self, say};

/// Version of the JSON that `plan` prints; docs/plan-json.md describes it.
pub const SCHEMA: &str = "tenggat-plan/2";

/// Plans the job and prints the plans.
pub fn plan(args: &JobArgs) -> anyhow::Result<()> {
    let mut shaped = shaped(args.job.as_deref(), &args.shape)?;
    shaped.job.fill |= args.fill;
    shaped.job.memory_limit_bytes = args.memory_limit.or(shaped.job.memory_limit_bytes);
    let options = PlanOptions {
        budget_s: budget_s(&shaped, args)?,
        price_per_hour: args.price_per_hour,
        measured: measured::known(),
        ..PlanOptions::default()
    };
    let planned =
        |machine: &Machine, program| Plan::new(&on(&shaped.job, machine), machine, program, &options);
    let fits = |machine: &Machine| planned(machine, Program::Tenggat).is_ok_and(|plan| plan.fit.fits);
    let machines = machines::chosen(args.gpu.as_deref(), args.trainer, fits)?;
    let mut plans = Vec::new();
    for machine in &machines {
        // Beside another program, where tenggat trains the model too.
        if args.trainer != Program::Tenggat {
            plans.extend(planned(machine, Program::Tenggat).ok());
        }
        plans.push(planned(machine, args.trainer)?);
    }
    let notes: Vec<String> = shaped.notes.iter().cloned().chain(evidence(&machines, &plans, args)).collect();
    if args.json {
        return output::json(&json!({ "schema": SCHEMA, "job": shaped.job, "plans": plans, "notes": notes }));
    }
    output::block(&heading(&shaped));
    say!("");
    match &plans[..] {
        [only] => output::block(&only.to_string()),
        several => {
            output::block(&PlanTable(several).to_string());
            say!("");
        }
    }
    notes.iter().for_each(|note| say!("note: {note}"));
    Ok(())
}

/// Seconds for everything: the flag, else the job's budget, else what is left until its deadline.
fn budget_s(shaped: &Shaped, args: &JobArgs) -> anyhow::Result<Option<f64>> {
    let left = |deadline: Timestamp| {
        let left_s = deadline.duration_since(Timestamp::now()).as_secs_f64();
        anyhow::ensure!(left_s > 0.0, "the job's deadline {deadline} has passed; give a --budget");
        Ok(left_s)
    };
    let limits = shaped.own.as_ref().map(|own| &own.limits);
    let budget_s = args.budget.or(limits.and_then(|limits| limits.budget_s));
    match (budget_s, limits.and_then(|limits| limits.deadline)) {
        (None, Some(deadline)) => left(deadline).map(Some),
        (budget_s, _) => Ok(budget_s),
    }
}

/// The job as it runs on a machine: processors compute in 32 bits, and stream modulation where that saves
/// memory.
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

/// How far the figures can be relied on, and what else there is to know.
fn evidence(machines: &[Machine], plans: &[Plan], args: &JobArgs) -> Vec<String> {
    let mut notes = Vec::new();
    let own_on_gpu =
        plans.iter().any(|plan| plan.evidence.basis == Basis::NoReport && plan.program == Program::Tenggat);
    let gpus = machines.iter().any(|machine| !machine.shares_host_memory);
    let guessed = machines.iter().any(|machine| machine.shares_host_memory && machine.assumed);
    if plans.len() > 1 || plans.iter().any(|plan| plan.total_s.is_some()) {
        notes.push("times are likely ranges: 9 in 10 such jobs should fall inside".to_owned());
    }
    if gpus && own_on_gpu {
        notes.push(
            "no card has run tenggat yet: its GPU figures follow from vendors' peaks and assumed \
             efficiencies; `tenggat plan learn` keeps what you measure"
                .to_owned(),
        );
    }
    if guessed {
        notes.push(
            "this processor's rates are assumed; measure them with `tenggat plan calibrate`".to_owned(),
        );
    }
    if args.gpu.is_none() && !gpus {
        notes.push(
            "planned for this machine's processor, which is calibrated; `--gpu all` shows GPUs".to_owned(),
        );
    }
    if args.trainer != Program::Tenggat {
        let of_it = plans.iter().find(|plan| plan.program == args.trainer);
        notes.extend(of_it.map(|plan| reported(args.trainer, &plan.evidence)));
        notes.extend(private_report(plans));
    }
    notes
}

/// How far forecasts of the program agree with public reports.
fn reported(program: Program, evidence: &Evidence) -> String {
    match (evidence.basis, evidence.median, evidence.typical_error) {
        (Basis::Reports, Some(median), Some(error)) => format!(
            "{} public report{} of {program}: the median forecast is {median:.2} times the report, the \
             typical error ×{error:.2}; `tenggat plan reports` shows each",
            evidence.reports,
            if evidence.reports == 1 { "" } else { "s" }
        ),
        _ => format!("{program}: {evidence}"),
    }
}

/// What the authors of this program were told privately of this job on two cards: nothing that anybody could
/// look up.
const PRIVATE: [(&str, &str); 2] = [("H100 SXM", "4 to 5 s"), ("A100 80GB", "5 to 6 s")];

/// The private figures, if a plan is of the job that they are about: Qwen-Image, rank 128, 3 bits with a
/// recovery adapter.
fn private_report(plans: &[Plan]) -> Option<String> {
    let about = |plan: &&Plan| {
        let config = &plan.fit.config;
        matches!(plan.program, Program::AiToolkit | Program::AiToolkit2025)
            && plan.model == "qwen-image"
            && (config.rank, config.precision, config.ara_rank.is_some()) == (128, Precision::Uint(3), true)
            && PRIVATE.iter().any(|(card, _)| *card == plan.machine)
    };
    plans.iter().any(|plan| about(&plan)).then(|| {
        let figures: Vec<String> = PRIVATE.iter().map(|(card, s)| format!("{card} {s}")).collect();
        format!(
            "an unpublished note gives such a job {} a step with ai-toolkit, 512 to 1024 px mixed; no public \
             report confirms it",
            figures.join(", ")
        )
    })
}

/// One line on what is planned.
fn heading(shaped: &Shaped) -> String {
    let job = &shaped.job;
    let recovery = if job.ara_rank.is_some() { " with recovery adapter" } else { "" };
    let mut parts = Vec::new();
    if !job.model.is_trained_here() && shaped.name != job.model.name {
        parts.push(job.model.name.clone().into_owned());
    }
    parts.push(format!("rank {}", job.rank));
    parts.push(format!("{}{recovery}", job.precision));
    parts.push(format!("batch {}", job.batch.saturating_mul(job.accumulation)));
    if let Some(bucket) = job.buckets.first() {
        let px = bucket.width_px as f64 * bucket.height_px as f64;
        let text = job.model.text_tokens(job.text_tokens, job.controls.len() as u64, px);
        parts.push(format!("{text} text tokens"));
    }
    if let Some(steps) = job.steps {
        parts.push(format!("{steps} steps"));
    }
    format!("{}: {}", shaped.name, parts.join(", "))
}
