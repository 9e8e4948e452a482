//! FLUX.1, file by file.

mod devices;
mod lora_file;
mod sampling;
mod schedule;
mod steps;
mod text;
mod tokenizer;
mod transformer;
mod vae;

use std::path::PathBuf;

use crate::families;
use crate::fixture::Golden;

/// Folder of the set.
pub fn folder() -> PathBuf {
    families::folder("flux")
}

/// Reads a file of the set.
pub fn open(file: &str) -> Golden {
    Golden::at(folder().join(file))
}
