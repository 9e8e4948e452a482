//! Frozen weights: how they are stored, moved to a device, prefetched and multiplied. The op on them is
//! [`linear`](crate::ops::linear).

mod frozen;
mod packed;
pub(crate) mod quantised;

pub use frozen::Weight;
pub use packed::{Adapter, AdapterGradients, Packed, Trained, packs};
pub use quantised::{
    Bytes, Format, Fp8, NextUse, Owner, Parts, Quantised, Resident, part_bytes, quantise_rows,
};
