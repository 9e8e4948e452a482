//! Element types of a loaded model.

use tenggat_tensor::{DType, Device};

/// Element types of a loaded model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Activations, biases and norms.
    pub compute: DType,
    /// Matrices that are not quantised.
    pub weights: DType,
}

impl Precision {
    /// What models on a device compute in. `bf16_weights`: matrices that are not quantised are kept in bf16,
    /// also on a CPU.
    pub fn on(device: &Device, bf16_weights: bool) -> Self {
        let compute = device.activations();
        Precision { compute, weights: if bf16_weights { DType::BF16 } else { compute } }
    }
}
