//! Modulation of the blocks: computed in every pass, or in advance for several noise levels.
//!
//! Base modulation is a function of the noise level alone, and its matrices are a third of the model.
//! Streamed matrices do not stay in memory: they are read once for the noise levels of the next steps
//! together, one matrix at a time, and the results stay as a small table. The trained adapter's part is added
//! to a row of the table as it would be to the matrix's product. Nothing trainable lies below, so there is no
//! input gradient.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tenggat_tensor::ops::{copy, linear};
use tenggat_tensor::{Tensor, ViewMut};

use super::linear::Linear;
use super::recovery::Branch;
use crate::Result;
use crate::weights::{Matrix, Source};

/// Whether the modulation matrices stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModulationStorage {
    /// They stay, and are multiplied in every pass.
    #[default]
    Resident,
    /// They are read when a noise level has no results yet: see `Transformer::prepare`.
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
    /// Columns of its results in the table.
    pub columns: Range<usize>,
    pub source: Arc<dyn Source>,
    pub matrix: Matrix,
    pub bias: Tensor,
    pub recovery: Option<Branch>,
}

impl Streamed {
    /// Writes the base modulation `y`, `[n, 6c]`, of `conditioning`, `[n, c]`.
    ///
    /// # Errors
    /// The matrix cannot be read, the shapes do not fit, or the device failed.
    fn results(&self, conditioning: &Tensor, mut y: ViewMut<'_>) -> Result<()> {
        let weight = self.source.matrix(&self.matrix)?.into_device(&conditioning.device())?;
        linear::forward(conditioning.view(), &weight, Some(&self.bias), y.reborrow())?;
        if let Some(branch) = &self.recovery {
            branch.forward(conditioning.view(), y)?;
        }
        Ok(())
    }
}

/// Base modulation of some noise levels.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// σ of each row, by its bits.
    levels: Vec<u64>,
    /// All matrices' results side by side, `[levels, sum of 6c]`; `None` while there are none.
    results: Option<Tensor>,
}

impl Table {
    /// The table of these levels; reads every matrix once. `conditioning`: `[levels, c]`.
    ///
    /// # Errors
    /// A matrix cannot be read, or the device failed or is out of memory.
    pub fn new<'a>(
        sigmas: &[f64],
        conditioning: &Tensor,
        streamed: impl Iterator<Item = &'a Streamed> + Clone,
    ) -> Result<Self> {
        let width = streamed.clone().map(|s| s.columns.end).max().unwrap_or(0);
        let mut results = conditioning.empty_like(&[sigmas.len(), width])?;
        for streamed in streamed {
            streamed.results(conditioning, results.view_mut().columns(streamed.columns.clone()))?;
        }
        Ok(Table { levels: sigmas.iter().map(|s| s.to_bits()).collect(), results: Some(results) })
    }

    fn row(&self, sigma: f64) -> Option<usize> {
        self.levels.iter().position(|&level| level == sigma.to_bits())
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

    /// Whether all these noise levels have results.
    pub fn has(&self, sigmas: &[f64]) -> bool {
        let table = self.get();
        sigmas.iter().all(|&sigma| table.row(sigma).is_some())
    }

    /// Base modulation of a batch with these noise levels, `[b, sum of 6c]`; `None` if any has no results.
    ///
    /// # Errors
    /// The device failed or is out of memory.
    pub fn rows(&self, sigmas: &[f64]) -> Result<Option<Tensor>> {
        let table = self.get();
        let rows: Option<Vec<usize>> = sigmas.iter().map(|&sigma| table.row(sigma)).collect();
        let (Some(rows), Some(all)) = (rows, &table.results) else { return Ok(None) };
        let mut batch = all.empty_like(&[rows.len(), all.shape()[1]])?;
        for (i, row) in rows.into_iter().enumerate() {
            copy::forward(all.view().row_range(row..row + 1), batch.view_mut().row_range(i..i + 1))?;
        }
        Ok(Some(batch))
    }

    pub fn replace(&self, table: Table) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }
}
