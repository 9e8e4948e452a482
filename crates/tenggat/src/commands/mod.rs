//! One file per command.

mod bench;
mod best;
mod check;
mod demo;
mod doctor;
mod drive;
mod extend;
mod gpu_check;
mod init;
mod model;
mod plan;
mod quantise;
mod sample;
mod score;
mod scorer;
mod serve;
mod status;
mod task;
mod train;
mod watch;

pub use bench::{BenchArgs, bench};
pub use check::{CheckArgs, check};
pub use demo::demo;
pub use doctor::{DoctorArgs, doctor};
pub use drive::{DriveArgs, drive};
pub use extend::{ExtendArgs, extend};
pub use init::{InitArgs, init};
pub use plan::{PlanArgs, plan};
pub use quantise::{QuantiseArgs, quantise};
pub use sample::sample;
pub use score::{ScoreArgs, score};
pub use serve::{ServeArgs, serve};
pub use status::{StatusArgs, status};
pub use task::{TaskArgs, task};
pub use train::train;
pub use watch::{WatchArgs, watch};
