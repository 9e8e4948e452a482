//! Numbers of the reference implementation, file by file.
//!
//! The folder is `tests/fixtures` of the repository, or the one that `TENGGAT_GOLDEN` names; for families
//! other than Qwen-Image, the archives in `tests/fixtures/families`, or the folder that
//! `TENGGAT_GOLDEN_FAMILIES` names. Dimensions are read from the files, so that any set made by the same
//! generator runs unchanged.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "tests say what they found")]

mod families;
mod fixture;
mod flux;
mod lora_file;
mod quant;
mod sampling;
mod schedule;
mod steps;
mod text;
mod tokenizer;
mod transformer;
mod vae;
