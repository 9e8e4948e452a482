//! Memory of a program's training step, part by part.

use super::profile::Adapters;
use super::work::ProgramStep;
use crate::cost::{CONTEXT_BYTES, GEMM_WORKSPACE_BYTES, MemoryPart, MemoryPlan};
use crate::model::BlockGroup;

/// Rows of c per token that PyTorch keeps of a block for its backward pass: inputs of norms, products,
/// activations, and the f32 copies that head norms and rotation make.
const KEPT_WIDTHS: f64 = 26.0;
/// Rows of c of an MLP's inside that are kept, per width of it: before and after the activation.
const KEPT_MLP: f64 = 2.0;
/// Rows of c of gradients that live at the same time.
const GRADIENT_WIDTHS: f64 = 10.0;
/// Inputs of a block's adapted layers in rows of c: three of the attention, out, and both of the MLP.
const ADAPTER_INPUTS: f64 = 5.0;
/// Share of what comes and goes that the allocator holds in pieces of the wrong size.
const FRAGMENTS: f64 = 0.12;
/// What stands around a run on the host.
const HOST_BYTES: f64 = 4e9;

impl ProgramStep<'_> {
    /// Bytes that one block keeps per row for its backward pass, eager.
    fn kept_bytes_per_row(&self, group: &BlockGroup) -> f64 {
        let width = group.width as f64;
        let inside = group.mlp_ratio();
        let own = (KEPT_WIDTHS + KEPT_MLP * inside) * width * 2.0;
        // f32 adapters keep their inputs once more, in f32.
        let adapters = match self.profile.adapters {
            Adapters::F32 => (ADAPTER_INPUTS + inside) * width * 4.0,
            Adapters::Bf16 => 0.0,
        };
        own + adapters
    }

    /// Memory of a run whose largest bucket this is.
    pub fn memory(&self) -> MemoryPlan {
        let model = self.model;
        let width = self.width();
        let rows = self.sequence.rows();
        let layers = model.layers() as f64;
        let swapped = (self.swapped_blocks as f64).min(layers);
        let resident = model.block_weights() * (1.0 - swapped / layers.max(1.0));
        let per_weight = self.precision.bytes_per_weight();
        let scales = self.precision.scale_bytes_per_weight(width);
        let lora = model.lora_parameters(self.rank, self.targets);
        let heaviest =
            |bytes: &dyn Fn(&BlockGroup) -> f64| model.blocks.iter().map(bytes).fold(0.0, f64::max);
        let kept = heaviest(&|group| self.kept_bytes_per_row(group) * rows);
        let gradients = GRADIENT_WIDTHS * width * 2.0 * rows;
        // The backward pass of a block wants its matrices expanded.
        let expanded =
            if self.precision.is_quantised() { heaviest(&|group| 2.0 * group.weights()) } else { 0.0 };
        let (inputs, all_kept) = if self.checkpointed {
            (layers * rows * width * 2.0, 0.0)
        } else {
            let of_group = |group: &BlockGroup| group.count as f64 * self.kept_bytes_per_row(group) * rows;
            (0.0, model.blocks.iter().map(of_group).sum())
        };
        let at_work = gradients + if self.checkpointed { kept } else { 0.0 };
        let text_encoder = if self.captions_encoded { 0.0 } else { self.profile.text_encoder_bytes }
            * model.text_encoder_weights;
        let ara = self.ara_rank.map_or(0.0, |rank| 2.0 * model.lora_parameters(rank, self.targets));
        let buffers = if swapped > 0.0 { 2.0 * self.stored_bytes_per_block() } else { 0.0 };
        let attention = rows * 4.0 * width;
        let passing = inputs + all_kept + at_work + expanded + attention;
        let parts = [
            (MemoryPart::Weights, resident * per_weight + model.other_weights() * per_weight.max(2.0)),
            (MemoryPart::QuantisationScales, resident * scales),
            (MemoryPart::RecoveryAdapter, ara),
            (MemoryPart::TextEncoder, text_encoder),
            (MemoryPart::Lora, lora * 4.0),
            (MemoryPart::Gradients, lora * 4.0),
            (MemoryPart::Optimiser, lora * self.optimiser.state_bytes(self.rank)),
            (MemoryPart::KeptActivations, all_kept),
            (MemoryPart::BlockInputs, inputs),
            (MemoryPart::BlockAtWork, at_work),
            (MemoryPart::AttentionWorkspace, attention),
            (MemoryPart::GemmWorkspace, GEMM_WORKSPACE_BYTES + expanded),
            (MemoryPart::OffloadedAtWork, buffers),
            (MemoryPart::Fragments, FRAGMENTS * passing),
            (MemoryPart::Context, CONTEXT_BYTES),
        ];
        let host = HOST_BYTES + swapped * self.stored_bytes_per_block();
        MemoryPlan { parts: parts.into_iter().filter(|(_, bytes)| *bytes > 0.0).collect(), host_bytes: host }
    }
}
