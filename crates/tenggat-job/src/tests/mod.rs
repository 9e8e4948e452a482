//! Whole files in, jobs, warnings and errors out.

mod frame;
mod keys;
mod whole;
