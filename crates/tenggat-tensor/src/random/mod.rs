//! Random numbers: [`Philox`] for everything that tenggat draws itself, [`Mt19937`] to repeat what PyTorch
//! draws on the CPU from the same seed.

mod mt19937;
mod philox;

pub use mt19937::Mt19937;
pub use philox::Philox;
