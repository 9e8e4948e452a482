//! Kernels of SiLU.

use tenggat_gpu::{Kernel, Module};

pub(crate) const MODULE: Module =
    Module { name: "silu", source: concat!(include_str!("../activation.cuh"), include_str!("op.cu")) };

pub(super) const FORWARD: Kernel = Kernel::new(&MODULE, "silu_forward");
pub(super) const BACKWARD: Kernel = Kernel::new(&MODULE, "silu_backward");
