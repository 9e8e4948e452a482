//! Where an op is tried, and how two places are compared.

use tenggat_models::Result;
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};

/// A device and an element type. Numbers are the same in all places, and exact in bf16.
pub(super) struct Place<'a> {
    pub device: &'a Device,
    pub dtype: DType,
}

impl Place<'_> {
    /// Standard normal numbers.
    pub fn numbers(&self, shape: &[usize], seed: u64) -> Result<Tensor> {
        self.numbers_of(self.dtype, shape, seed)
    }

    /// The same in the type of sums and statistics.
    pub fn wide(&self, shape: &[usize], seed: u64) -> Result<Tensor> {
        self.numbers_of(self.dtype.wide(), shape, seed)
    }

    fn numbers_of(&self, dtype: DType, shape: &[usize], seed: u64) -> Result<Tensor> {
        let mut values = vec![0.0f32; shape.iter().product()];
        Philox::new(seed).normal(0, &mut values);
        let exact: Vec<f64> =
            values.iter().map(|x| f64::from(f32::from_bits(x.to_bits() & 0xffff_0000))).collect();
        Ok(Tensor::from_f64(self.device, dtype, &exact, shape)?)
    }

    /// A tensor to be written.
    pub fn empty(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::empty(self.device, self.dtype, shape)?)
    }

    /// A tensor of sums or statistics to be written.
    pub fn empty_wide(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::empty(self.device, self.dtype.wide(), shape)?)
    }
}

/// Largest error of an element against its value plus the tensor's mean magnitude. What is not a number is
/// infinitely off.
pub(super) fn largest_error(got: &Tensor, expected: &Tensor) -> Result<f64> {
    let (got, expected) = (got.to_f64()?, expected.to_f64()?);
    let mean = expected.iter().map(|x| x.abs()).sum::<f64>() / expected.len().max(1) as f64;
    let error = |(got, expected): (&f64, &f64)| (got - expected).abs() / (expected.abs() + mean + 1e-30);
    Ok(got
        .iter()
        .zip(&expected)
        .map(error)
        .fold(0.0, |largest: f64, x| if x.is_nan() { f64::INFINITY } else { largest.max(x) }))
}
