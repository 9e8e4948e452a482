//! The diffusion transformer: forward, and backward to every LoRA matrix and to the latents.
//!
//! `QwenImageTransformer2DModel` and `FluxTransformer2DModel` are chains of the same blocks under other
//! names; see [`layer::Family`].

mod block;
mod captured;
mod conditioned;
mod conditioning;
mod config;
mod double;
mod embedder;
mod geometry;
pub mod layer;
mod linear;
mod load;
mod model;
mod modulation;
mod offloading;
mod pass;
mod precision;
mod recompute;
pub mod recovery;
mod rope;
mod single;
mod sinusoid;
mod stream;

pub use captured::CapturedPasses;
pub use config::{Config, SINUSOID};
pub use load::LoadOptions;
pub use model::{Global, Inputs, Tape, Transformer};
pub use modulation::ModulationStorage;
pub use precision::Precision;
pub use recompute::Recompute;
pub use rope::Positions;
