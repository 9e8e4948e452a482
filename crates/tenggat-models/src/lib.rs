#![doc = include_str!("../README.md")]

pub mod dropout;
mod error;
pub mod flux;
pub mod hub;
mod interrupt;
pub mod lora;
pub mod model_folder;
pub mod qwen_image;
mod tokenizer_files;
pub mod transformer;
pub mod vae;
pub mod weights;

pub use error::{Error, Result};
pub use interrupt::Interrupt;
