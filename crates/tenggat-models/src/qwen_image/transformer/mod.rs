//! `QwenImageTransformer2DModel`: forward, and backward to every LoRA matrix and to the latents.

mod block;
mod captured;
mod conditioned;
mod conditioning;
mod config;
mod linear;
mod load;
mod model;
mod modulation;
mod offloading;
mod precision;
mod recompute;
pub mod recovery;
mod rope;
mod sinusoid;
mod stream;

pub use captured::CapturedPasses;
pub use config::{Config, SINUSOID};
pub use load::LoadOptions;
pub use model::{Inputs, Tape, Transformer};
pub use modulation::ModulationStorage;
pub use precision::Precision;
pub use recompute::Recompute;
pub use rope::Positions;
