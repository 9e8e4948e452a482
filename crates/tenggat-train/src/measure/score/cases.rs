//! The noise of velocity errors: fixed by the picture, so that everyone who measures it measures the same.

use sha2::{Digest, Sha256};

/// Noise levels: the midpoints of this many equal parts of 0..1.
pub const LEVELS: usize = 16;
/// Seed of all noise.
const MASTER_SEED: u64 = 42;

/// σ of a level.
pub fn sigma(level: usize) -> f64 {
    (level as f64 + 0.5) / LEVELS as f64
}

/// Seed of the noise with this number at a level, for the picture with this digest: the first eight bytes,
/// little end first, of SHA-256 of `seed:digest:level:number`, modulo 2⁶³ − 1. Source: rayonlabs/G.O.D
/// `validator/evaluation/denoising_mse.py`, `case_seed`.
pub fn seed(digest: &str, level: usize, number: u64) -> u64 {
    let hash = Sha256::digest(format!("{MASTER_SEED}:{digest}:{level}:{number}"));
    let first = hash.iter().take(8).rev().fold(0u64, |seed, &byte| seed << 8 | u64::from(byte));
    first % (i64::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the upstream function in Python.
    #[test]
    fn seeds_are_the_contests() {
        assert_eq!(seed("abc", 0, 0), 8695734796641214220);
        assert_eq!(seed("abc", 15, 7), 4458216993255287069);
        assert_eq!([sigma(0), sigma(15)], [1.0 / 32.0, 31.0 / 32.0]);
    }
}
