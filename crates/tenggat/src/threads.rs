//! The threads that compute.

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};

/// Stack of each: whole jobs run on one of them, with as much room as a program's first thread usually has.
const STACK_BYTES: usize = 8 << 20;

/// Starts so many threads; `None`: as many as RAYON_NUM_THREADS says, or as there are cores.
///
/// # Errors
/// They were started before.
pub fn start(threads: Option<usize>) -> Result<(), ThreadPoolBuildError> {
    let builder = ThreadPoolBuilder::new().stack_size(STACK_BYTES);
    threads.into_iter().fold(builder, ThreadPoolBuilder::num_threads).build_global()
}
