//! `AutoencoderKLQwenImage`, the autoencoder of Wan (arXiv:2503.20314), for one frame.
//!
//! Wan's is a video model with causal convolutions over time. For a single frame it is a plain image
//! autoencoder, and only that is built: see `layers`. Source: diffusers 0.42 `autoencoder_kl_qwenimage.py`.

mod config;
mod decoder;
mod encoder;
mod layers;
mod mid_block;

pub(super) use config::ARCHITECTURE;
pub use config::VaeConfig;
pub(super) use decoder::Decoder;
pub(super) use encoder::Encoder;
