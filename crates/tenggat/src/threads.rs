//! The threads that compute.

use anyhow::ensure;
use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};

use crate::number::MOST_THREADS;

/// Stack of each: whole jobs run on one of them, with as much room as a program's first thread usually has.
const STACK_BYTES: usize = 8 << 20;

/// Starts this many threads; `None`: as many as RAYON_NUM_THREADS says, or as there are cores.
///
/// # Errors
/// They were started before.
pub fn start(threads: Option<usize>) -> Result<(), ThreadPoolBuildError> {
    let builder = ThreadPoolBuilder::new().stack_size(STACK_BYTES);
    threads.into_iter().fold(builder, ThreadPoolBuilder::num_threads).build_global()
}

/// Refuses what would start threads without end.
///
/// # Errors
/// `RAYON_NUM_THREADS` is too large.
pub fn check_environment() -> anyhow::Result<()> {
    const NAME: &str = "RAYON_NUM_THREADS";
    let asked = std::env::var(NAME).ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    ensure!(asked <= MOST_THREADS, "{NAME}={asked}: expected at most {MOST_THREADS}");
    Ok(())
}
