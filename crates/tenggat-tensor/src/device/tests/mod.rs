//! What devices promise, tried with ops.

mod graphs;
mod kernels;
mod prefetch;
mod products;
#[cfg(target_os = "linux")]
mod stand_in;
mod streams;
