//! How good a LoRA is: errors on images that are not trained on.

pub(crate) mod before_and_after;
pub(crate) mod images;
pub mod score;
pub(crate) mod validation;
