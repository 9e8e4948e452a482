//! The Mersenne Twister as PyTorch's CPU generator uses it, so that a seed gives the noise that `torch.randn`
//! gives.

const N: usize = 624;
const M: usize = 397;

/// MT19937 (Matsumoto and Nishimura 1998), seeded as `torch.Generator().manual_seed(seed)`.
#[derive(Debug, Clone)]
pub struct Mt19937 {
    state: [u32; N],
    next: usize,
    /// Second half of the last scalar Box–Muller pair.
    cached: Option<f64>,
}

impl Mt19937 {
    /// A generator with this seed; PyTorch uses its low 32 bits.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Mt19937 { state, next: N, cached: None }
    }

    /// A generator seeded with an array, as CPython's `random.seed` does with the 32-bit digits of an
    /// integer, lowest first (`init_by_array` of the reference implementation).
    pub fn from_key(key: &[u32]) -> Self {
        let mut generator = Self::new(19_650_218);
        let (state, mut i, mut j) = (&mut generator.state, 1, 0);
        let mix = |state: &[u32; N], i: usize, factor: u32| {
            state[i] ^ (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(factor)
        };
        let advance = |state: &mut [u32; N], i: &mut usize| {
            *i += 1;
            if *i == N {
                state[0] = state[N - 1];
                *i = 1;
            }
        };
        for _ in 0..N.max(key.len()) {
            let digit = key.get(j).copied().unwrap_or(0);
            state[i] = mix(state, i, 1_664_525).wrapping_add(digit).wrapping_add(j as u32);
            advance(state, &mut i);
            j = if j + 1 < key.len() { j + 1 } else { 0 };
        }
        for _ in 1..N {
            state[i] = mix(state, i, 1_566_083_941).wrapping_sub(i as u32);
            advance(state, &mut i);
        }
        state[0] = 0x8000_0000;
        generator
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Fills `out` as `torch.randn(n, generator=…)` in f32 does: blocks of 16 from 24-bit uniforms, the last
    /// block drawn afresh when n is no multiple of 16; below 16 numbers, f64 pairs.
    /// Source: pytorch `aten/src/ATen/native/cpu/DistributionTemplates.h` (`normal_fill`) and
    /// `aten/src/ATen/core/DistributionsHelper.h`. The logarithm and the sine differ in the last bit at
    /// times.
    pub fn randn(&mut self, out: &mut [f32]) {
        let n = out.len();
        if n < 16 {
            out.iter_mut().for_each(|x| *x = self.scalar_normal() as f32);
            return;
        }
        out.iter_mut().for_each(|x| *x = self.uniform24());
        let whole = n / 16 * 16;
        out[..whole].chunks_exact_mut(16).for_each(box_muller);
        if whole < n {
            let tail = &mut out[n - 16..];
            tail.iter_mut().for_each(|x| *x = self.uniform24());
            box_muller(tail);
        }
    }

    fn uniform24(&mut self) -> f32 {
        (self.next_u32() & 0xff_ffff) as f32 / 16_777_216.0
    }

    fn uniform53(&mut self) -> f64 {
        let bits = u64::from(self.next_u32()) << 32 | u64::from(self.next_u32());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn scalar_normal(&mut self) -> f64 {
        if let Some(x) = self.cached.take() {
            return x;
        }
        let (u1, u2) = (self.uniform53(), self.uniform53());
        let (radius, angle) = ((-2.0 * (-u2).ln_1p()).sqrt(), std::f64::consts::TAU * u1);
        self.cached = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// 8 uniforms and 8 more become 16 normals.
fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(8);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let angle = std::f32::consts::TAU * *b;
        (*a, *b) = (radius * angle.cos(), radius * angle.sin());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First output for the reference seed, and the 10,000th as the C++ standard gives it for seed 5489.
    #[test]
    fn matches_the_standard() {
        let mut generator = Mt19937::new(5489);
        assert_eq!(generator.next_u32(), 3_499_211_612);
        assert_eq!((1..10_000).map(|_| generator.next_u32()).last(), Some(4_123_659_995));
    }

    /// `torch.manual_seed(42); torch.randn(20)[:4]` and `torch.randn(3)`, as PyTorch prints them.
    #[test]
    fn matches_torch_randn() {
        let mut long = [0.0; 20];
        Mt19937::new(42).randn(&mut long);
        let mut short = [0.0; 3];
        Mt19937::new(42).randn(&mut short);
        for (got, expected) in
            long[..4].iter().chain(&short).zip([1.9269, 1.4873, 0.9007, -2.1055, 0.3367, 0.1288, 0.2345])
        {
            assert!((got - expected).abs() < 1e-4, "{got} {expected}");
        }
    }
}
