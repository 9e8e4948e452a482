//! Dropout inside an adapter while it trains: single activations, whole ranks of a sample, whole modules.
//!
//! What is dropped is a function of the seed, the pass, the module and the element, so that a block that
//! computes its activations again, and the backward pass, meet the same zeros.

use tenggat_tensor::ops::copy;
use tenggat_tensor::random::Philox;
use tenggat_tensor::{Result, Tensor, ViewMut};

/// Chances and the random numbers of one forward and backward pass.
///
/// Source: ai-toolkit `toolkit/network_mixins.py`, `_call_forward`. What is kept grows by 1/(1 − rate) for
/// single activations and for ranks; modules are left out without that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Chance of each element of `A·x`.
    pub elements: f64,
    /// Chance of each rank, per sample.
    pub ranks: f64,
    /// Chance of each module.
    pub modules: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the pass.
    pub pass: u64,
    /// Samples in the batch.
    pub samples: usize,
}

/// Keeps these numbers apart from those drawn elsewhere.
const SEED: u64 = 0x6472_6f70_6f75_7421;

impl Dropout {
    /// Multiplies `A·x` (`[m, rank · members]`) of a fused layer, or its gradient, by its mask.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub(crate) fn apply(&self, layer: usize, rank: usize, mut ax: ViewMut<'_>) -> Result<()> {
        let [rows, columns] = ax.shape();
        let members = columns / rank.max(1);
        let mut mask = vec![0.0f64; rows * columns];
        for member in 0..members {
            let random = Philox::new(self.seed ^ SEED ^ (layer as u64) << 20 ^ (member as u64) << 44);
            let draws = Draws { dropout: self, random, rows, rank };
            for row in 0..rows {
                draws.fill(row, &mut mask[row * columns + member * rank..][..rank]);
            }
        }
        let mask = Tensor::from_f64(&ax.device(), ax.dtype(), &mask, &[rows, columns])?;
        copy::multiply(mask.view(), ax.reborrow())
    }
}

/// The masks of one module.
struct Draws<'a> {
    dropout: &'a Dropout,
    random: Philox,
    rows: usize,
    rank: usize,
}

/// Streams of one pass.
#[derive(Clone, Copy)]
enum Kind {
    Elements,
    Ranks,
    Modules,
}

impl Draws<'_> {
    fn uniform(&self, kind: Kind, index: usize) -> f64 {
        let stream = self.dropout.pass << 2 | kind as u64;
        let word = self.random.words(stream, index as u64 / 4)[index % 4];
        f64::from(word) / (1u64 << 32) as f64
    }

    /// Factors of one row.
    fn fill(&self, row: usize, out: &mut [f64]) {
        let Dropout { elements, ranks, modules, samples, .. } = *self.dropout;
        if modules > 0.0 && self.uniform(Kind::Modules, 0) < modules {
            return;
        }
        let sample = row * samples.max(1) / self.rows.max(1);
        for (r, factor) in out.iter_mut().enumerate() {
            let dropped = |rate: f64, kind, index| rate > 0.0 && self.uniform(kind, index) < rate;
            let gone = dropped(elements, Kind::Elements, row * self.rank + r)
                || dropped(ranks, Kind::Ranks, sample * self.rank + r);
            *factor = if gone { 0.0 } else { 1.0 / ((1.0 - elements) * (1.0 - ranks)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use tenggat_tensor::{DType, Device};

    use super::*;

    fn masked(dropout: Dropout, layer: usize) -> Vec<f64> {
        let ones = vec![1.0; 64 * 16];
        let mut ax = Tensor::from_f64(&Device::cpu(), DType::F64, &ones, &[64, 16]).unwrap();
        dropout.apply(layer, 8, ax.view_mut()).unwrap();
        ax.to_f64().unwrap()
    }

    const NONE: Dropout = Dropout { elements: 0.0, ranks: 0.0, modules: 0.0, seed: 1, pass: 3, samples: 2 };

    #[test]
    fn elements_go_as_often_as_asked_and_the_mean_stays() {
        let dropout = Dropout { elements: 0.25, ..NONE };
        let values = masked(dropout, 5);
        let zeros = values.iter().filter(|&&v| v == 0.0).count();
        // 1024 draws: a standard deviation of 14.
        assert!((186..326).contains(&zeros), "{zeros}");
        assert!(values.iter().all(|&v| v == 0.0 || v == 1.0 / 0.75));
        assert_eq!(values, masked(dropout, 5));
        assert_ne!(values, masked(dropout, 6));
        assert_ne!(values, masked(Dropout { pass: 4, ..dropout }, 5));
        assert_ne!(values[..8], values[8..16], "members share their mask");
        assert_eq!(masked(NONE, 5), vec![1.0; 64 * 16]);
    }

    #[test]
    fn ranks_go_for_a_whole_sample_and_modules_for_all() {
        let values = masked(Dropout { ranks: 0.5, ..NONE }, 5);
        for sample in values.chunks(32 * 16) {
            assert!(sample.chunks(16).all(|row| row == &sample[..16]));
        }
        assert!(values.contains(&0.0) && values.contains(&2.0) && values[..16] != values[32 * 16..33 * 16]);
        let modules: Vec<f64> =
            (0..200).map(|layer| masked(Dropout { modules: 0.5, ..NONE }, layer)[0]).collect();
        let kept = modules.iter().filter(|&&v| v == 1.0).count();
        assert!((65..135).contains(&kept) && modules.iter().all(|&v| v == 0.0 || v == 1.0), "{kept}");
    }
}
