//! What a training step costs in time and memory, from the architecture up.

mod calibration;
mod dims;
mod fit;
mod memory;
mod precision;
mod rates;
mod step;
mod work;

pub use calibration::Calibration;
pub(crate) use dims::SINUSOID;
pub use dims::{ModelDims, StepShape};
pub(crate) use fit::harm;
pub use fit::{Change, Fit, Nearest, fit};
pub(crate) use memory::{CONTEXT_BYTES, GEMM_WORKSPACE_BYTES};
pub use memory::{MemoryPart, MemoryPlan};
pub use precision::{Precision, UnknownPrecision};
pub use rates::{Machine, Rate, Rates};
pub use step::{Modulation, Optimiser, StepConfig};
pub use work::{Op, OpClass, Work};
