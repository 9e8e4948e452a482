//! LoRA files that other programs write: whether one is whole, how far it was trained, and its publication.

mod check;
mod keys;
mod publish;

pub use check::{Checked, NotWhole, check, peek};
pub use keys::{ModelKeys, Unfit};
pub use publish::publish;
pub(crate) use publish::sweep;

/// Name of the file that always holds the newest whole LoRA.
pub const LAST: &str = "last.safetensors";
