//! Modulation of the blocks, in the step or outside of it.
//!
//! Base modulation is a function of the noise level alone, and its matrices are a third of the model. Streamed, they
//! are not kept: for the noise levels of the next steps together they are read once, matrix by matrix, and the
//! results stay as a small table. The trained adapter's part is added to a table's row as it would be to the
//! matrix's product. Nothing trainable lies below, so there is no input gradient.

use std::sync::{Arc, Mutex, PoisonError};

use tenggat_tensor::{Tensor, ops::copy};

use super::linear::Linear;
use crate::Result;
use crate::recovery::Branch;
use crate::weights::{Matrix, Source};

/// Whether the modulation matrices stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModulationStorage {
    /// They stay, and are multiplied in every pass.
    #[default]
    Resident,
    /// They are read when noise levels come that have no results yet: see `Transformer::prepare`.
    Streamed,
}

/// The modulation of one stream of a block.
#[derive(Debug)]
pub(super) enum Modulation {
    Resident(Linear),
    Streamed(Streamed),
}

/// A matrix that is read when it is needed.
#[derive(Debug)]
pub(super) struct Streamed {
    pub slot: usize,
    pub source: Arc<dyn Source>,
    pub matrix: Matrix,
    pub bias: Tensor,
    pub recovery: Option<Branch>,
}

impl Streamed {
    /// Base modulation of conditioning `[n, c]`, `[n, 6c]`.
    fn results(&self, conditioning: &Tensor) -> Result<Tensor> {
        let weight = self.source.matrix(&self.matrix)?.into_device(&conditioning.device())?;
        let mut y = conditioning.empty_like(&[conditioning.shape()[0], self.matrix.output()])?;
        tenggat_tensor::ops::linear::forward(conditioning.view(), &weight, Some(&self.bias), y.view_mut())?;
        if let Some(branch) = &self.recovery {
            branch.forward(conditioning.view(), y.view_mut())?;
        }
        Ok(y)
    }
}

/// Base modulation of some noise levels: per slot `[levels, 6c]`.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// σ of each row, by its bits.
    levels: Vec<u64>,
    slots: Vec<Tensor>,
}

/// Rows of a table for the samples of a batch.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    table: Arc<Table>,
    rows: Vec<usize>,
}

impl Rows {
    /// Base modulation of the batch, `[b, 6c]`.
    pub fn gather(&self, slot: usize) -> Result<Tensor> {
        let all = &self.table.slots[slot];
        let mut y = all.empty_like(&[self.rows.len(), all.shape()[1]])?;
        for (i, &row) in self.rows.iter().enumerate() {
            copy::forward(all.view().row_range(row..row + 1), y.view_mut().row_range(i..i + 1))?;
        }
        Ok(y)
    }
}

impl Table {
    /// Reads every matrix once. `conditioning`: `[levels, c]`; `streamed` in the order of slots.
    pub fn new<'a>(
        sigmas: &[f64],
        conditioning: &Tensor,
        streamed: impl Iterator<Item = &'a Streamed>,
    ) -> Result<Self> {
        let levels = sigmas.iter().map(|s| s.to_bits()).collect();
        Ok(Table { levels, slots: streamed.map(|s| s.results(conditioning)).collect::<Result<_>>()? })
    }

    fn rows(self: &Arc<Self>, sigmas: &[f64]) -> Option<Rows> {
        let row = |sigma: &f64| self.levels.iter().position(|&level| level == sigma.to_bits());
        let rows = sigmas.iter().map(row).collect::<Option<_>>()?;
        Some(Rows { table: Arc::clone(self), rows })
    }
}

/// The table in use.
#[derive(Debug, Default)]
pub(super) struct Current(Mutex<Arc<Table>>);

impl Current {
    fn get(&self) -> Arc<Table> {
        // A table is replaced whole, so a panic elsewhere leaves a good one.
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rows of these noise levels, if all have results.
    pub fn rows(&self, sigmas: &[f64]) -> Option<Rows> {
        self.get().rows(sigmas)
    }

    pub fn replace(&self, table: Table) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }
}
