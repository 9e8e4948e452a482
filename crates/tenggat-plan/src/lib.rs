//! Plan before, budget during: everything in tenggat that reasons about time, and nothing that computes.
//!
//! The crate knows no tensors, files, devices or terminals, and it never looks at a clock by itself.
//!
//! - [`Clock`]: where the present comes from.
//! - [`Schedule`]: learning rates as functions of progress.
//! - [`Budget`]: the controller that ends a run before its deadline and not long before it.
//! - [`StepConfig`] and [`Rates`]: what a training step costs, operation by operation; [`Gpu`] and [`Calibration`]: how
//!   fast machines are; [`fit`](fit()): what to keep in their memory.
//! - [`Plan`]: all of it put together for one job on one machine; [`Trainer`] and [`compare_with_reports`]: the same
//!   job elsewhere.
//! - [`explain`](explain()) and [`recommend_steps`]: runs with a fixed number of steps.
//!
//! A training loop under a budget:
//!
//! ```
//! use tenggat_plan::{Budget, BudgetConfig, Clock, Decision, Phase, PhaseCosts, Position, Schedule, SimulatedClock};
//!
//! let clock = SimulatedClock::default();
//! let mut budget = Budget::new(BudgetConfig {
//!     deadline_s: Some(120.0),
//!     phases: PhaseCosts::default().with(Phase::FinalSave, 0.2).with(Phase::ScoreAfter, 5.0),
//!     ..BudgetConfig::default()
//! })?;
//! let schedule: Schedule = "cosine".parse()?;
//! let mut last_factor = 1.0;
//! loop {
//!     let bucket = 0; // of the batch that comes next
//!     let began_s = clock.now_s();
//!     match budget.decide(began_s, bucket) {
//!         Decision::Step { progress, .. } => {
//!             let step = budget.steps_done();
//!             last_factor = schedule.factor(Position { step, progress });
//!             clock.advance(0.5); // train one step at `peak rate × last_factor`
//!             budget.observe_step(clock.now_s(), bucket, clock.now_s() - began_s);
//!         }
//!         Decision::SaveLast => {
//!             clock.advance(0.2); // write last.safetensors
//!             budget.observe_save(clock.now_s(), clock.now_s() - began_s);
//!         }
//!         Decision::Finish(_) => break,
//!     }
//! }
//! for (phase, seconds) in [(Phase::FinalSave, 0.2), (Phase::ScoreAfter, 5.0)] {
//!     if budget.allows(phase, clock.now_s()) {
//!         budget.phase_started(phase, clock.now_s());
//!         clock.advance(seconds);
//!         budget.phase_finished(phase, clock.now_s());
//!     }
//! }
//! assert!((114.0..=119.5).contains(&clock.now_s()));
//! assert_eq!(last_factor, 0.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod budget;
mod clock;
mod cost;
mod explain;
mod gpu;
mod plan;
mod quantity;
mod reports;
mod schedule;
mod trainer;

pub use budget::{
    BucketConfig, Budget, BudgetConfig, BudgetError, Decision, FinishReason, Forecast, Note, PartTime, Phase,
    PhaseCosts, PhaseRecord, RuledBy, SamplePlan, SampleVerdict, ValidationPlan,
};
pub use clock::{Clock, SimulatedClock, WallClock};
pub use cost::{
    Calibration, Change, Fit, Machine, MemoryPart, MemoryPlan, ModelDims, Modulation, Nearest, Op, OpClass,
    Optimiser, Precision, Rate, Rates, StepConfig, StepShape, UnknownPrecision, Work, fit,
};
pub use explain::{Ending, Explanation, StepAdvice, explain, recommend_steps};
pub use gpu::{Efficiency, Evidence, Family, GPUS, Gpu, UnknownGpu};
pub use plan::{
    BucketShape, BucketTime, Plan, PlanError, PlanJob, PlanOptions, PlanTable, SampleJob, Storage,
    Surroundings, ValidationJob, upload_s,
};
pub use quantity::{
    ParseBytesError, ParseQuantityError, Span, format_duration, parse_bytes, parse_duration_s,
};
pub use reports::{Comparison, ComparisonTable, compare_with_reports};
pub use schedule::{Position, Schedule, Shape, UnknownSchedule, Warmup};
pub use trainer::{Trainer, UnknownTrainer};
