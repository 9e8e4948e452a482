//! `AutoencoderKL`, the autoencoder of latent diffusion (arXiv:2112.10752), as FLUX.1 has it: no convolution
//! stands between encoder, latents and decoder.
//!
//! Source: diffusers 0.42 `autoencoder_kl.py` and `vae.py`.

mod config;
mod decoder;
mod encoder;
mod layers;

pub(super) use config::{ARCHITECTURE, Config};
pub(super) use decoder::Decoder;
pub(super) use encoder::Encoder;
