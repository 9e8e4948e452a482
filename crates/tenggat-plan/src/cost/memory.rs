//! Memory of a training run, part by part.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::rates::Machine;
use super::step::{FP8_BYTES, Modulation, StepConfig};

/// What memory is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryPart {
    /// Frozen weights as stored. Packed ones replace those in the file, and are as large.
    Weights,
    /// Scales and zero points of quantised weights.
    QuantisationScales,
    /// The accuracy recovery adapter.
    RecoveryAdapter,
    /// LoRA: 32-bit master weights, and a bf16 copy where products are bf16.
    Lora,
    /// Its gradients, 32-bit.
    Gradients,
    /// State of the optimiser.
    Optimiser,
    /// Modulation of the noise levels drawn ahead, where its matrices are not on the device.
    ModulationTable,
    /// Activations of the blocks that keep them, or some of them.
    KeptActivations,
    /// Inputs of the blocks that recompute.
    BlockInputs,
    /// The block at work: its activations if it computes again, and gradients on their way.
    BlockAtWork,
    /// Workspace of the attention's backward pass.
    AttentionWorkspace,
    /// Workspace of the products (on a processor the packed activations of one layer), and the expanded
    /// weights of the block at work.
    GemmWorkspace,
    /// Weights of offloaded blocks: the one at work and the next.
    OffloadedAtWork,
    /// The text encoder, where it stays on the card.
    TextEncoder,
    /// What the allocator holds in pieces of the wrong size.
    Fragments,
    /// What the program, the driver and its libraries take.
    Context,
}

impl fmt::Display for MemoryPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Weights => "weights",
            Self::QuantisationScales => "quantisation scales",
            Self::RecoveryAdapter => "recovery adapter",
            Self::Lora => "LoRA",
            Self::Gradients => "gradients",
            Self::Optimiser => "optimiser",
            Self::ModulationTable => "modulation ahead",
            Self::KeptActivations => "activations kept",
            Self::BlockInputs => "block inputs",
            Self::BlockAtWork => "block at work",
            Self::AttentionWorkspace => "attention workspace",
            Self::GemmWorkspace => "products, workspace",
            Self::OffloadedAtWork => "offloaded weights",
            Self::TextEncoder => "text encoder",
            Self::Fragments => "allocator",
            Self::Context => "program",
        })
    }
}

/// Memory by part, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Device memory; parts that are not used are left out. In JSON `parts_bytes`.
    #[serde(rename = "parts_bytes")]
    pub parts: Vec<(MemoryPart, f64)>,
    /// Host memory beside the device.
    pub host_bytes: f64,
}

impl MemoryPlan {
    /// Device memory in all.
    pub fn device_bytes(&self) -> f64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes allocated before the first step: weights, adapters, the optimiser's state, and what the program
    /// takes.
    pub fn standing_bytes(&self) -> f64 {
        use MemoryPart::{Context, Lora, Optimiser, QuantisationScales, RecoveryAdapter, Weights};
        let standing = [Weights, QuantisationScales, RecoveryAdapter, Lora, Optimiser, Context];
        standing.into_iter().map(|part| self.part(part)).sum()
    }

    /// Bytes of one part.
    pub fn part(&self, part: MemoryPart) -> f64 {
        self.parts.iter().filter(|(p, _)| *p == part).map(|(_, bytes)| bytes).sum()
    }
}

/// Driver, cuBLASLt, cuDNN and compiled kernels on a GPU. Assumed; 0.5 to 0.8 GB are commonly seen.
pub(crate) const CONTEXT_BYTES: f64 = 0.7e9;
/// cuBLASLt's workspaces, one for each of two queues.
pub(crate) const GEMM_WORKSPACE_BYTES: f64 = 2.0 * 32.0 * 1024.0 * 1024.0;
/// The code, the stacks of its threads, and the weights that these have expanded last, on a processor: 1.5 MB
/// a thread and product.
const PROCESSOR_BYTES: f64 = 0.03e9;
/// What stands around a run on the host: tokenizer, pictures on their way. Assumed.
const AROUND_BYTES: f64 = 0.5e9;
/// Most that the results of the noise levels drawn ahead may take, and most steps that are drawn.
const TABLE_BYTES: f64 = 256e6;
const MOST_MODULATION_STEPS: u64 = 64;
/// Rows of c that one token keeps for the backward pass, `Before`, `After` and `Tape` of the transformer:
/// before the attention x, normed, qkv (5); q, k, v, o (4); after it attended, x₁, normed, MLP before and
/// after GELU, output (12).
const KEPT_WIDTHS: f64 = 21.0;
/// Rows of c of the results of the attention and of the MLP.
const RESULT_WIDTHS: f64 = 2.0;
/// Columns of rank r that it keeps: q, k, v, out, MLP in, MLP out.
const KEPT_RANKS: f64 = 6.0;
/// Rows of c of gradients that live at the same time: stream (1), MLP (4 + 1), q, k, v and their sum (6).
const WORKING_WIDTHS: f64 = 12.0;
/// Rows of c that the widest layer packs in its backward pass on a processor: input and output gradient of
/// the MLP.
const PACKED_WIDTHS: f64 = 5.0;

impl StepConfig {
    /// Bytes that one block keeps for its backward pass.
    pub fn activation_bytes_per_block(&self) -> f64 {
        let (width, heads) = (self.dims.width(), self.dims.heads as f64);
        let values = KEPT_WIDTHS * width + KEPT_RANKS * self.rank as f64;
        // 32-bit statistics: two norms (2 each), head norms (2 per head), log-sum-exp (1 per head).
        let statistics = 4.0 + 3.0 * heads;
        self.shape.rows() * (values * self.activation_bytes + 4.0 * statistics)
    }

    /// Bytes of the results that a block keeps when it recomputes the rest: those of the attention and the
    /// MLP, with what their backward passes need.
    fn result_bytes_per_block(&self) -> f64 {
        let values = RESULT_WIDTHS * self.dims.width() + self.rank as f64;
        self.shape.rows() * (values * self.activation_bytes + 4.0 * self.dims.heads as f64)
    }

    /// Bytes of the modulation matrices as stored.
    pub fn modulation_bytes(&self) -> f64 {
        let weights = self.dims.layers as f64 * self.dims.modulation_weights_per_block();
        let scales = self.precision.scale_bytes_per_weight(self.dims.width());
        weights * (self.precision.bytes_per_weight() + scales)
    }

    /// Bytes of the modulation of one step, `12·c` numbers per block and picture.
    pub(super) fn table_bytes_per_step(&self) -> f64 {
        let levels = self.shape.batch as f64 * self.accumulation.max(1) as f64;
        levels * self.dims.layers as f64 * 12.0 * self.dims.width() * self.activation_bytes
    }

    /// Steps whose noise levels are drawn ahead together, where modulation is a table: as many as take little
    /// memory.
    pub fn modulation_steps(&self) -> u64 {
        ((TABLE_BYTES / self.table_bytes_per_step().max(1.0)) as u64).clamp(1, MOST_MODULATION_STEPS)
    }

    /// Memory of a run whose largest bucket is this one.
    pub fn memory(&self, machine: &Machine) -> MemoryPlan {
        let layers = self.dims.layers as f64;
        let width = self.dims.width();
        let lora = self.dims.lora_parameters(self.rank);
        let modulation = layers * self.dims.modulation_weights_per_block();
        let per_block_weights = self.dims.linear_weights_per_block();
        let linear = (layers - self.offloaded()) * per_block_weights;
        let (resident, table) = match self.modulation {
            Modulation::EveryStep => (modulation, 0.0),
            Modulation::Table { every_steps } => (0.0, every_steps as f64 * self.table_bytes_per_step()),
        };
        let per_weight = self.precision.bytes_per_weight();
        let scales = self.precision.scale_bytes_per_weight(width);
        // 8-bit operands are stored twice, each with an f32 per row.
        let (per_linear_weight, linear_scales) =
            if self.fp8_products { (2.0 * FP8_BYTES, 8.0 / width) } else { (per_weight, scales) };
        let (again, partly) = (self.recomputed_blocks() as f64, self.partly_recomputed_blocks() as f64);
        let rows = self.shape.rows();
        let per_block = self.activation_bytes_per_block();
        // A block's part of it is rounded when it is the block's turn.
        let copy = if self.activation_bytes < 4.0 { self.activation_bytes / layers } else { 0.0 };
        let working = WORKING_WIDTHS * width * rows * self.activation_bytes;
        // A processor expands a few columns at a time, into scratch that every thread has.
        let expanded = if self.fp8_products {
            // The widest layer's other operand.
            4.0 * width * rows * FP8_BYTES
        } else if self.precision.is_quantised() && !machine.shares_host_memory {
            self.dims.linear_weights_per_block() * self.operand_bytes()
        } else {
            0.0
        };
        // Below this the ends of the model would have to be quantised too; they are 0.1 % of it.
        let ends = self.dims.other_weights() * per_weight.max(2.0);
        // Of the weight's type; beside quantised weights products pack a little at a time.
        let packed =
            if self.precision.is_quantised() { 0.0 } else { PACKED_WIDTHS * width * rows * per_weight };
        let (context, workspace) = if machine.shares_host_memory {
            (PROCESSOR_BYTES, packed)
        } else {
            (CONTEXT_BYTES, GEMM_WORKSPACE_BYTES)
        };
        // One is used while the next comes. Files are mapped into a processor's memory, which can drop them.
        let at_work = if machine.shares_host_memory { 0.0 } else { self.offloaded().min(2.0) };
        // cuDNN adds up dQ in f32 and keeps one sum per row and head.
        let attention =
            if machine.shares_host_memory { 0.0 } else { rows * 4.0 * (width + self.dims.heads as f64) };
        let parts = [
            (MemoryPart::Weights, linear * per_linear_weight + resident * per_weight + ends),
            (MemoryPart::QuantisationScales, linear * linear_scales + resident * scales),
            (MemoryPart::RecoveryAdapter, self.ara_rank.map_or(0.0, |r| 2.0 * self.dims.lora_parameters(r))),
            (MemoryPart::Lora, lora * (4.0 + copy)),
            (MemoryPart::Gradients, lora * 4.0),
            (MemoryPart::Optimiser, lora * self.optimiser.state_bytes(self.rank)),
            (MemoryPart::ModulationTable, table),
            (
                MemoryPart::KeptActivations,
                (layers - again) * per_block + partly * self.result_bytes_per_block(),
            ),
            (MemoryPart::BlockInputs, again * rows * width * self.activation_bytes),
            (MemoryPart::BlockAtWork, working + if again > 0.0 { per_block } else { 0.0 }),
            (MemoryPart::AttentionWorkspace, attention),
            (MemoryPart::GemmWorkspace, workspace + expanded),
            (MemoryPart::OffloadedAtWork, at_work * self.block_stored_bytes()),
            (MemoryPart::Context, context),
        ];
        // A processor reads modulation matrices from their file, one at a time.
        let streamed = self.modulation != Modulation::EveryStep && !machine.shares_host_memory;
        let modulation = if streamed { self.modulation_bytes() } else { 0.0 };
        // The system keeps the file's pages as long as there is room.
        let offloaded = if machine.shares_host_memory {
            0.0
        } else {
            self.offloaded() * per_block_weights * (per_weight + scales)
        };
        MemoryPlan {
            parts: parts.into_iter().filter(|(_, bytes)| *bytes > 0.0).collect(),
            // A copy of the LoRA in 16 bits while it is written.
            host_bytes: AROUND_BYTES + modulation + offloaded + 2.0 * lora,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{ModelDims, Optimiser, Precision, StepShape};

    fn config(dims: ModelDims) -> StepConfig {
        StepConfig {
            dims,
            shape: StepShape { batch: 1, image_tokens: 256, text_tokens: 128 },
            rank: 16,
            precision: Precision::Uint(3),
            ara_rank: None,
            activation_bytes: 4.0,
            fp8_products: false,
            keep_all: 0,
            keep_results: 0,
            offloaded_blocks: 0,
            modulation: Modulation::EveryStep,
            optimiser: Optimiser::AdamW,
            accumulation: 1,
        }
    }

    /// 8-bit operands take two bytes per weight and a scale per row, whatever they were quantised to;
    /// modulation stays.
    #[test]
    fn operands_in_8_bit_floats_are_there_twice() {
        let machine = Machine::from(crate::Gpu::find("H200").unwrap());
        for precision in [Precision::Uint(3), Precision::Float8, Precision::Bf16] {
            let wide =
                StepConfig { precision, modulation: Modulation::EveryStep, ..config(ModelDims::QWEN_IMAGE) };
            let narrow = StepConfig { fp8_products: true, ..wide };
            let bytes = |step: &StepConfig| step.memory(&machine).part(MemoryPart::Weights);
            let weights = wide.dims.layers as f64 * wide.dims.linear_weights_per_block();
            let more = weights * (2.0 - precision.bytes_per_weight());
            assert!((bytes(&narrow) - bytes(&wide) - more).abs() < 1.0, "{precision:?}");
            let seconds = |step: &StepConfig| machine.rates.step_seconds(&step.work());
            assert!(seconds(&narrow) < seconds(&wide), "{precision:?}");
        }
    }
}
