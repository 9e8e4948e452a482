//! NVIDIA's libraries.

#![cfg_attr(not(test), expect(dead_code, reason = "the device that calls them is not there yet"))]

pub(crate) mod dnn;
pub(crate) mod library;
