//! Plan before, budget during: everything in tenggat that reasons about time, and nothing that computes.
//!
//! The crate knows no tensors, files, devices or terminals, and it never looks at a clock by itself.
//!
//! - [`Clock`]: where the present comes from.
//! - [`Schedule`]: learning rates as functions of progress.
//! - [`Budget`]: the controller that ends a run before its deadline and not long before it.
//! - [`StepConfig`] and [`Rates`]: what a training step costs, operation by operation; [`Gpu`] and
//!   [`Calibration`]: how fast machines are; [`fit`](fit()): what to keep in their memory.
//! - [`ModelProfile`] and [`Program`]: other models and other programs that train them, as data.
//! - [`Plan`]: all of it put together for one job on one machine, as likely ranges; [`reports`]: what people
//!   report, which the ranges stand on; [`Choice`]: which machine to take.
//! - [`explain`](explain()) and [`recommend_steps`]: runs with a fixed number of steps.
//!
//! A training loop under a budget:
//!
//! ```
//! use tenggat_plan::{Budget, BudgetConfig, Clock, Decision, Phase, PhaseCosts, Position};
//! use tenggat_plan::{Schedule, SimulatedClock};
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
mod choice;
mod clock;
mod comparison;
mod cost;
mod evidence;
mod explain;
mod forecast;
mod gpu;
mod job;
mod model;
mod pace;
mod plan;
mod prices;
mod program;
mod quantity;
mod range;
mod reported_speeds;
mod schedule;

pub use budget::{
    BucketConfig, Budget, BudgetConfig, BudgetError, Decision, FinishReason, Forecast, Note, PartTime, Phase,
    PhaseCosts, PhaseRecord, RuledBy, SamplePlan, SampleVerdict, ValidationPlan,
};
pub use choice::{Candidate, Choice, ChoiceOptions, Rejected};
pub use clock::{Clock, SimulatedClock, WallClock};
pub use comparison::{ComparedSpeed, Group, LeftOut, ReportComparison};
pub use cost::{
    Calibration, Change, Fit, Machine, MemoryPart, MemoryPlan, ModelDims, Modulation, Nearest, Op, OpClass,
    Optimiser, Precision, Rate, Rates, StepConfig, StepShape, UnknownPrecision, Work, fit,
};
pub use evidence::{Basis, Evidence};
pub use explain::{Ending, Explanation, StepAdvice, explain, recommend_steps};
pub use forecast::{BucketTime, LargestBucket};
pub use gpu::{Efficiency, EfficiencySource, Family, GPUS, Gpu, GpuDescriptionError, UnknownGpu};
pub use job::{
    BucketShape, ControlImage, Elsewhere, PlanJob, SampleJob, SamplePicture, Storage, Surroundings,
    ValidationJob,
};
pub use model::{
    BlockGroup, MODELS, ModelProfile, SeenControls, Streams, Targets, UnknownModel, UnknownTargets,
};
pub use pace::{Pace, Slowdown};
pub use plan::{Course, FirstStart, Plan, PlanError, PlanOptions, PlanTable, Verdict, aligned, upload_s};
pub use prices::{Offer, PriceError};
pub use program::{
    Adapters, Compiles, Expansion, Program, ProgramProfile, ProgramStep, Sequence, Swap, UnknownProgram,
};
pub use quantity::{
    ParseBytesError, ParseQuantityError, Span, format_duration, parse_bytes, parse_duration_s,
};
pub use range::{Range, rough_duration, two_digits};
pub use reported_speeds::{
    Agreement, MemoryAgreement, MemoryOutcome, Report, ReportError, Row, Trust, reports,
};
pub use schedule::{Position, Schedule, Shape, UnknownSchedule, Warmup};
