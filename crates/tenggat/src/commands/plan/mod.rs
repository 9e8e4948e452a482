//! `tenggat plan`: what a job will take, before anything is rented or loaded.

mod args;
mod calibrate;
mod choose;
mod explain;
pub mod facts;
pub mod job;
mod learn;
mod machines;
mod measured;
mod observed;
mod outline;
mod reports;
mod shape;

pub use args::PlanArgs;

use args::What;

/// Plans a job, calibrates, chooses, learns, looks back or recommends.
pub fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    match &args.what {
        Some(What::Calibrate(args)) => calibrate::calibrate(args.time),
        Some(What::Choose(args)) => choose::choose(args),
        Some(What::Learn(args)) => learn::learn(args),
        Some(What::Reports(args)) => reports::reports(args),
        Some(What::Explain(args)) => explain::explain(args),
        Some(What::Steps(args)) => explain::steps(args),
        None => {
            if args.job.calibrate {
                calibrate::calibrate(calibrate::USUAL_S)?;
                if args.job.job.is_none() && args.job.shape.model.is_none() {
                    return Ok(());
                }
            }
            job::plan(&args.job)
        }
    }
}
