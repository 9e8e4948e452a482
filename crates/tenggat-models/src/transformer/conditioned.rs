//! The part of a batch that depends on its noise levels and lengths alone.

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::{attention, copy};

use crate::Result;

/// The part of a batch that depends on its noise levels and lengths alone.
#[derive(Debug)]
pub(super) struct Conditioned {
    /// SiLU of the timestep embedding, `[b, c]`.
    pub silu: Tensor,
    /// Base modulation of all blocks side by side, `[b, sum of 6c]`, where it is streamed.
    pub modulation: Option<Tensor>,
    /// Valid keys of the attention where a captured graph reads them, see [`attention::device_lens`].
    pub key_lens: Option<Tensor>,
}

impl Conditioned {
    /// Copies the values of another batch with as many samples; `key_lens`: its valid keys per sample.
    ///
    /// # Errors
    /// The batches differ in shape, or the device failed.
    pub fn copy_from(&mut self, other: &Conditioned, key_lens: &[usize]) -> Result<()> {
        copy::forward(other.silu.view(), self.silu.view_mut())?;
        if let (Some(to), Some(from)) = (&mut self.modulation, &other.modulation) {
            copy::forward(from.view(), to.view_mut())?;
        }
        if let Some(to) = &mut self.key_lens {
            attention::device_lens(key_lens, to)?;
        }
        Ok(())
    }
}
