//! What becomes of every key of ai-toolkit: supported, refused with a reason, or without effect; and what its
//! numbers may be. The tables are data, so that a test can try each of their rows.

mod alias;
mod datasets;
mod key;
mod model;
mod process;
mod range;
mod table;
mod train;

pub(super) use alias::meant;
pub(super) use key::{Key, Rule};
pub use range::Range;
pub(super) use table::{PATHS, find, number, sections};
