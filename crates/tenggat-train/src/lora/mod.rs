//! The adapter that is trained: its first values, its average, and its file.

pub mod average;
pub mod file;
pub mod initial;
