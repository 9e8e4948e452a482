//! Kernels of GELU.

use tenggat_gpu::{Kernel, Module};

pub(crate) const MODULE: Module =
    Module { name: "gelu", source: concat!(include_str!("../activation.cuh"), include_str!("op.cu")) };

pub(super) const FORWARD: Kernel = Kernel::new(&MODULE, "gelu_forward");
pub(super) const BACKWARD: Kernel = Kernel::new(&MODULE, "gelu_backward");
