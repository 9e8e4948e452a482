//! The parts of FLUX.1, each as in its diffusers or transformers class.

pub mod clip;
pub mod t5;
