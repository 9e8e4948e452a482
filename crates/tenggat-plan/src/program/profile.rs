//! What tells one training program from another, as far as time and memory go.

use serde::Serialize;

use super::Program;
use crate::cost::Precision;
use crate::model::Targets;

/// In which type adapters run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Adapters {
    /// In true f32: the input of every adapted layer is cast, the adapter's output is cast back and added.
    F32,
    /// In bf16 under autocast, parameters being f32.
    Bf16,
}

/// How quantised weights become factors of a bf16 product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expansion {
    /// 2 to 7 bits by PyTorch operations that keep bytes as long as they can; 8 bits cast and scaled. A
    /// recovery adapter makes the result pass through f32 once more.
    Bytes,
    /// 2 to 7 bits by way of 32-bit integers, as torchao does; 8 bits cast and scaled.
    Integers,
    /// One kernel that reads codes and writes bf16, in the backward pass too: bitsandbytes, Triton.
    Fused,
}

/// `torch.compile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compiles {
    /// There is no way to.
    Never,
    /// If it is asked to.
    IfAsked,
    /// Unless it is told not to.
    ByDefault,
}

/// How blocks that do not fit are brought from the host.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Swap {
    /// 1 if a block is only fetched, 2 if the one that makes room is written back.
    pub directions: f64,
    /// Share of the host link's rate that is reached. Unpinned memory reaches a third.
    pub link_share: f64,
}

/// How a program trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ProgramProfile {
    /// Which program.
    pub program: Program,
    /// Name on the command line.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// Versions that this is true of.
    pub versions: &'static str,
    /// Adapters' type.
    pub adapters: Adapters,
    /// Layers that carry an adapter unless the job says otherwise.
    pub targets: Targets,
    /// How quantised weights are expanded.
    pub expansion: Expansion,
    /// Elementwise traffic over that of the blocks of diffusers, which is counted in `work.rs`.
    pub elementwise: f64,
    /// Whether it compiles.
    pub compiles: Compiles,
    /// Whether blocks are recomputed in the backward pass unless the job says otherwise.
    pub checkpoints: bool,
    /// Blocks from the host.
    pub swap: Swap,
    /// Bytes per weight of the text encoder that stays on the card while the model trains, unless captions
    /// are encoded beforehand; 0 if it does not.
    pub text_encoder_bytes: f64,
    /// Where this was read.
    pub source: &'static str,
}

impl Expansion {
    /// Kernels, and bytes moved per weight, of one expansion of a matrix.
    ///
    /// Counted from the operations: 8 bits, cast and scale: 1 + 2 + 2 + 2. 2 and 4 bits divide a byte:
    /// shifted, masked, joined, shifted by the zero point, cast, scaled: 15. 3, 5 and 6 bits come in two
    /// planes: 24; 7 bits in three: 33. By way of integers every intermediate is 4 bytes.
    pub(super) fn of(self, precision: Precision) -> Option<[f64; 2]> {
        let stored = precision.bytes_per_weight();
        match (precision, self) {
            (Precision::F32 | Precision::Bf16, _) => None,
            (_, Self::Fused) => Some([1.0, stored + 2.0]),
            (Precision::Float8 | Precision::Int8, _) => Some([5.0, 7.0]),
            (Precision::Nf4, _) => Some([1.0, stored + 2.0]),
            (Precision::Uint(2 | 4), Self::Bytes) => Some([9.0, 15.0]),
            (Precision::Uint(7), Self::Bytes) => Some([24.0, 33.0]),
            (Precision::Uint(_), Self::Bytes) => Some([18.0, 24.0]),
            (Precision::Uint(2 | 4), Self::Integers) => Some([11.0, 27.0]),
            (Precision::Uint(_), Self::Integers) => Some([20.0, 36.0]),
        }
    }

    /// Whether the backward pass expands once more, rather than keeping what the forward pass expanded.
    pub(super) fn again_in_backward(self, precision: Precision) -> bool {
        self == Self::Fused || precision == Precision::Nf4
    }
}

/// Bytes per weight moved because a recovery adapter bypasses the short way (bf16 → f32 → bf16; 6 bytes
/// written).
pub(super) const RECOVERY_BYTES: f64 = 12.0;
/// Kernels of that.
pub(super) const RECOVERY_KERNELS: f64 = 2.0;
