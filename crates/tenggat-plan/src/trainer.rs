//! Other trainers for the same job, so that a user sees what he would wait elsewhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cost::{Machine, Modulation, Op, OpClass, Precision, StepConfig, Work};

/// A trainer whose steps are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trainer {
    /// This program.
    Tenggat,
    /// ostris/ai-toolkit 0.12: every linear is expanded in each forward pass and again when the block is computed
    /// again, which it always is; the LoRA runs in true f32; modulation is multiplied in every step; kernels are
    /// launched one by one from Python.
    AiToolkit,
}

impl fmt::Display for Trainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tenggat => "tenggat",
            Self::AiToolkit => "ai-toolkit",
        })
    }
}

/// A trainer that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown trainer `{0}`; use tenggat or ai-toolkit")]
pub struct UnknownTrainer(String);

impl FromStr for Trainer {
    type Err = UnknownTrainer;

    fn from_str(text: &str) -> Result<Self, UnknownTrainer> {
        match text.trim().to_lowercase().as_str() {
            "tenggat" => Ok(Self::Tenggat),
            "ai-toolkit" | "aitoolkit" | "ai_toolkit" => Ok(Self::AiToolkit),
            _ => Err(UnknownTrainer(text.trim().to_owned())),
        }
    }
}

impl Trainer {
    /// The job as this trainer would run it on a machine.
    ///
    /// tenggat multiplies on 8-bit units where the job wants it and the machine has them; ai-toolkit has neither that nor a
    /// modulation table, and computes every block again.
    pub fn adapt(self, config: &StepConfig, machine: &Machine) -> StepConfig {
        match self {
            Self::Tenggat => {
                let fp8_products = config.fp8_products && machine.rates.gemm_fp8.is_some();
                StepConfig { fp8_products, ..*config }
            }
            Self::AiToolkit => StepConfig {
                fp8_products: false,
                kept_blocks: 0,
                result_blocks: 0,
                offloaded_blocks: 0,
                modulation: Modulation::EveryStep,
                ..*config
            },
        }
    }

    /// Predicted seconds of one step of an adapted job.
    pub fn step_seconds(self, config: &StepConfig, machine: &Machine) -> f64 {
        match self {
            Self::Tenggat => machine.rates.step_seconds(&config.work()),
            Self::AiToolkit => {
                let work = upstream_work(config);
                // The device waits for the host where kernels are shorter than their launch.
                let device_s = machine.rates.seconds(&work);
                device_s.max(work.kernels() * EAGER_LAUNCH_S) + machine.rates.step_s
            }
        }
    }
}

/// Host time per kernel launched from Python, module calls and hooks included. Assumed.
const EAGER_LAUNCH_S: f64 = 7e-6;
/// Kernels and bytes per weight of expanding a quantised matrix to bf16, as torch operations one after the other.
/// 8 bits: cast and scale, 1 + 2 + 2 + 2. Fewer: planes are shifted, joined, cast, shifted by the zero point and
/// scaled; counted from the operations, not measured.
const EXPAND_8BIT: [f64; 2] = [2.0, 7.0];
const EXPAND_UINT: [f64; 2] = [12.0, 16.0];
/// Bytes per weight moved because a recovery adapter bypasses the fast path (bf16 → f32 → bf16; 6 bytes written).
const RECOVERY_BYTES: f64 = 12.0;
/// Elementwise traffic per token and block in units of c · 2 bytes, forward: norms 6, modulation 8, head norms in f32
/// 20, rotation in f32 20, joining streams 6, gates 10, GELU 8, clamps 4; the backward pass moves twice as much.
const UPSTREAM_ELEMENTWISE: f64 = 82.0;
/// Their kernels per block, forward.
const UPSTREAM_KERNELS: f64 = 60.0;
/// Linear layers per block that carry an adapter.
const MODULES: f64 = 14.0;

/// A step of ai-toolkit, with the products of [`StepConfig`] and its own way around them.
fn upstream_work(config: &StepConfig) -> Work {
    let dims = &config.dims;
    let layers = dims.layers as f64;
    let rows = config.shape.rows();
    let width = dims.width();
    let bare = StepConfig { fp8_products: false, modulation: Modulation::EveryStep, ..*config };
    let mut pass = Work::default();
    // Forward twice: once to train, once again for each block's backward pass.
    for (work, times) in [(bare.blocks_forward(), 2.0), (bare.blocks_backward(), 1.0)] {
        for op in &work.ops {
            match op.class {
                OpClass::Elementwise | OpClass::Dequantise => {}
                OpClass::LoraGemm => pass.push(in_f32(op, OpClass::LoraGemmF32, times)),
                OpClass::LoraWeights => pass.push(in_f32(op, OpClass::LoraWeights, times)),
                _ => pass.push(Op { times: op.times * times, ..*op }),
            }
        }
    }
    let elementwise = UPSTREAM_ELEMENTWISE * width * 2.0 * rows;
    traffic(&mut pass, OpClass::Elementwise, 4.0 * layers, elementwise, UPSTREAM_KERNELS);
    // Casts around each adapter: input to f32 (6 bytes a value), output scaled, cast and added (20), and the same
    // three more times for the second forward pass and the backward pass. Inputs of a block's layers are 11 c per
    // token, outputs 9 c.
    let casts = rows * width * (6.0 * 11.0 + 20.0 * 9.0);
    traffic(&mut pass, OpClass::Elementwise, 4.0 * layers, casts, 4.0 * MODULES);
    expansion(config, &mut pass);
    // Offloaded layers come for each of the three passes.
    traffic(&mut pass, OpClass::HostTransfer, 3.0 * config.offloaded(), config.block_stored_bytes(), 8.0);
    let mut work = Work::default();
    work.add(&pass, config.accumulation.max(1) as f64);
    work.add(&config.work().of(OpClass::Optimiser), 1.0);
    // The optimiser runs tensor by tensor.
    traffic(&mut work, OpClass::Optimiser, 1.0, 1.0, 2.0 * 2.0 * MODULES * layers);
    work
}

/// The same with a LoRA in true f32.
fn in_f32(op: &Op, class: OpClass, times: f64) -> Op {
    Op { class, times: op.times * times, bytes: 2.0 * op.bytes, ..*op }
}

/// Expansion of every matrix in both forward passes.
fn expansion(config: &StepConfig, work: &mut Work) {
    let weights = config.dims.linear_weights_per_block() + config.dims.modulation_weights_per_block();
    let layers = config.dims.layers as f64;
    let [kernels, bytes] = match config.precision {
        Precision::F32 | Precision::Bf16 => return,
        Precision::Float8 | Precision::Int8 => EXPAND_8BIT,
        Precision::Uint(_) => EXPAND_UINT,
    };
    traffic(work, OpClass::Dequantise, 2.0 * layers, weights * bytes, kernels * MODULES);
    if config.ara_rank.is_some() {
        traffic(work, OpClass::Dequantise, 2.0 * layers, weights * RECOVERY_BYTES, 2.0 * MODULES);
    }
}

fn traffic(work: &mut Work, class: OpClass, times: f64, bytes: f64, kernels: f64) {
    work.push(Op { class, times, flops: 0.0, bytes, extent: 0.0, kernels });
}
