//! What devices promise, tried with ops.

mod arguments;
mod graphs;
mod kernels;
mod long;
mod prefetch;
mod products;
#[cfg(target_os = "linux")]
mod stand_in;
mod streams;
