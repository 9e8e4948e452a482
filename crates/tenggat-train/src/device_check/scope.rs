//! How much of the suite runs.

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything, blocks of real size and rates included.
    Full,
    /// Everything but rates, with small blocks: for devices whose kernels are emulated, and for tests.
    Small,
    /// What decides how a first run goes: ops in bf16, products, captured steps of small blocks.
    Short,
}

impl Scope {
    /// Whether blocks are small.
    pub(super) fn is_small(self) -> bool {
        self != Scope::Full
    }
}
