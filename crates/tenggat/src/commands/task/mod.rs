//! `tenggat task`: the timed contest's container, from its arguments to `last.safetensors`.

mod args;
mod driven;
mod own;
mod play;
mod preset;
mod rehearse;
mod setup;

pub use args::TaskArgs;
pub use play::task;
