//! Whether an op overwrites its output or adds to it.

/// What happens to the values that the output already has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// They are overwritten, and never read.
    Replace,
    /// The result is added to them.
    Add,
}

impl Write {
    /// As the `beta` of a matrix product.
    pub fn beta(self) -> f64 {
        if self == Write::Replace { 0.0 } else { 1.0 }
    }
}
