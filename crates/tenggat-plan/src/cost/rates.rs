//! How fast a machine does each kind of work: from the catalogue for GPUs, from measurement for the rest.

use serde::{Deserialize, Serialize};

use super::work::{Op, OpClass, Work};
use crate::gpu::{Gpu, SLOWEST};

/// A rate that falls off for small extents: `per_s · x / (x + half)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// FLOP/s (or bytes/s) for large extents.
    pub per_s: f64,
    /// Extent at which half of it is reached; 0 if the extent does not matter.
    pub half: f64,
}

impl Rate {
    /// A rate that does not depend on the extent.
    pub const fn flat(per_s: f64) -> Self {
        Self { per_s, half: 0.0 }
    }

    /// The rate at an extent.
    pub fn at(self, extent: f64) -> f64 {
        if self.half > 0.0 { self.per_s * extent / (extent + self.half) } else { self.per_s }
    }

    /// The curve through two measurements `(extent, rate)`; falls back to a flat rate if the small one is not
    /// slower.
    pub fn through(small: (f64, f64), large: (f64, f64)) -> Self {
        let ((x1, r1), (x2, r2)) = (small, large);
        // x/r is a straight line in x: (x + half) / per_s.
        let per_s = (x2 - x1) / (x2 / r2 - x1 / r1);
        let half = per_s * x1 / r1 - x1;
        if per_s.is_finite() && per_s > 0.0 && half.is_finite() && half > 0.0 {
            Self { per_s, half }
        } else {
            Self::flat(r2)
        }
    }
}

/// Rates of the kinds of work on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Products with frozen matrices, FLOP/s by rows.
    pub gemm: Rate,
    /// The same on 8-bit floating-point units; `None` if there are none.
    pub gemm_fp8: Option<Rate>,
    /// LoRA products in the usual type, FLOP/s by their shortest extent.
    pub lora_gemm: Rate,
    /// LoRA products in true f32, FLOP/s by their shortest extent.
    pub lora_gemm_f32: Rate,
    /// Memory as LoRA products see their weights and gradients, bytes/s.
    pub lora_bytes_per_s: f64,
    /// Attention forward, FLOP/s by tokens.
    pub attention_forward: Rate,
    /// Attention backward, FLOP/s by tokens.
    pub attention_backward: Rate,
    /// Memory as elementwise kernels see it, bytes/s.
    pub elementwise_bytes_per_s: f64,
    /// Memory as the optimiser sees it, bytes/s.
    pub optimiser_bytes_per_s: f64,
    /// Memory that bounds products with frozen matrices, bytes/s.
    pub operand_bytes_per_s: f64,
    /// Memory that bounds LoRA products, bytes/s: activations were computed just before, and a CPU still has
    /// them in its caches.
    pub lora_activation_bytes_per_s: f64,
    /// Memory that bounds attention, bytes/s; likewise.
    pub attention_bytes_per_s: f64,
    /// From the host, bytes/s.
    pub host_bytes_per_s: f64,
    /// Seconds lost per kernel: the gap between two kernels of a graph on a GPU, starting the threads on a
    /// CPU.
    pub kernel_s: f64,
    /// Seconds per step outside all operations: drawing, reading back the loss.
    pub step_s: f64,
}

/// A machine to plan for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name in tables.
    pub name: String,
    /// Its rates.
    pub rates: Rates,
    /// Device memory in bytes.
    pub memory_bytes: f64,
    /// Bytes per activation: 2 on GPUs, as calibrated elsewhere.
    pub activation_bytes: f64,
    /// Whether device memory is the host's.
    pub shares_host_memory: bool,
    /// Rate of FlashAttention 2 over that of the attention in `rates`; programs that run on PyTorch use the
    /// former.
    pub flash_attention_2: f64,
    /// Whether any rate was assumed and not measured.
    pub assumed: bool,
}

/// Gap between two kernels of a captured graph; published measurements lie between 1 and 1.5 µs. Assumed.
const GRAPH_GAP_S: f64 = 1.3e-6;
/// Host work per step beside a captured graph. Assumed.
const STEP_S: f64 = 1e-3;
/// Shortest extent at which a LoRA product reaches half its rate as far as tiles go; memory bounds it
/// besides.
const LORA_HALF: f64 = 32.0;
/// Tokens at which attention reaches half its rate.
const ATTENTION_HALF: f64 = 300.0;

impl From<&Gpu> for Machine {
    fn from(gpu: &Gpu) -> Self {
        let family = &gpu.family;
        let bf16 = gpu.bf16_tflops * 1e12;
        let bandwidth = gpu.bandwidth_gb_per_s * 1e9 * family.bandwidth.share;
        let gemm = Rate { per_s: bf16 * family.gemm_bf16.share, half: family.half_rows };
        let fp8 = gpu.fp8_tflops * 1e12 * family.gemm_fp8.share;
        let attention = |share: f64| Rate { per_s: bf16 * share, half: ATTENTION_HALF };
        let rates = Rates {
            gemm,
            gemm_fp8: (fp8 > 0.0).then_some(Rate { per_s: fp8, half: family.half_rows }),
            lora_gemm: Rate { per_s: gemm.per_s, half: LORA_HALF },
            lora_gemm_f32: Rate {
                per_s: gpu.f32_tflops * 1e12 * family.gemm_f32.share,
                half: LORA_HALF / 4.0,
            },
            lora_bytes_per_s: bandwidth,
            attention_forward: attention(family.attention_forward.share),
            attention_backward: attention(family.attention_backward.share),
            elementwise_bytes_per_s: bandwidth,
            optimiser_bytes_per_s: bandwidth,
            operand_bytes_per_s: bandwidth,
            lora_activation_bytes_per_s: bandwidth,
            attention_bytes_per_s: bandwidth,
            host_bytes_per_s: gpu.host_gb_per_s * 1e9,
            kernel_s: GRAPH_GAP_S,
            step_s: STEP_S,
        };
        Self {
            name: gpu.name.clone().into_owned(),
            rates,
            memory_bytes: gpu.memory_gb * 1e9,
            activation_bytes: 2.0,
            shares_host_memory: false,
            flash_attention_2: family.flash_attention_2.share,
            // Attention and launch figures are assumed for every family so far.
            assumed: true,
        }
    }
}

impl Machine {
    /// A GPU as its driver names it, with so much memory free. One that is not in the catalogue has the rates
    /// of its slowest entry.
    pub fn gpu(name: &str, memory_bytes: f64) -> Self {
        let gpu = Gpu::called(name).unwrap_or(SLOWEST);
        Machine { name: name.to_owned(), memory_bytes, ..Machine::from(gpu) }
    }
}

/// Products of a processor thread with wide vector units, FLOP/s; attention and memory as shares of what goes
/// with it. Assumed.
const THREAD_FLOPS: f64 = 60e9;
/// Memory bandwidth of a thread, bytes/s, and of a whole processor. Assumed.
const THREAD_BYTES: f64 = 8e9;
const PROCESSOR_BYTES: f64 = 100e9;

impl Machine {
    /// A processor that nothing was measured on: assumed rates per thread, 32-bit activations.
    pub fn uncalibrated_cpu(name: &str, threads: usize, memory_bytes: f64) -> Self {
        let flops = THREAD_FLOPS * threads as f64;
        let bytes_per_s = (THREAD_BYTES * threads as f64).min(PROCESSOR_BYTES);
        let rates = Rates {
            gemm: Rate { per_s: flops, half: 16.0 },
            gemm_fp8: None,
            lora_gemm: Rate { per_s: flops, half: 16.0 },
            lora_gemm_f32: Rate { per_s: flops, half: 16.0 },
            lora_bytes_per_s: bytes_per_s,
            attention_forward: Rate { per_s: 0.7 * flops, half: 64.0 },
            attention_backward: Rate { per_s: 0.6 * flops, half: 64.0 },
            elementwise_bytes_per_s: bytes_per_s,
            optimiser_bytes_per_s: bytes_per_s,
            operand_bytes_per_s: bytes_per_s,
            lora_activation_bytes_per_s: bytes_per_s,
            attention_bytes_per_s: bytes_per_s,
            host_bytes_per_s: bytes_per_s,
            kernel_s: 5e-6,
            step_s: STEP_S,
        };
        Self {
            name: name.to_owned(),
            rates,
            memory_bytes,
            activation_bytes: 4.0,
            shares_host_memory: true,
            flash_attention_2: 1.0,
            assumed: true,
        }
    }
}

impl Rates {
    /// FLOP/s and bytes/s for one operation.
    fn of(&self, op: &Op) -> (Rate, f64) {
        let gemm_fp8 = self.gemm_fp8.unwrap_or(self.gemm);
        match op.class {
            OpClass::Gemm => (self.gemm, self.operand_bytes_per_s),
            OpClass::GemmFp8 => (gemm_fp8, self.operand_bytes_per_s),
            OpClass::LoraGemm => (self.lora_gemm, self.lora_activation_bytes_per_s),
            OpClass::LoraGemmF32 => (self.lora_gemm_f32, self.lora_activation_bytes_per_s),
            OpClass::LoraWeights => (self.gemm, self.lora_bytes_per_s),
            OpClass::AttentionForward => (self.attention_forward, self.attention_bytes_per_s),
            OpClass::AttentionBackward => (self.attention_backward, self.attention_bytes_per_s),
            OpClass::Elementwise | OpClass::Dequantise => (self.gemm, self.elementwise_bytes_per_s),
            OpClass::Optimiser => (self.gemm, self.optimiser_bytes_per_s),
            OpClass::HostTransfer | OpClass::Prefetch => (self.gemm, self.host_bytes_per_s),
        }
    }

    /// Seconds of an operation, all its repetitions together, without the gaps between kernels.
    ///
    /// The roofline: arithmetic and traffic overlap, so the slower one counts.
    pub fn busy_s(&self, op: &Op) -> f64 {
        let (rate, bytes_per_s) = self.of(op);
        let arithmetic_s = if op.flops > 0.0 { op.flops / rate.at(op.extent) } else { 0.0 };
        op.times * arithmetic_s.max(op.bytes / bytes_per_s)
    }

    /// Seconds of some work: its operations one after the other, and the gaps between their kernels; or the
    /// transfers that go beside it, if they take longer.
    pub fn seconds(&self, work: &Work) -> f64 {
        let (beside, at_work): (Vec<&Op>, Vec<&Op>) =
            work.ops.iter().partition(|op| op.class == OpClass::Prefetch);
        let busy_s = |ops: &[&Op]| ops.iter().map(|op| self.busy_s(op)).sum::<f64>();
        (busy_s(&at_work) + work.kernels() * self.kernel_s).max(busy_s(&beside))
    }

    /// Seconds of one training step.
    pub fn step_seconds(&self, work: &Work) -> f64 {
        self.seconds(work) + self.step_s
    }

    /// Seconds of each kind of work in a step, gaps included, in the order of [`OpClass::ALL`]. Transfers
    /// ahead go beside the others.
    pub fn by_class(&self, work: &Work) -> Vec<(OpClass, f64)> {
        OpClass::ALL
            .into_iter()
            .map(|class| (class, self.seconds(&work.of(class))))
            .filter(|(_, seconds)| *seconds > 0.0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_through_both_of_its_measurements() {
        let rate = Rate::through((32.0, 40e9), (1024.0, 200e9));
        assert!((rate.at(32.0) / 40e9 - 1.0).abs() < 1e-9);
        assert!((rate.at(1024.0) / 200e9 - 1.0).abs() < 1e-9);
        // Noise can make the small one look faster.
        assert_eq!(Rate::through((32.0, 210e9), (1024.0, 200e9)), Rate::flat(200e9));
        assert_eq!(Rate::through((32.0, f64::NAN), (1024.0, 200e9)), Rate::flat(200e9));
    }

    #[test]
    fn the_roofline_takes_the_slower_side() {
        let rates = Machine::from(Gpu::find("h200").unwrap()).rates;
        let op = |flops: f64, bytes: f64| Op {
            class: OpClass::Gemm,
            times: 1.0,
            flops,
            bytes,
            extent: 1e9,
            kernels: 1.0,
        };
        assert!((rates.busy_s(&op(791.5e12, 1.0)) - 1.0).abs() < 1e-3);
        assert!((rates.busy_s(&op(1.0, 4.272e12)) - 1.0).abs() < 1e-3);
        assert!((rates.busy_s(&op(791.5e12, 4.272e12)) - 1.0).abs() < 1e-3);
    }
}
