#![doc = include_str!("../README.md")]

mod archives;
mod caches;
mod checkpoints;
mod hub;
mod jobs;
mod loras;
mod model;
pub mod mutate;
mod pictures;
mod scratch;
mod tensors;

/// One place where bytes come in.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of the target, of its corpus, and of its binary in `fuzz/`.
    pub name: &'static str,
    /// Reads bytes.
    pub run: fn(&[u8]),
    /// Whole inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident: $file:ident),* $(,)?) => {
        /// All targets, the likeliest to fail first.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $file::$name::run,
            seeds: $file::$name::seeds,
        }),*];
    };
}

targets! {
    picture: pictures,
    job: jobs,
    archive: archives,
    lora: loras,
    state: checkpoints,
    weights: tensors,
    quantised: tensors,
    tokenizer: model,
    configs: model,
    metrics: caches,
    latent_cache: caches,
    text_cache: caches,
    hub_headers: hub,
}

/// Runs the target of this name.
///
/// # Panics
/// There is none.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("no target is called {name}")).run)(bytes);
}
