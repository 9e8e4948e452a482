//! Kernels of SiLU.

use crate::cuda::{Kernel, Module};

pub(crate) const MODULE: Module = Module {
    name: "silu",
    source: concat!(include_str!("../../cuda/kernels/activation.cuh"), include_str!("op.cu")),
};

pub(super) const FORWARD: Kernel = Kernel::new(&MODULE, "silu_forward");
pub(super) const BACKWARD: Kernel = Kernel::new(&MODULE, "silu_backward");
