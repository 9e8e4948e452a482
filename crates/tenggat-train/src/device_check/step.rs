//! Whole training steps of a small number of blocks: on the device against the CPU, captured against direct,
//! and in 8 bits.

use tenggat_models::Result;
use tenggat_models::transformer::{Config, Recompute};
use tenggat_plan::Clock;
use tenggat_tensor::{DType, Device};

use super::scope::Scope;
use crate::plan::bench::{Measured, StepBench};

/// Steps of a comparison. The first graph is captured in the second; what updates did shows in the third.
const STEPS: usize = 4;
/// By how much loss and gradient norm may differ: activations are rounded to bf16 on the device, not on the
/// CPU.
const AGAINST_CPU: f64 = 2e-2;
/// Between two ways on the device: attention's backward pass adds up in any order.
const AGAINST_DIRECT: f64 = 1e-2;
/// Products of 8-bit floats err by a few percent each.
const IN_8_BITS: f64 = 1e-1;

/// The step: two blocks, so that one feeds another, of Qwen-Image's size on a card and small ones where
/// kernels are emulated.
fn bench(scope: Scope, compute: DType) -> StepBench {
    let mut model = Config::qwen_image();
    model.num_layers = 2;
    let mut grid = (16, 16);
    if scope.is_small() {
        (model.num_attention_heads, model.attention_head_dim) = (2, 64);
        (model.joint_attention_dim, model.axes_dims_rope) = (64, [16, 24, 24]);
        grid = (3, 4);
    }
    StepBench {
        model,
        format: None,
        fp8_products: false,
        rank: 16,
        grid,
        text_tokens: 20,
        batch: 1,
        adam_8bit: false,
        compute,
        recompute: Recompute::NOTHING,
        modulation_steps: None,
        direct: true,
    }
}

fn measured(bench: &StepBench, device: &Device, clock: &dyn Clock, steps: usize) -> Result<Measured> {
    bench.measure(&bench.random_model(device)?, clock, (0, steps), None, &mut |_| {})
}

/// Largest relative difference of losses and gradient norms; infinite where one is not a number.
fn difference(one: &Measured, other: &Measured) -> f64 {
    let pairs = one.steps.iter().zip(&other.steps);
    let errors = pairs.flat_map(|(a, b)| {
        [(a.loss, b.loss), (a.gradient_norm, b.gradient_norm)].map(|(a, b)| (a - b).abs() / b.abs())
    });
    errors.fold(0.0, |largest: f64, x| if x.is_nan() { f64::INFINITY } else { largest.max(x) })
}

/// Forward and backward pass of blocks on the device and on the CPU: the difference, and the largest that is
/// right.
///
/// # Errors
/// Out of memory, or the device failed.
pub(super) fn against_cpu(device: &Device, scope: Scope, clock: &dyn Clock) -> Result<(f64, f64)> {
    let steps = if scope.is_small() { STEPS } else { 2 };
    let here = measured(&bench(scope, DType::F32), &Device::cpu(), clock, steps)?;
    let there = measured(&bench(scope, device.activations()), device, clock, steps)?;
    Ok((difference(&there, &here), AGAINST_CPU))
}

/// What came of capturing a step.
pub(super) struct Captured {
    /// Difference from kernel by kernel, and the most that is right; `None` if nothing was captured.
    pub compared: Option<(f64, f64)>,
    /// What the device had to say, such as why nothing was.
    pub notes: Vec<String>,
}

/// The same steps captured as CUDA graphs and kernel by kernel.
///
/// # Errors
/// As [`against_cpu`].
pub(super) fn graphs(device: &Device, scope: Scope, clock: &dyn Clock) -> Result<Captured> {
    let direct = bench(scope, device.activations());
    let captured = StepBench { direct: false, ..direct.clone() };
    let expected = measured(&direct, device, clock, STEPS)?;
    let got = measured(&captured, device, clock, STEPS)?;
    let compared = (got.captured_passes > 0).then(|| (difference(&got, &expected), AGAINST_DIRECT));
    Ok(Captured { compared, notes: got.notes })
}

/// The same steps with frozen matrices multiplied in 8-bit floats.
///
/// # Errors
/// As [`against_cpu`].
pub(super) fn in_8_bits(device: &Device, scope: Scope, clock: &dyn Clock) -> Result<(f64, f64)> {
    let wide = bench(scope, device.activations());
    let narrow = StepBench { fp8_products: true, ..wide.clone() };
    let expected = measured(&wide, device, clock, 2)?;
    let got = measured(&narrow, device, clock, 2)?;
    let off = difference(&got, &expected);
    // Exactly the same would mean that nothing was multiplied in 8 bits.
    Ok((if off == 0.0 { f64::INFINITY } else { off }, IN_8_BITS))
}
