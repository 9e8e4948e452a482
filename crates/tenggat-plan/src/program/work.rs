//! One training step of a program, from its profile and the model's dimensions.
//!
//! c is the width of a stream, m its rows. Blocks are computed forward, forward again where they are
//! checkpointed, and backward.

use serde::{Deserialize, Serialize};

use super::profile::{Adapters, ProgramProfile, RECOVERY_BYTES, RECOVERY_KERNELS};
use crate::cost::{Machine, Op, OpClass, Optimiser, Precision, Work};
use crate::model::{BlockGroup, Linear, ModelProfile, Streams, Targets};

/// What the transformer sees in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// Images per step.
    pub batch: u64,
    /// Tokens of the image that is trained on.
    pub image_tokens: u64,
    /// Tokens of its control images.
    pub control_tokens: u64,
    /// Text tokens, with what the encoder makes of control images.
    pub text_tokens: u64,
}

impl Sequence {
    /// Rows of the image stream in one sample.
    pub(super) fn image_rows(&self) -> f64 {
        self.image_tokens as f64 + self.control_tokens as f64
    }

    /// Tokens of one sample.
    pub fn tokens(&self) -> f64 {
        self.image_rows() + self.text_tokens as f64
    }

    /// Rows of both streams, all samples.
    pub(super) fn rows(&self) -> f64 {
        self.batch as f64 * self.tokens()
    }
}

/// A training step of a program.
#[derive(Debug, Clone, Copy)]
pub struct ProgramStep<'a> {
    /// The program.
    pub profile: &'a ProgramProfile,
    /// The model.
    pub model: &'a ModelProfile,
    /// What it sees.
    pub sequence: Sequence,
    /// Rank of the adapters.
    pub rank: u64,
    /// Layers that carry one.
    pub targets: Targets,
    /// Storage of the frozen weights.
    pub precision: Precision,
    /// Rank of an accuracy recovery adapter.
    pub ara_rank: Option<u64>,
    /// Optimiser.
    pub optimiser: Optimiser,
    /// Batches per optimiser step.
    pub accumulation: u64,
    /// Whether `torch.compile` is on.
    pub compiled: bool,
    /// Whether blocks are recomputed in the backward pass.
    pub checkpointed: bool,
    /// Blocks that are brought from the host for every pass.
    pub swapped_blocks: u64,
    /// Whether captions are encoded before the training, so that the text encoder leaves the card.
    pub captions_encoded: bool,
    /// Whether it runs on Windows, whose driver model makes launches more expensive and shares the card with
    /// the desktop.
    pub on_windows: bool,
}

/// Host time per kernel launched from Python, module calls and hooks included. Reports at 512 px on fast
/// cards, which wait for the host, want 16 to 23 µs on Linux and 36 to 38 µs on Windows.
const LAUNCH_S: f64 = 18e-6;
const WINDOWS_LAUNCH_S: f64 = 36e-6;
/// How much slower the same card is under Windows where it does not wait for the host: reported as 1.4
/// (FLUX.1, RTX 3090) and 1.4 to 1.6 (Qwen-Image, RTX 5090), with other settings changed as well.
const WINDOWS_SLOWNESS: f64 = 1.3;
/// Share of the elementwise traffic that is left when `torch.compile` has fused it, and of the kernels. It is
/// reported to save 10 to 25 % of a step.
const COMPILED_TRAFFIC: f64 = 0.45;
const COMPILED_KERNELS: f64 = 0.35;
/// Elementwise traffic per row and block in units of c · 2 bytes, forward: two norms with modulation 14,
/// gates and sums 10.
const NORMS_AND_GATES: f64 = 24.0;
/// Head norms and rotation, both in f32, of q and k together.
const HEADS: f64 = 40.0;
/// Joining two streams for the attention and parting them again; clamps against overflow.
const JOINING: f64 = 10.0;
/// Activation of the MLP, per width of its inside: read and written.
const ACTIVATION: f64 = 2.0;
/// Gate of an attention's output.
const ATTENTION_GATE: f64 = 6.0;
/// Kernels of all that, per block and stream.
const ELEMENTWISE_KERNELS: f64 = 30.0;
/// A backward pass moves twice what a forward pass does.
const BACKWARD_TRAFFIC: f64 = 2.0;
/// Bytes per value of casting an adapter's input to f32 (read 2, write 4) and, per output, of scaling (8),
/// casting (6) and adding (6).
const F32_CASTS: [f64; 2] = [6.0, 20.0];
/// Bytes per output of scaling (4) and adding (6) a bf16 adapter's output.
const BF16_CASTS: [f64; 2] = [0.0, 10.0];
/// Kernels around an adapter's products.
const CAST_KERNELS: f64 = 4.0;
/// Kernels per adapted layer of a clipping and an optimiser that go through tensors in lists.
const OPTIMISER_KERNELS: f64 = 2.0;

impl ProgramStep<'_> {
    fn forwards(&self) -> f64 {
        if self.checkpointed { 2.0 } else { 1.0 }
    }

    /// Rows of each stream of a group: matrices of their own, or one for all.
    fn streams(&self, group: &BlockGroup) -> Vec<f64> {
        let (batch, sequence) = (self.sequence.batch as f64, &self.sequence);
        match group.streams {
            Streams::Two => vec![batch * sequence.image_rows(), batch * sequence.text_tokens as f64],
            Streams::One => vec![batch * sequence.tokens()],
        }
    }

    /// The step's operations.
    pub fn work(&self) -> Work {
        let mut pass = Work::default();
        for group in self.model.blocks.iter() {
            self.products(&mut pass, group);
            self.attention(&mut pass, group);
            self.elementwise(&mut pass, group);
            self.expansion(&mut pass, group);
        }
        self.ends(&mut pass);
        self.swapping(&mut pass);
        let mut work = Work::default();
        work.add(&pass, self.accumulation.max(1) as f64);
        self.update(&mut work);
        work
    }

    fn products(&self, work: &mut Work, group: &BlockGroup) {
        let count = group.count as f64;
        let (attention, mlp) = (group.attention_linears(), group.mlp_linears());
        let adapted_attention = self.targets.streams_of_attention(group.streams) as usize;
        let adapted_mlp = self.targets.streams_of_mlp(group.streams) as usize;
        for (stream, rows) in self.streams(group).into_iter().enumerate() {
            for (linears, adapted) in [(&attention, adapted_attention), (&mlp, adapted_mlp)] {
                for linear in linears {
                    self.linear(work, count, rows, *linear, stream < adapted);
                }
            }
            if let Some(linear) = group.modulation_linear() {
                let batch = self.sequence.batch as f64;
                self.base(work, count * self.forwards(), batch, linear);
                if self.targets.has_modulation() {
                    self.adapter(work, count, batch, linear, self.rank as f64, true);
                }
            }
        }
    }

    fn linear(&self, work: &mut Work, count: f64, rows: f64, linear: Linear, adapted: bool) {
        self.base(work, count * (self.forwards() + 1.0), rows, linear);
        if adapted {
            self.adapter(work, count, rows, linear, self.rank as f64, true);
        }
        if let Some(rank) = self.ara_rank {
            self.adapter(work, count, rows, linear, rank as f64, false);
        }
    }

    fn base(&self, work: &mut Work, times: f64, rows: f64, [out, input]: Linear) {
        let bytes = 2.0 * (rows * (out + input) + out * input);
        let flops = 2.0 * rows * out * input;
        work.push(Op { class: OpClass::Gemm, times, flops, bytes, extent: rows, kernels: 1.0 });
    }

    /// Two products forward, four backward if it is trained and two if not, and the casts around them.
    /// Recovery adapters run in the base's type.
    fn adapter(
        &self,
        work: &mut Work,
        count: f64,
        rows: f64,
        [out, input]: Linear,
        rank: f64,
        trained: bool,
    ) {
        let wide = trained && self.profile.adapters == Adapters::F32;
        let (class, value_bytes) = if wide { (OpClass::LoraGemmF32, 4.0) } else { (OpClass::LoraGemm, 2.0) };
        let backward = if trained { 2.0 } else { 1.0 };
        for extent in [out, input] {
            work.push(Op {
                class,
                times: count * (self.forwards() + backward),
                flops: 2.0 * rows * rank * extent,
                bytes: value_bytes * (rows * (rank + extent) + rank * extent),
                extent: rank.min(rows),
                kernels: 1.0,
            });
        }
        let [per_input, per_output] = if wide { F32_CASTS } else { BF16_CASTS };
        let casts = rows * (per_input * input + per_output * out) * self.fused();
        let kernels = CAST_KERNELS * self.fused_kernels();
        let times = count * (self.forwards() + BACKWARD_TRAFFIC);
        work.traffic(OpClass::Elementwise, times, casts, kernels);
    }

    fn attention(&self, work: &mut Work, group: &BlockGroup) {
        let (tokens, width) = (self.sequence.tokens(), group.width as f64);
        for (class, times, factor, tensors) in [
            (OpClass::AttentionForward, self.forwards(), 4.0, 4.0),
            (OpClass::AttentionBackward, 1.0, 10.0, 8.0),
        ] {
            work.push(Op {
                class,
                times: group.count as f64 * times,
                flops: self.sequence.batch as f64 * factor * tokens * tokens * width,
                bytes: tensors * self.sequence.rows() * width * 2.0,
                extent: tokens,
                kernels: 2.0,
            });
        }
    }

    fn elementwise(&self, work: &mut Work, group: &BlockGroup) {
        let two = group.streams == Streams::Two;
        let units = NORMS_AND_GATES
            + HEADS * group.rotated_share()
            + if two { JOINING } else { 0.0 }
            + ACTIVATION * group.mlp_ratio()
            + if group.gated_attention { ATTENTION_GATE } else { 0.0 };
        let bytes = units * group.width as f64 * 2.0 * self.sequence.rows() * self.profile.elementwise;
        let kernels = ELEMENTWISE_KERNELS * group.streams();
        let times = group.count as f64 * (self.forwards() + BACKWARD_TRAFFIC);
        work.traffic(OpClass::Elementwise, times, bytes * self.fused(), kernels * self.fused_kernels());
    }

    fn expansion(&self, work: &mut Work, group: &BlockGroup) {
        let Some([kernels, bytes]) = self.profile.expansion.of(self.precision) else { return };
        let stored = self.precision.bytes_per_weight();
        // Compiled, the chain of operations is one kernel.
        let [kernels, bytes] = if self.compiled { [1.0, stored + 2.0] } else { [kernels, bytes] };
        let again = self.profile.expansion.again_in_backward(self.precision);
        let times = group.count as f64 * (self.forwards() + if again { 1.0 } else { 0.0 });
        let matrices = group.streams()
            * (group.attention_linears().len()
                + group.mlp_linears().len()
                + usize::from(group.modulation_linear().is_some())) as f64;
        work.traffic(OpClass::Dequantise, times, group.weights() * bytes, kernels * matrices);
        if self.ara_rank.is_some() && !self.compiled {
            let bytes = group.weights() * RECOVERY_BYTES;
            work.traffic(OpClass::Dequantise, times, bytes, RECOVERY_KERNELS * matrices);
        }
    }

    /// Outside the blocks: inputs and output.
    fn ends(&self, work: &mut Work) {
        let width = self.model.blocks.first().map_or(0.0, |group| group.width as f64);
        let batch = self.sequence.batch as f64;
        let image = batch * self.sequence.image_rows();
        let text = batch * self.sequence.text_tokens as f64;
        let latent = self.model.in_channels as f64;
        for (rows, linear) in
            [(image, [width, latent]), (text, [width, self.model.joint_dim as f64]), (image, [latent, width])]
        {
            self.base(work, 2.0, rows, linear);
        }
    }

    /// Blocks on their way from the host, for every pass.
    fn swapping(&self, work: &mut Work) {
        let swap = self.profile.swap;
        let passes = self.forwards() + 1.0;
        let bytes = self.swapped_blocks as f64 * self.stored_bytes_per_block();
        let effective = bytes * swap.directions / swap.link_share;
        work.traffic(OpClass::HostTransfer, passes, effective, 0.0);
    }

    fn update(&self, work: &mut Work) {
        let parameters = self.model.lora_parameters(self.rank, self.targets);
        let bytes = parameters * self.optimiser.traffic_bytes(self.rank);
        let modules = 14.0 * self.model.layers() as f64;
        work.traffic(OpClass::Optimiser, 1.0, bytes, OPTIMISER_KERNELS * modules);
    }

    /// Bytes of an average block as it is stored.
    pub(super) fn stored_bytes_per_block(&self) -> f64 {
        let per_weight =
            self.precision.bytes_per_weight() + self.precision.scale_bytes_per_weight(self.width());
        self.model.block_weights() * per_weight / (self.model.layers().max(1) as f64)
    }

    pub(super) fn width(&self) -> f64 {
        self.model.blocks.first().map_or(1.0, |group| group.width as f64)
    }

    fn fused(&self) -> f64 {
        if self.compiled { COMPILED_TRAFFIC } else { 1.0 }
    }

    fn fused_kernels(&self) -> f64 {
        if self.compiled { COMPILED_KERNELS } else { 1.0 }
    }

    /// Seconds of a step.
    pub fn seconds(&self, machine: &Machine) -> f64 {
        let work = self.work();
        let mut rates = machine.rates;
        rates.attention_forward.per_s *= machine.flash_attention_2;
        rates.attention_backward.per_s *= machine.flash_attention_2;
        let (launch_s, slowness) =
            if self.on_windows { (WINDOWS_LAUNCH_S, WINDOWS_SLOWNESS) } else { (LAUNCH_S, 1.0) };
        // The card waits for the host where kernels are shorter than their launch.
        (slowness * rates.seconds(&work)).max(work.kernels() * launch_s) + rates.step_s
    }

    /// Seconds of a forward pass of one image, as sampling makes it.
    pub fn forward_seconds(&self, machine: &Machine) -> f64 {
        let sequence = Sequence { batch: 1, ..self.sequence };
        let step = Self { sequence, accumulation: 1, checkpointed: false, ..*self };
        // Forward and backward are a third and two thirds, as far as products go.
        step.seconds(machine) / 3.0
    }
}
