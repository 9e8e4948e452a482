//! The frozen matrices of a model, and where they come from.

use std::fmt::Debug;
use std::ops::Range;

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::copy;
use tenggat_tensor::weight::Weight;

use crate::Result;

/// A matrix of the model: rows of one or more tensors of the checkpoint, one part under the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Parts from top to bottom.
    pub parts: Vec<Part>,
    /// Input channels, the columns.
    pub input: usize,
}

/// Rows of a tensor `<module>.weight`, and of the bias `<module>.bias`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Dotted name of the module.
    pub module: String,
    /// Which of its rows.
    pub rows: Range<usize>,
    /// How many rows it has.
    pub of: usize,
}

impl Matrix {
    /// Whole modules of equal width, `output` channels together.
    pub fn stacked(modules: Vec<String>, input: usize, output: usize) -> Self {
        let of = output / modules.len().max(1);
        let parts = modules.into_iter().map(|module| Part { module, rows: 0..of, of }).collect();
        Matrix { parts, input }
    }

    /// One module with the two halves of its outputs exchanged.
    pub fn halves_swapped(module: &str, input: usize, output: usize) -> Self {
        let part = |rows| Part { module: module.into(), rows, of: output };
        Matrix { parts: vec![part(output / 2..output), part(0..output / 2)], input }
    }

    /// Output channels.
    pub fn output(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }

    /// A name that no other matrix of the model has.
    pub fn key(&self) -> &str {
        self.parts.first().map_or("", |part| &part.module)
    }

    /// Each part with the rows that it becomes.
    pub fn placed(&self) -> impl Iterator<Item = (&Part, Range<usize>)> {
        self.parts.iter().scan(0, |at, part| {
            let from = *at;
            *at += part.rows.len();
            Some((part, from..*at))
        })
    }
}

/// Where frozen weights come from: a checkpoint, or a random generator that stands in for one.
pub trait Source: Debug + Send + Sync {
    /// A matrix as it is stored while the model runs.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or a file cannot be read.
    fn matrix(&self, matrix: &Matrix) -> Result<Weight>;

    /// A vector in the computing type.
    ///
    /// # Errors
    /// As [`Source::matrix`].
    fn vector(&self, name: &str, len: usize) -> Result<Tensor>;

    /// The bias that belongs to a matrix, in the computing type.
    ///
    /// # Errors
    /// As [`Source::matrix`].
    fn bias(&self, matrix: &Matrix) -> Result<Tensor> {
        let whole = |part: &Part| self.vector(&format!("{}.bias", part.module), part.of);
        let parts = matrix.parts.iter().map(whole).collect::<Result<Vec<_>>>()?;
        let first =
            parts.first().ok_or_else(|| crate::Error::Unsupported("a matrix without parts".into()))?;
        let mut bias = first.empty_like(&[matrix.output()])?;
        for ((part, to), whole) in matrix.placed().zip(&parts) {
            let rows = whole.matrix(part.rows.start, 1, part.rows.len())?;
            copy::forward(rows, bias.matrix_mut(to.start, 1, to.len())?)?;
        }
        Ok(bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_one_under_the_other() {
        let names = ["q", "k", "v"].map(String::from);
        let qkv = Matrix::stacked(names.to_vec(), 4, 12);
        let places: Vec<_> = qkv.placed().map(|(part, to)| (part.module.as_str(), to)).collect();
        assert_eq!(places, [("q", 0..4), ("k", 4..8), ("v", 8..12)]);
        let swapped = Matrix::halves_swapped("norm", 4, 6);
        assert_eq!((swapped.output(), swapped.parts[0].rows.clone()), (6, 3..6));
    }
}
