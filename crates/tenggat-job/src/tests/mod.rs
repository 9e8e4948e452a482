//! Whole files in, jobs, warnings and errors out.

mod frame;
mod keys;
mod mutant;
mod mutations;
mod numbers;
mod refusals;
mod secrets;
mod whole;
