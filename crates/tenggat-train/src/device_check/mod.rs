//! Whether a GPU computes what it should, on the machine that it is in: what `tenggat doctor --gpu` runs.

mod memory;
mod ops;
mod place;
mod products;
mod rates;
mod report;
mod scope;
mod step;
mod suite;

pub use rates::MeasuredRates;
pub use report::{Check, Outcome, Report};
pub use scope::Scope;
pub use suite::run;
