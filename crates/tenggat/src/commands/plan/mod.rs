//! `tenggat plan`: what a job will take, before anything is rented or loaded.

mod args;
mod calibrate;
mod explain;
pub mod job;
mod machines;
mod observed;

pub use args::PlanArgs;

use args::What;

/// Plans a job, calibrates, looks back or recommends.
pub fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    match &args.what {
        Some(What::Calibrate(args)) => calibrate::calibrate(args.time),
        Some(What::Explain(args)) => explain::explain(args),
        Some(What::Steps(args)) => explain::steps(args),
        None => {
            if args.job.calibrate {
                calibrate::calibrate(calibrate::USUAL_S)?;
            }
            match &args.job.job {
                Some(path) => job::plan(path, &args.job),
                None => Ok(()),
            }
        }
    }
}
