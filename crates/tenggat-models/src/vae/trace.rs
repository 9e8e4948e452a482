//! Looking at activations on their way.

use tenggat_tensor::Tensor;

use crate::Result;

/// Called with the name and value of an activation.
type Observer<'a> = &'a mut dyn FnMut(&str, &Tensor);

/// Whoever wants to see intermediate activations, if anybody does.
pub struct Trace<'a>(pub Option<Observer<'a>>);

impl Trace<'_> {
    /// Shows an activation.
    pub fn see(&mut self, name: impl FnOnce() -> String, x: &Tensor) {
        if let Some(observer) = &mut self.0 {
            observer(&name(), x);
        }
    }

    /// Shows an activation that is computed for nothing else.
    pub fn compute(&mut self, name: &str, x: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        if let Some(observer) = &mut self.0 {
            observer(name, &x()?);
        }
        Ok(())
    }
}
