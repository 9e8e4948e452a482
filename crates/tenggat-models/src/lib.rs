//! Qwen-Image, read from a diffusers folder as it is published: transformer forward and backward, VAE, text
//! encoder, tokenizer, scheduler and the text-to-image pipeline.

pub mod dropout;
mod error;
pub mod hub;
mod interrupt;
pub mod lora;
pub mod model_folder;
pub mod qwen_image;
pub mod weights;

pub use error::{Error, Result};
pub use interrupt::Interrupt;
