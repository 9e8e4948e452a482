//! How fast a machine does each kind of work: from the catalogue for GPUs, from measurement for the rest.

use serde::{Deserialize, Serialize};

use super::work::{Op, OpClass, Work};
use crate::gpu::Gpu;

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

    /// The curve through two measurements `(extent, rate)`; falls back to a flat rate if the small one is not slower.
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
    /// Memory that bounds products of activations alone, bytes/s: they were computed just before, and a CPU still has
    /// them in its caches.
    pub activation_bytes_per_s: f64,
    /// From the host, bytes/s.
    pub host_bytes_per_s: f64,
    /// Seconds lost per kernel: the gap between two kernels of a graph on a GPU, starting the threads on a CPU.
    pub kernel_s: f64,
    /// Seconds per step outside all operations: drawing, reading back the loss.
    pub step_s: f64,
    /// Measured seconds of whole steps over those predicted from the rates above; 1 unless calibrated.
    pub step_scale: f64,
}

/// What `plan --calibrate` measured on a device, to be stored by the caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Name of the device as the caller knows it; a calibration is for this device only.
    pub device: String,
    /// Bytes per activation in the measurements (4 for f32).
    pub activation_bytes: f64,
    /// What was measured.
    pub rates: Rates,
    /// Memory for weights and activations in bytes.
    pub memory_bytes: f64,
}

/// Relative error of a predicted step that is not worth doubting the measured time per kernel for.
const STEP_DOUBT: f64 = 0.05;
/// Shortest time per kernel believed.
const LEAST_KERNEL_S: f64 = 1e-8;

impl Calibration {
    /// Corrects the rates by whole steps that were measured: one factor on all operations and the time per kernel.
    ///
    /// Micro-benchmarks run alone and warm; in a step, operations share caches with their neighbours. The factor α and
    /// the time β per kernel are those with the least sum of `((α·busy + β·kernels + step) / measured − 1)²`, and of
    /// `σ²·(β/β₀ − 1)²` for the β₀ that was measured alone: steps of a few sizes tell the two apart only roughly, and
    /// noise must not make up a β. With one step, or if no sensible pair comes out, the factor alone is set, by the
    /// mean of the ratios.
    pub fn settle(&mut self, steps: &[(Work, f64)]) {
        let sane: Vec<(f64, f64, f64)> = steps
            .iter()
            .filter(|(_, measured_s)| measured_s.is_finite() && *measured_s > 0.0)
            .map(|(work, measured_s)| {
                let busy_s: f64 = work.ops.iter().map(|op| self.rates.busy_s(op)).sum();
                let weight = 1.0 / measured_s;
                (busy_s * weight, work.kernels() * weight, 1.0 - self.rates.step_s * weight)
            })
            .collect();
        if sane.is_empty() {
            return;
        }
        let sum = |f: &dyn Fn(&(f64, f64, f64)) -> f64| sane.iter().map(f).sum::<f64>();
        let (aa, ab, bb) = (sum(&|s| s.0 * s.0), sum(&|s| s.0 * s.1), sum(&|s| s.1 * s.1));
        let (ay, by) = (sum(&|s| s.0 * s.2), sum(&|s| s.1 * s.2));
        let known = 1.0 / self.rates.kernel_s.max(LEAST_KERNEL_S);
        let (bb, by) = (bb + (STEP_DOUBT * known).powi(2), by + STEP_DOUBT * STEP_DOUBT * known);
        let determinant = aa * bb - ab * ab;
        let (alpha, beta) = ((ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant);
        // Nearly parallel columns would make the pair a matter of noise.
        let sound = determinant > 1e-6 * aa * bb && alpha > 0.0 && beta >= 0.0;
        if sane.len() > 1 && sound {
            self.rates.step_scale = alpha;
            self.rates.kernel_s = beta / alpha;
        } else {
            let ratio = sum(&|s| s.2 / (s.0 + s.1 * self.rates.kernel_s)) / sane.len() as f64;
            if ratio.is_finite() && ratio > 0.0 {
                self.rates.step_scale = ratio;
            }
        }
    }
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
    /// Whether any rate was assumed and not measured.
    pub assumed: bool,
}

/// Gap between two kernels of a captured graph; published measurements lie between 1 and 1.5 µs. Assumed.
const GRAPH_GAP_S: f64 = 1.3e-6;
/// Host work per step beside a captured graph. Assumed.
const STEP_S: f64 = 1e-3;
/// Shortest extent at which a LoRA product reaches half its rate as far as tiles go; memory bounds it besides.
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
            activation_bytes_per_s: bandwidth,
            host_bytes_per_s: gpu.host_gb_per_s * 1e9,
            kernel_s: GRAPH_GAP_S,
            step_s: STEP_S,
            step_scale: 1.0,
        };
        Self {
            name: gpu.name.to_owned(),
            rates,
            memory_bytes: gpu.memory_gb * 1e9,
            activation_bytes: 2.0,
            shares_host_memory: false,
            // Attention and launch figures are assumed for every family so far.
            assumed: true,
        }
    }
}

impl From<&Calibration> for Machine {
    fn from(calibration: &Calibration) -> Self {
        Self {
            name: calibration.device.clone(),
            rates: calibration.rates,
            memory_bytes: calibration.memory_bytes,
            activation_bytes: calibration.activation_bytes,
            shares_host_memory: true,
            assumed: false,
        }
    }
}

/// Products of a processor thread with wide vector units, FLOP/s; attention and memory as shares of what goes with it.
/// Assumed.
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
            activation_bytes_per_s: bytes_per_s,
            host_bytes_per_s: bytes_per_s,
            kernel_s: 5e-6,
            step_s: STEP_S,
            step_scale: 1.0,
        };
        Self {
            name: name.to_owned(),
            rates,
            memory_bytes,
            activation_bytes: 4.0,
            shares_host_memory: true,
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
            OpClass::LoraGemm => (self.lora_gemm, self.activation_bytes_per_s),
            OpClass::LoraGemmF32 => (self.lora_gemm_f32, self.activation_bytes_per_s),
            OpClass::LoraWeights => (self.gemm, self.lora_bytes_per_s),
            OpClass::AttentionForward => (self.attention_forward, self.activation_bytes_per_s),
            OpClass::AttentionBackward => (self.attention_backward, self.activation_bytes_per_s),
            OpClass::Elementwise | OpClass::Dequantise => (self.gemm, self.elementwise_bytes_per_s),
            OpClass::Optimiser => (self.gemm, self.optimiser_bytes_per_s),
            OpClass::HostTransfer => (self.gemm, self.host_bytes_per_s),
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

    /// Seconds of some work: its operations one after the other, and the gaps between their kernels.
    pub fn seconds(&self, work: &Work) -> f64 {
        let busy_s: f64 = work.ops.iter().map(|op| self.busy_s(op)).sum();
        (busy_s + work.kernels() * self.kernel_s) * self.step_scale
    }

    /// Seconds of one training step.
    pub fn step_seconds(&self, work: &Work) -> f64 {
        self.seconds(work) + self.step_s
    }

    /// Seconds of each kind of work in a step, gaps included, in the order of [`OpClass::ALL`].
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

    #[test]
    fn settling_finds_the_factor_and_the_time_per_kernel() {
        let truth =
            Rates { step_scale: 1.3, kernel_s: 8e-6, ..Machine::from(Gpu::find("4090").unwrap()).rates };
        let work = |tokens: f64, kernels: f64| {
            let mut work = Work::default();
            work.gemm(OpClass::Gemm, 1000.0, [tokens, 512.0, 512.0], [4.0, 4.0]);
            work.traffic(OpClass::Elementwise, 1.0, tokens * 1e4, kernels);
            work
        };
        let steps: Vec<(Work, f64)> = [(100.0, 500.0), (800.0, 300.0), (3000.0, 700.0)]
            .into_iter()
            .map(|(tokens, kernels)| work(tokens, kernels))
            .map(|work| (work.clone(), truth.step_seconds(&work)))
            .collect();
        let off = Rates { step_scale: 1.0, kernel_s: 6e-6, ..truth };
        let mut calibration =
            Calibration { device: "x".into(), activation_bytes: 4.0, rates: off, memory_bytes: 1e9 };
        calibration.settle(&steps);
        assert!((calibration.rates.step_scale - 1.3).abs() < 0.03, "{:?}", calibration.rates);
        assert!((calibration.rates.kernel_s - 8e-6).abs() < 0.5e-6, "{:?}", calibration.rates);
        // One step fixes the factor alone.
        calibration.rates = off;
        calibration.settle(&steps[..1]);
        assert!((calibration.rates.step_seconds(&steps[0].0) / steps[0].1 - 1.0).abs() < 0.05);
        assert_eq!(calibration.rates.kernel_s, off.kernel_s);
        calibration.settle(&[(Work::default(), f64::NAN)]);
    }

    #[test]
    fn a_calibration_survives_storing() {
        let machine = Machine::from(Gpu::find("4090").unwrap());
        let calibration = Calibration {
            device: "some CPU".into(),
            activation_bytes: 4.0,
            rates: machine.rates,
            memory_bytes: 16e9,
        };
        let text = serde_json::to_string(&calibration).unwrap();
        assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), calibration);
        assert!(!Machine::from(&calibration).assumed);
    }
}
