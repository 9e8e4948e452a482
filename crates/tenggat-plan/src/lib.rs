#![doc = include_str!("../README.md")]

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
