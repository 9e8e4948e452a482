//! What a job will cost: as planning sees it, and as this machine measures it.

pub mod bench;
pub mod calibrate;
pub mod job;
