//! What a pass asks of a machine: operations, each with its arithmetic and its memory traffic.

use serde::{Deserialize, Serialize};

/// Kinds of operations that machines do at different rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpClass {
    /// Product of activations with a frozen matrix, in the machine's usual type (bf16, or f32 on a CPU).
    Gemm,
    /// The same on 8-bit floating-point units.
    GemmFp8,
    /// A product in which one side is as short as the rank.
    LoraGemm,
    /// The same in 32-bit floats without tensor cores.
    LoraGemmF32,
    /// The matrices of a LoRA and their gradients on their way through memory, once per product. Products
    /// with few rows cost little else.
    LoraWeights,
    /// Attention, forward.
    AttentionForward,
    /// Attention, backward.
    AttentionBackward,
    /// Norms, gates, activations, rotations, casts: bound by memory.
    Elementwise,
    /// Expansion of quantised weights.
    Dequantise,
    /// Clipping and optimiser.
    Optimiser,
    /// Transfer from the host that the machine waits for.
    HostTransfer,
    /// Transfer from the host while the machine is at work.
    #[serde(rename = "transfer_ahead")]
    Prefetch,
}

impl OpClass {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Gemm,
        Self::GemmFp8,
        Self::LoraGemm,
        Self::LoraGemmF32,
        Self::LoraWeights,
        Self::AttentionForward,
        Self::AttentionBackward,
        Self::Elementwise,
        Self::Dequantise,
        Self::Optimiser,
        Self::HostTransfer,
        Self::Prefetch,
    ];
}

/// Some operations of the same kind and shape.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// Kind.
    pub class: OpClass,
    /// How often it is done; may be a fraction where it is not done in every step.
    pub times: f64,
    /// Floating-point operations each, a multiply-add counting as two.
    pub flops: f64,
    /// Bytes read and written each.
    pub bytes: f64,
    /// The extent that decides how well the machine is filled: rows of a product, rank of a LoRA product,
    /// tokens of an attention. Unused by the others.
    pub extent: f64,
    /// Kernels each.
    pub kernels: f64,
}

/// The work of a pass or a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Its operations.
    pub ops: Vec<Op>,
}

impl Work {
    /// Adds operations.
    pub fn push(&mut self, op: Op) {
        if op.times > 0.0 && (op.flops > 0.0 || op.bytes > 0.0) {
            self.ops.push(op);
        }
    }

    /// Adds all operations of `other`, `times` as often.
    pub fn add(&mut self, other: &Self, times: f64) {
        for op in &other.ops {
            self.push(Op { times: op.times * times, ..*op });
        }
    }

    /// A product `[m, k] · [k, n]` done `times` times; both operands and the result move once.
    ///
    /// FLOPs `2·m·n·k`; bytes `a·(m·k + m·n) + w·k·n` with `a` bytes per activation and `w` per weight.
    pub(super) fn gemm(&mut self, class: OpClass, times: f64, [m, n, k]: [f64; 3], [a, w]: [f64; 2]) {
        let bytes = a * (m * k + m * n) + w * k * n;
        self.push(Op { class, times, flops: 2.0 * m * n * k, bytes, extent: m, kernels: 1.0 });
    }

    /// Memory-bound work.
    pub(crate) fn traffic(&mut self, class: OpClass, times: f64, bytes: f64, kernels: f64) {
        self.push(Op { class, times, flops: 0.0, bytes, extent: 0.0, kernels });
    }

    /// Floating-point operations in all.
    pub fn flops(&self) -> f64 {
        self.ops.iter().map(|op| op.times * op.flops).sum()
    }

    /// Bytes read and written in all.
    pub fn bytes(&self) -> f64 {
        self.ops.iter().map(|op| op.times * op.bytes).sum()
    }

    /// Kernels in all.
    pub fn kernels(&self) -> f64 {
        self.ops.iter().map(|op| op.times * op.kernels).sum()
    }

    /// The part that is of one kind.
    pub fn of(&self, class: OpClass) -> Self {
        Self { ops: self.ops.iter().filter(|op| op.class == class).copied().collect() }
    }
}
