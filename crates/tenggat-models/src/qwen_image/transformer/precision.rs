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
    /// What models on a device compute in. `narrow`: matrices that are not quantised are kept in bf16, also
    /// on a CPU.
    pub fn on(device: &Device, narrow: bool) -> Self {
        let compute = device.activations();
        Precision { compute, weights: if narrow { DType::BF16 } else { compute } }
    }
}
