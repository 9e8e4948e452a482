//! Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
//! 2011).

use rayon::prelude::*;

/// Indices that one task draws: about 25 µs.
const TASK: usize = 256;

/// Random numbers as a function of (seed, stream, index): any of them can be had in any order on any thread.
#[derive(Debug, Clone, Copy)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Philox { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// Four 32-bit words: counter = (index, stream).
    pub fn words(&self, stream: u64, index: u64) -> [u32; 4] {
        let mut c = [index as u32, (index >> 32) as u32, stream as u32, (stream >> 32) as u32];
        let mut k = self.key;
        for _ in 0..10 {
            let a = u64::from(c[0]) * 0xD251_1F53;
            let b = u64::from(c[2]) * 0xCD9E_8D57;
            c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        c
    }

    /// A uniform number in [0, 1).
    pub fn uniform(&self, stream: u64, index: u64) -> f64 {
        let w = self.words(stream, index);
        ((u64::from(w[0]) << 32 | u64::from(w[1])) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A uniform integer in 0..n; 0 if n is 0. The bias is below n/2⁶⁴.
    pub fn below(&self, stream: u64, index: u64, n: usize) -> usize {
        let w = self.words(stream, index);
        ((u128::from(u64::from(w[0]) << 32 | u64::from(w[1])) * n as u128) >> 64) as usize
    }

    /// Fills `out` with standard normal numbers of this stream (Box and Muller's transform, in f64).
    pub fn normal(&self, stream: u64, out: &mut [f32]) {
        out.par_chunks_mut(4 * TASK).enumerate().for_each(|(task, out)| {
            for (i, chunk) in out.chunks_mut(4).enumerate() {
                let four = self.four_normals(stream, (task * TASK + i) as u64);
                chunk.iter_mut().zip(four).for_each(|(o, x)| *o = x as f32);
            }
        });
    }

    /// [`Philox::normal`], not rounded.
    pub fn normal_f64(&self, stream: u64, out: &mut [f64]) {
        for (index, chunk) in out.chunks_mut(4).enumerate() {
            let four = self.four_normals(stream, index as u64);
            chunk.iter_mut().zip(four).for_each(|(o, x)| *o = x);
        }
    }

    fn four_normals(&self, stream: u64, index: u64) -> [f64; 4] {
        let w = self.words(stream, index);
        let unit = |w: u32| (f64::from(w) + 0.5) / 4_294_967_296.0; // inside (0, 1)
        let pair = |a: u32, b: u32| {
            let (radius, angle) = ((-2.0 * unit(a).ln()).sqrt(), std::f64::consts::TAU * unit(b));
            [radius * angle.cos(), radius * angle.sin()]
        };
        let ([a, b], [c, d]) = (pair(w[0], w[1]), pair(w[2], w[3]));
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn matches_the_published_vectors() {
        let zero = Philox::new(0).words(0, 0);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox::new(u64::MAX).words(u64::MAX, u64::MAX);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn normals_have_the_right_moments() {
        let mut x = vec![0.0; 1 << 18];
        Philox::new(5).normal_f64(3, &mut x);
        let n = x.len() as f64;
        let moment = |p: i32| x.iter().map(|v| v.powi(p)).sum::<f64>() / n;
        // Standard errors: 1/√n = 0.002, √2/√n, √96/√n.
        assert!(moment(1).abs() < 0.008 && (moment(2) - 1.0).abs() < 0.012 && (moment(4) - 3.0).abs() < 0.08);
    }

    #[test]
    fn streams_differ_and_integers_cover_their_range() {
        let r = Philox::new(1);
        assert_ne!(r.words(0, 0), r.words(1, 0));
        let mut seen = [0; 7];
        (0..7000).for_each(|i| seen[r.below(2, i, 7)] += 1);
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
        assert_eq!(r.below(0, 0, 0), 0);
    }
}
