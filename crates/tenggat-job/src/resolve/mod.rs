//! From the raw structs to the job: defaults, names, limits. Defaults: ai-toolkit
//! `toolkit/config_modules.py`.

mod datasets;
mod job;
mod model;
mod network;
mod optimiser;
mod resolver;
mod sample;
mod save;
mod train;

pub(super) use resolver::Resolver;
