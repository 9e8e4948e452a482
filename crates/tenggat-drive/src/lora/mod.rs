//! LoRA files that other programs write: whether one is whole, how far it was trained, and its publication.

mod check;
mod keys;
mod publish;

pub use check::{Checked, NotWhole, check, peek};
pub use keys::{ModelKeys, Unfit};
pub(crate) use publish::sweep;
pub use publish::{publish, publish_fitting};

/// Name of the file that always holds the newest whole LoRA.
pub const LAST: &str = "last.safetensors";
