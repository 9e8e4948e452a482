//! The numbers that the contest scores with.

use tenggat_tensor::random::Mt19937;

/// How pictures are redrawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Redrawing {
    /// Steps that are run.
    pub steps: usize,
    /// Classifier-free guidance against the empty prompt.
    pub guidance: f64,
    /// Share of the noise that a picture is given.
    pub denoise: f64,
    /// Noises of each picture.
    pub seeds: usize,
}

/// The contest's own figures for Qwen-Image.
pub const REDRAWING: Redrawing = Redrawing { steps: 20, guidance: 8.0, denoise: 0.93, seeds: 10 };

/// Longest side of a test picture in pixels.
pub const LONG_SIDE: usize = 1024;
/// Noises of the velocity error at each of its levels.
pub const VELOCITY_NOISES: u64 = 16;

/// Shift of the noise levels. Source: `image_flow_adapter.py`, the family `qwen-image`.
const SHIFT: f64 = 3.0;
/// Entries of ComfyUI's table of noise levels.
const TABLE: usize = 1000;
/// Seed of the seeds.
const MASTER_SEED: u32 = 42;

/// The first `n` of the contest's seeds: `random.seed(42)`, then `random.randint(0, 2**32 - 1)` each.
/// Source: `eval_diffusion.py`, `generate_reproducible_seeds`; CPython `random.py`,
/// `_randbelow_with_getrandbits`.
pub fn seeds(n: usize) -> Vec<u64> {
    let mut generator = Mt19937::from_key(&[MASTER_SEED]);
    // 2³² values take 33 bits, and those beyond are drawn again.
    std::iter::repeat_with(|| [generator.next_u32(), generator.next_u32() >> 31])
        .filter(|[_, high]| *high == 0)
        .map(|[low, _]| u64::from(low))
        .take(n)
        .collect()
}

/// Noise levels of an img2img run, `steps` + 1 of them, the last 0: ComfyUI's schedule `simple` of as many
/// steps as make `steps` the share `denoise`, without its beginning.
/// Source: ComfyUI `comfy/samplers.py` (`KSampler.set_steps`, `simple_scheduler`), `comfy/model_sampling.py`
/// (`ModelSamplingDiscreteFlow`).
pub fn sigmas(steps: usize, denoise: f64) -> Vec<f64> {
    let all = if denoise > 0.9999 { steps } else { (steps as f64 / denoise.max(1e-3)) as usize };
    let level = |i: usize| {
        let t = (TABLE - (i as f64 * TABLE as f64 / all as f64) as usize) as f64 / TABLE as f64;
        SHIFT * t / (1.0 + (SHIFT - 1.0) * t)
    };
    (all.saturating_sub(steps)..all).map(level).chain([0.0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by CPython 3.
    #[test]
    fn seeds_are_pythons() {
        let expected = [
            2_746_317_213,
            1_181_241_943,
            958_682_846,
            3_163_119_785,
            1_812_140_441,
            127_978_094,
            939_042_955,
            2_340_505_846,
            946_785_248,
            2_530_876_844,
        ];
        assert_eq!(seeds(10), expected);
    }

    /// Computed with the upstream expressions in Python.
    #[test]
    fn levels_are_comfyuis() {
        let got = sigmas(20, 0.93);
        assert_eq!(got.len(), 21);
        let expected = [0.983_826_565_726_084_1, 0.966_192_170_818_505_3, 0.947_717_231_222_385_7];
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}");
        assert!((got[19] - 0.131_386_861_313_868_6).abs() < 1e-12);
        assert_eq!(got[20], 0.0);
        assert_eq!(sigmas(4, 1.0)[0], 1.0);
    }
}
