//! AdamW whose moments are kept in 8 bits: 2 bytes per parameter and 8 per block of 256.
//!
//! A block of moments is a scale, its largest magnitude, and codes into a [`Map`] of 256 numbers; the first
//! moment has the signed map, the second the unsigned one. A step expands a block, updates moments and
//! parameters as [`super::adamw`] does, in full precision, and only then stores the moments again, each as
//! the nearest number (Dettmers et al., arXiv:2110.02861). Source: bitsandbytes `csrc/kernels.cu`,
//! `kOptimizerStatic8bit2StateBlockwise`; its kernels are a code off the nearest now and then.

mod cpu;
pub(crate) mod cuda;
mod map;

pub use map::{Map, SIGNED, UNSIGNED};

pub use super::adamw::Hyper;
use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Neighbouring values that share a scale.
pub const BLOCK: usize = 256;

/// One moment of `n` parameters.
#[derive(Debug)]
pub struct Moment<'a> {
    /// Codes, `[1, n]` bytes.
    pub codes: ViewMut<'a>,
    /// Largest magnitude of each block, `[1, ⌈n / 256⌉]` f32. Zeros make a moment of zeros, whatever the
    /// codes.
    pub scales: ViewMut<'a>,
}

impl<'a> Moment<'a> {
    fn check_shapes(&self, op: &'static str, n: usize) -> Result<()> {
        expect_shape(op, "codes", &[1, n], &self.codes.shape())?;
        expect_shape(op, "scales", &[1, n.div_ceil(BLOCK)], &self.scales.shape())
    }

    fn cpu(self, op: &'static str) -> Result<cpu::Moment<'a>> {
        Ok(cpu::Moment { codes: self.codes.cpu(op)?, scales: self.scales.cpu(op)? })
    }
}

/// Updates parameters and moments in place; parameter and gradient `[1, n]`, `clip` as
/// [`super::adamw::clip_factor`] wrote it. The results do not depend on the number of threads, and a GPU's
/// are those of the processor in f32 bit by bit.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn step(
    parameter: ViewMut<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    m: Moment<'_>,
    v: Moment<'_>,
    hyper: Hyper,
) -> Result<()> {
    const OP: &str = "adamw8bit";
    expect_shape(OP, "gradient", &parameter.shape(), &gradient.shape())?;
    expect_shape(OP, "clip", &[1, 2], &clip.shape())?;
    expect_shape(OP, "parameter", &[1, parameter.cols()], &parameter.shape())?;
    m.check_shapes(OP, parameter.cols())?;
    v.check_shapes(OP, parameter.cols())?;
    if parameter.on_gpu() {
        return cuda::step(OP, parameter, gradient, clip, [m, v], hyper);
    }
    dispatch_real!(OP, parameter.dtype(), T => {
        cpu::step::<T>(parameter.cpu(OP)?, gradient.cpu(OP)?, clip.cpu(OP)?, m.cpu(OP)?, v.cpu(OP)?, hyper);
        Ok(())
    })
}

/// Stores values, `[1, n]` f32, as codes and scales; all in host memory.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn quantise(map: &Map, values: View<'_>, to: Moment<'_>) -> Result<()> {
    const OP: &str = "8-bit blocks";
    to.check_shapes(OP, values.cols())?;
    expect_shape(OP, "values", &[1, values.cols()], &values.shape())?;
    let (values, to) = (values.cpu::<f32>(OP)?, to.cpu(OP)?);
    let blocks = values.data.chunks(BLOCK).zip(to.codes.data.chunks_mut(BLOCK)).zip(to.scales.data);
    blocks.for_each(|((values, codes), scale)| *scale = cpu::shrink(map, values, codes));
    Ok(())
}

/// The values, `[1, n]` f32, of codes, `[1, n]`, and scales, `[1, ⌈n / 256⌉]`; all in host memory.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn dequantise(map: &Map, codes: View<'_>, scales: View<'_>, values: ViewMut<'_>) -> Result<()> {
    const OP: &str = "values of 8-bit blocks";
    expect_shape(OP, "codes", &values.shape(), &codes.shape())?;
    expect_shape(OP, "scales", &[1, values.cols().div_ceil(BLOCK)], &scales.shape())?;
    let (codes, scales) = (codes.cpu::<u8>(OP)?, scales.cpu::<f32>(OP)?);
    let values = values.cpu::<f32>(OP)?;
    let blocks = values.data.chunks_mut(BLOCK).zip(codes.data.chunks(BLOCK)).zip(scales.data);
    blocks.for_each(|((values, codes), scale)| cpu::expand(map, codes, *scale, values));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{adamw, check::*};
    use super::*;
    use crate::{DType, Device, Tensor};

    const HYPER: Hyper =
        Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, l2: 0.0, step: 1 };

    struct State {
        codes: [Tensor; 2],
        scales: [Tensor; 2],
    }

    impl State {
        fn new(device: &Device, n: usize) -> Self {
            let zeros = |dtype, n| Tensor::zeros(device, dtype, &[1, n]).unwrap();
            State {
                codes: [(); 2].map(|()| zeros(DType::U8, n)),
                scales: [(); 2].map(|()| zeros(DType::F32, n.div_ceil(BLOCK))),
            }
        }

        fn moments(&mut self) -> [Moment<'_>; 2] {
            let [m, v] = &mut self.codes;
            let [ms, vs] = &mut self.scales;
            [(m, ms), (v, vs)].map(|(c, s)| Moment { codes: c.view_mut(), scales: s.view_mut() })
        }
    }

    fn steps(dtype: DType, n: usize, l2: f64) -> (Vec<f64>, Vec<f64>) {
        let (mut p, mut full) = (randn(dtype, &[1, n], 1), randn(dtype, &[1, n], 1));
        let mut clip = p.empty_like(&[1, 2]).unwrap();
        let zeros = || Tensor::zeros(&p.device(), dtype, &[1, n]).unwrap();
        let (mut state, mut m, mut v) = (State::new(&Device::cpu(), n), zeros(), zeros());
        for step in 1..=20 {
            let (g, hyper) = (randn(dtype, &[1, n], 1 + step), Hyper { step, l2, ..HYPER });
            adamw::clip_factor(g.view(), Some(1.0), clip.view_mut()).unwrap();
            let [first, second] = state.moments();
            super::step(p.view_mut(), g.view(), clip.view(), first, second, hyper).unwrap();
            adamw::step(full.view_mut(), g.view(), clip.view(), m.view_mut(), v.view_mut(), hyper).unwrap();
        }
        (p.to_f64().unwrap(), full.to_f64().unwrap())
    }

    /// The nearest numbers are up to 0.7 % of the largest of their block away, and half of a small one; in
    /// twenty steps of 0.01 that misplaces a parameter by 3.5e-3 at worst and 6.6e-4 on average. Decay of 0.1
    /// in the gradient makes it follow the parameter, which spreads the moments of a block further: 1.2e-2
    /// and 2.0e-3 were seen.
    #[test]
    fn follows_the_full_precision_at_a_small_distance() {
        let cases = [
            (DType::F32, 0.0, (0.01, 0.001)),
            (DType::F64, 0.0, (0.01, 0.001)),
            (DType::F32, 0.1, (0.02, 0.003)),
        ];
        for (dtype, l2, (most, most_on_average)) in cases {
            let (p, full) = steps(dtype, 1000, l2);
            let distance = p.iter().zip(&full).map(|(a, b)| (a - b).abs());
            let (worst, sum) = distance.fold((0.0f64, 0.0), |(w, s), d| (w.max(d), s + d));
            println!("{dtype:?}, l2 {l2}: worst {worst:.1e}, mean {:.1e}", sum / 1000.0);
            assert!(worst < most && sum / 1000.0 < most_on_average, "{dtype:?}, l2 {l2}: {worst} {sum}");
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| steps(DType::F32, 70_000, 0.0).0)
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (mut p, g) = (randn(DType::F32, &[1, 300], 1), randn(DType::F32, &[1, 300], 2));
        let clip = randn(DType::F32, &[1, 2], 3);
        for n in [200, 600] {
            let mut state = State::new(&Device::cpu(), n);
            let [m, v] = state.moments();
            assert!(step(p.view_mut(), g.view(), clip.view(), m, v, HYPER).is_err());
        }
    }

    fn random_state(device: &Device, n: usize) -> State {
        let random = |dtype, n, seed, of: &dyn Fn(f64) -> f64| {
            let values = randn(DType::F32, &[1, n], seed).to_f64().unwrap();
            let values: Vec<f64> = values.into_iter().map(of).collect();
            Tensor::from_f64(device, dtype, &values, &[1, n]).unwrap()
        };
        let code = |x: f64| (128.0 + 50.0 * x).round().clamp(0.0, 255.0);
        State {
            codes: [11, 12].map(|seed| random(DType::U8, n, seed, &code)),
            scales: [13, 14].map(|seed| random(DType::F32, n.div_ceil(BLOCK), seed, &f64::abs)),
        }
    }

    /// One step, since the reference keeps its moments in f64 until it codes them: now and then that is
    /// another code.
    #[test]
    fn gpus_agree() {
        for n in [5000, 77] {
            against_cpu("adamw8bit", |on| {
                let (mut p, g, mut clip) = (on.wide(&[1, n], 1), on.wide(&[1, n], 2), on.empty_wide(&[1, 2]));
                clip.fill(0.25).unwrap();
                let mut state = random_state(on.device(), n);
                let [m, v] = state.moments();
                let hyper = Hyper { l2: 0.1, step: 3, ..HYPER };
                step(p.view_mut(), g.view(), clip.view(), m, v, hyper).unwrap();
                vec![("p", p)]
            });
        }
    }

    #[test]
    fn gpus_agree_bit_by_bit_in_single_precision() {
        let Some(gpu) = gpu() else { return };
        let n = 5000;
        let run = |device: &Device| {
            let on = |t: Tensor| t.into_device(device).unwrap();
            let (mut p, mut clip) = (on(randn(DType::F32, &[1, n], 1)), on(randn(DType::F32, &[1, 2], 2)));
            clip.fill(0.3).unwrap();
            let mut state = random_state(device, n);
            for step in 1..=5 {
                let mut g = randn(DType::F32, &[1, n], 2 + step);
                // A block whose moments fade, and in the end are those of zeros.
                g.host_mut::<f32>().unwrap()[512..768].fill(0.0);
                let (g, hyper) = (on(g), Hyper { step, l2: 0.01 * (step % 2) as f64, ..HYPER });
                let [m, v] = state.moments();
                super::step(p.view_mut(), g.view(), clip.view(), m, v, hyper).unwrap();
            }
            let State { codes: [m, v], scales: [ms, vs] } = state;
            [p, m, v, ms, vs].map(|t| t.to_bytes().unwrap().into_owned())
        };
        let (there, here) = (run(&gpu), run(&Device::cpu()));
        for (what, (there, here)) in ["p", "codes of m", "codes of v", "scales of m", "scales of v"]
            .iter()
            .zip(there.iter().zip(&here))
        {
            assert!(there == here, "{what} differ");
        }
    }
}
