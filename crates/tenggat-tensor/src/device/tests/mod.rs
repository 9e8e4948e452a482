//! What devices promise, tried with ops.

mod graphs;
mod kernels;
mod prefetch;
#[cfg(target_os = "linux")]
mod stand_in;
mod streams;
