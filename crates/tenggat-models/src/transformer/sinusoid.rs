//! The sinusoid of the timestep: `Timesteps(256, flip_sin_to_cos, scale 1000)` of diffusers `embeddings.py`.

use tenggat_tensor::DType;

use super::config::SINUSOID;

/// Number of angles; each gives a cosine and a sine.
const ANGLES: usize = SINUSOID / 2;
/// The slowest wave, and the factor from σ to timesteps.
const MAX_PERIOD: f64 = 10_000.0;
const TIMESTEPS: f64 = 1000.0;

/// What diffusers multiplies by 1000, which decides how angles are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factor {
    /// σ times the frequency: Qwen-Image.
    OnAngles,
    /// σ: FLUX.1.
    OnLevels,
}

/// Cosines, then sines, of `1000·σ·10000^(−i/128)` for every σ: `[b, 256]`.
///
/// A model that computes in f64 gets them to the last digit, every other with angles rounded as in
/// [`angle_f32`].
pub(super) fn of(sigmas: &[f64], factor: Factor, compute: DType) -> Vec<f64> {
    let angle = match (compute, factor) {
        (DType::F64, _) => angle_f64,
        (_, Factor::OnAngles) => angle_f32,
        (_, Factor::OnLevels) => angle_of_timestep_f32,
    };
    sigmas
        .iter()
        .flat_map(|&sigma| {
            let angles = move || (0..ANGLES).map(move |i| angle(sigma, i));
            angles().map(f64::cos).chain(angles().map(f64::sin))
        })
        .collect()
}

fn angle_f64(sigma: f64, i: usize) -> f64 {
    TIMESTEPS * sigma * (-MAX_PERIOD.ln() * i as f64 / ANGLES as f64).exp()
}

/// The angle as diffusers computes it in every run but an f64 one: each operation rounded to f32, in its
/// order.
///
/// Near an angle of 1000 this is 1e-4 away from the exact value, more than all other rounding of an f32 run
/// together. The published weights have only ever seen these angles, and with others ten steps of AdamW drift
/// apart from the reference by up to 2e-3 where a gradient is near zero.
fn angle_f32(sigma: f64, i: usize) -> f64 {
    f64::from(TIMESTEPS as f32 * (sigma as f32 * frequency_f32(i)))
}

/// The same where the factor comes first.
fn angle_of_timestep_f32(sigma: f64, i: usize) -> f64 {
    f64::from(TIMESTEPS as f32 * sigma as f32 * frequency_f32(i))
}

fn frequency_f32(i: usize) -> f32 {
    let exponent = -MAX_PERIOD.ln() as f32 * i as f32 / ANGLES as f32;
    f64::from(exponent).exp() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_then_sines() {
        for compute in [DType::F32, DType::F64] {
            let values = of(&[0.0, 0.25], Factor::OnLevels, compute);
            assert_eq!(values.len(), 2 * SINUSOID);
            let (zero, quarter) = values.split_at(SINUSOID);
            assert!(zero[..ANGLES].iter().all(|&x| x == 1.0) && zero[ANGLES..].iter().all(|&x| x == 0.0));
            // The first frequency is one: no rounding yet.
            assert_eq!((quarter[0], quarter[ANGLES]), (250f64.cos(), 250f64.sin()));
        }
    }

    #[test]
    fn f32_angles_are_rounded_and_no_further_off() {
        let angles = (0..ANGLES).map(|i| (angle_f32(0.987, i), angle_f64(0.987, i)));
        let off = angles.map(|(rounded, exact)| (rounded - exact).abs() / exact).fold(0.0, f64::max);
        // Five roundings of 2^-24, that of the exponent times its size of up to 9.2.
        assert!(off > 1e-8 && off < 15.0 * 2f64.powi(-24), "{off}");
    }
}
