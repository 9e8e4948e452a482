//! One training step of tenggat, operation by operation.
//!
//! The lists follow `tenggat-models`, `transformer/`: `stream.rs` for everything outside the attention,
//! `double.rs` for the attention, `linear.rs` and `lora.rs` for the products. c is the width, m the rows of a
//! stream.

use serde::{Deserialize, Serialize};

use super::dims::{ModelDims, StepShape};
use super::precision::Precision;
use super::work::{Op, OpClass, Work};

/// How the modulation matrices, a third of all weights, are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modulation {
    /// They lie on the device and are multiplied in every step.
    EveryStep,
    /// They lie on the host and pass through the device once every few steps, whose timesteps are drawn
    /// ahead.
    Table {
        /// Steps between two passes.
        every_steps: u64,
    },
}

/// Optimisers, as far as time and memory see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimiser {
    /// Two 32-bit moments per parameter.
    AdamW,
    /// Two 8-bit moments, with one 32-bit scale each per 256 parameters.
    AdamW8bit,
    /// One 32-bit momentum per parameter.
    Lion,
    /// Two 32-bit moments, a sum of gradients and the start per parameter.
    Prodigy,
    /// One 32-bit number per row and column of a matrix.
    Adafactor,
}

impl Optimiser {
    /// Bytes of state per parameter of a LoRA of this rank.
    pub fn state_bytes(self, rank: u64) -> f64 {
        match self {
            Self::AdamW => 8.0,
            Self::AdamW8bit => 2.0 + 2.0 * 4.0 / 256.0,
            Self::Lion => 4.0,
            Self::Prodigy => 16.0,
            // The long side of a matrix has one number per `rank` parameters; the short side is nothing
            // beside it.
            Self::Adafactor => 4.0 / rank.max(1) as f64,
        }
    }

    /// Bytes moved per parameter and step: gradient read for the norm (4) and again (4), weight read and
    /// written (8), state read and written. Prodigy reads the weight twice, Adafactor the gradient three
    /// times more.
    pub(crate) fn traffic_bytes(self, rank: u64) -> f64 {
        let more = match self {
            Self::Prodigy => 4.0,
            Self::Adafactor => 12.0,
            Self::AdamW | Self::AdamW8bit | Self::Lion => 0.0,
        };
        16.0 + 2.0 * self.state_bytes(rank) + more
    }
}

/// A training step, as far as its cost goes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepConfig {
    /// The model.
    pub dims: ModelDims,
    /// The shape bucket.
    pub shape: StepShape,
    /// Rank of the LoRA on all 14 linears of each block.
    pub rank: u64,
    /// Storage of the block weights.
    pub precision: Precision,
    /// Rank of an accuracy recovery adapter, frozen and always on.
    pub ara_rank: Option<u64>,
    /// Bytes per activation: 2 (bf16) or 4 (f32).
    pub activation_bytes: f64,
    /// Whether the frozen linears of the blocks are multiplied on 8-bit floating-point units, which take
    /// codes that are kept twice, once transposed.
    pub fp8_products: bool,
    /// Blocks that keep all their activations for the backward pass; the others recompute them.
    #[serde(rename = "kept_blocks")]
    pub keep_all: u64,
    /// Blocks among those others that keep the results of attention and MLP and recompute the rest.
    #[serde(rename = "result_blocks")]
    pub keep_results: u64,
    /// Blocks whose quantised weights stay in their file and are read from it for every pass.
    pub offloaded_blocks: u64,
    /// Use of the modulation matrices.
    pub modulation: Modulation,
    /// Optimiser.
    pub optimiser: Optimiser,
    /// Batches per optimiser step.
    pub accumulation: u64,
}

/// A linear layer of a stream: output and input width in units of c, and LoRA modules that share its input.
type Linear = [f64; 3];
/// Before the attention: q, k, v in one product.
const BEFORE: [Linear; 1] = [[3.0, 1.0, 3.0]];
/// After it: output projection and MLP.
const AFTER: [Linear; 3] = [[1.0, 1.0, 1.0], [4.0, 1.0, 1.0], MLP_OUT];
const MLP_OUT: Linear = [1.0, 4.0, 1.0];

/// Elementwise traffic in units of `c · rows · activation bytes`, and kernels.
///
/// Before the attention, forward: norm 2, head norms with rotation 6. After it: gather 2, gates 2 · 3, norm
/// 2, GELU 8.
const BEFORE_FORWARD: [f64; 2] = [8.0, 2.0];
const AFTER_FORWARD: [f64; 2] = [18.0, 5.0];
/// Backward: gates 2 · 3, GELU 12, norm 4, gather and scatter 4; then head norms 9, norm 4.
const AFTER_BACKWARD: [f64; 2] = [26.0, 6.0];
const BEFORE_BACKWARD: [f64; 2] = [13.0, 2.0];

/// Bytes of an 8-bit float.
pub(super) const FP8_BYTES: f64 = 1.0;
/// Bytes of a parameter's gradient.
const GRADIENT_BYTES: f64 = 4.0;

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Forward,
    Backward,
}

impl StepConfig {
    fn layers(&self) -> f64 {
        self.dims.layers as f64
    }

    /// Blocks that compute their activations twice, or some of them.
    pub fn recomputed_blocks(&self) -> u64 {
        self.dims.layers.saturating_sub(self.keep_all)
    }

    /// Blocks of those that keep some of their results.
    pub fn partly_recomputed_blocks(&self) -> u64 {
        self.keep_results.min(self.recomputed_blocks())
    }

    /// Blocks that are offloaded in fact: weights that are not quantised never are.
    pub(crate) fn offloaded(&self) -> f64 {
        if self.precision.is_quantised() { self.offloaded_blocks.min(self.dims.layers) as f64 } else { 0.0 }
    }

    fn base_class(&self) -> OpClass {
        if self.fp8_products { OpClass::GemmFp8 } else { OpClass::Gemm }
    }

    /// Bytes per weight as a product of a block's linear reads it: expanded if it is stored quantised.
    pub(super) fn operand_bytes(&self) -> f64 {
        if self.fp8_products { FP8_BYTES } else { self.wide_operand_bytes() }
    }

    /// The same of products that never run on 8-bit units.
    fn wide_operand_bytes(&self) -> f64 {
        if self.precision.is_quantised() { self.activation_bytes } else { self.precision.bytes_per_weight() }
    }

    fn stored_bytes(&self) -> f64 {
        self.precision.bytes_per_weight() + self.precision.scale_bytes_per_weight(self.dims.width())
    }

    fn streams(&self) -> [(f64, f64); 2] {
        let batch = self.shape.batch as f64;
        let (image, text) = (self.shape.image_tokens as f64, self.shape.text_tokens as f64);
        // Nothing reads the text stream after the attention of the last block, so that part is left out
        // there.
        [(batch * image, self.layers()), (batch * text, (self.layers() - 1.0).max(0.0))]
    }

    /// The forward pass through all blocks.
    pub fn blocks_forward(&self) -> Work {
        self.blocks(Direction::Forward, false)
    }

    /// The same where the results of the attention and of the MLP are known.
    fn blocks_between_results(&self) -> Work {
        self.blocks(Direction::Forward, true)
    }

    /// The backward pass through all blocks, with the gradients of the LoRA.
    pub fn blocks_backward(&self) -> Work {
        self.blocks(Direction::Backward, false)
    }

    fn blocks(&self, direction: Direction, knows_results: bool) -> Work {
        let mut work = Work::default();
        let width = self.dims.width();
        let (before, after) = match direction {
            Direction::Forward => (BEFORE_FORWARD, AFTER_FORWARD),
            Direction::Backward => (BEFORE_BACKWARD, AFTER_BACKWARD),
        };
        for (rows, tail_times) in self.streams() {
            let halves: [(&[Linear], f64, [f64; 2]); 2] =
                [(&BEFORE, self.layers(), before), (&AFTER, tail_times, after)];
            for (linears, times, [units, kernels]) in halves {
                for linear in linears.iter().filter(|linear| !(knows_results && **linear == MLP_OUT)) {
                    self.linear(&mut work, direction, times, rows, *linear);
                }
                let bytes = units * width * rows * self.activation_bytes;
                work.traffic(OpClass::Elementwise, times, bytes, kernels);
            }
            self.modulation_of_stream(&mut work, direction);
        }
        if !knows_results {
            self.attention(&mut work, direction);
        }
        self.expansion(&mut work, direction);
        work
    }

    /// A frozen layer with its adapters.
    fn linear(
        &self,
        work: &mut Work,
        direction: Direction,
        times: f64,
        rows: f64,
        [out, input, members]: Linear,
    ) {
        let (n, k) = (out * self.dims.width(), input * self.dims.width());
        let base = match direction {
            Direction::Forward => [rows, n, k],
            Direction::Backward => [rows, k, n],
        };
        work.gemm(self.base_class(), times, base, [self.activation_bytes, self.operand_bytes()]);
        if self.fp8_products {
            // The other operand is read and written rounded.
            let bytes = rows * base[2] * (self.activation_bytes + FP8_BYTES);
            work.traffic(OpClass::Elementwise, times, bytes, 1.0);
        }
        self.adapter(work, direction, times, [rows, n, k, members], self.rank as f64, true);
        if let Some(rank) = self.ara_rank {
            self.adapter(work, direction, times, [rows, n, k, members], rank as f64, false);
        }
    }

    /// Low-rank products of one layer. Forward `ax = x·Aᵀ`, `y += ax·Bᵀ` per module; backward `dax = dy·B`,
    /// `dx += dax·A`, and if trained `dB = dyᵀ·ax`, `dA = daxᵀ·x`.
    fn adapter(
        &self,
        work: &mut Work,
        direction: Direction,
        times: f64,
        [m, n, k, members]: [f64; 4],
        rank: f64,
        trained: bool,
    ) {
        // `wide` is the extent that is not the rank: the width of a layer's side, whose activations move.
        let mut product = |times: f64, rank: f64, wide: f64, passes: f64| {
            work.push(Op {
                class: OpClass::LoraGemm,
                times,
                flops: 2.0 * m * rank * wide,
                bytes: self.activation_bytes * m * (rank + passes * wide),
                extent: rank.min(m),
                kernels: 1.0,
            });
        };
        let (stacked, each) = (rank * members, n / members);
        match direction {
            Direction::Forward => {
                product(times, stacked, k, 1.0);
                product(times * members, rank, each, 2.0);
            }
            Direction::Backward => {
                product(times * members, rank, each, 1.0);
                product(times, stacked, k, 2.0);
                if trained {
                    product(times * members, rank, each, 1.0);
                    product(times, stacked, k, 1.0);
                }
            }
        }
        self.adapter_weights(work, direction, times, rank * (members * k + n), trained);
    }

    /// Traffic of an adapter's matrices: read in each direction; their 32-bit gradients are written.
    fn adapter_weights(
        &self,
        work: &mut Work,
        direction: Direction,
        times: f64,
        parameters: f64,
        trained: bool,
    ) {
        let gradient = if trained && direction == Direction::Backward { GRADIENT_BYTES } else { 0.0 };
        work.traffic(OpClass::LoraWeights, times, parameters * (self.activation_bytes + gradient), 0.0);
    }

    /// The modulation matrix `[6c, c]` of one stream in every block. Its input depends on the timestep alone,
    /// so there is no gradient but that of its LoRA.
    fn modulation_of_stream(&self, work: &mut Work, direction: Direction) {
        let (batch, width) = (self.shape.batch as f64, self.dims.width());
        let (n, rank) = (6.0 * width, self.rank as f64);
        let (times, bytes) = (self.layers(), self.activation_bytes);
        if direction == Direction::Forward && self.modulation == Modulation::EveryStep {
            work.gemm(OpClass::Gemm, times, [batch, n, width], [bytes, self.wide_operand_bytes()]);
        }
        // So few rows that the passage of the matrices is all that counts, and the start of each product.
        self.adapter_weights(work, direction, times, rank * (n + width), true);
        let products = if direction == Direction::Forward { 2.0 } else { 3.0 };
        work.traffic(OpClass::LoraWeights, times, batch * (n + width) * bytes, products);
    }

    /// Joint attention: `4·S²·c` FLOPs forward per sample, two and a half times as many backward.
    fn attention(&self, work: &mut Work, direction: Direction) {
        let (tokens, width) = (self.shape.joint_tokens(), self.dims.width());
        let (class, factor, tensors) = match direction {
            Direction::Forward => (OpClass::AttentionForward, 4.0, 4.0),
            Direction::Backward => (OpClass::AttentionBackward, 10.0, 8.0),
        };
        work.push(Op {
            class,
            times: self.layers(),
            flops: self.shape.batch as f64 * factor * tokens * tokens * width,
            bytes: tensors * self.shape.rows() * width * self.activation_bytes,
            extent: tokens,
            kernels: 1.0,
        });
    }

    /// Expansion of the quantised weights, once per block and pass.
    fn expansion(&self, work: &mut Work, direction: Direction) {
        if !self.precision.is_quantised() {
            return;
        }
        // 8-bit operands are stored as they are multiplied.
        let mut weights = if self.fp8_products { 0.0 } else { self.dims.linear_weights_per_block() };
        if self.modulation == Modulation::EveryStep && direction == Direction::Forward {
            weights += self.dims.modulation_weights_per_block();
        }
        let bytes = weights * (self.stored_bytes() + self.wide_operand_bytes());
        work.traffic(OpClass::Dequantise, self.layers(), bytes, 8.0);
    }

    /// The weights of offloaded blocks on their way for some passes. The block at which a pass ends and the
    /// next begins comes once for both.
    fn transfers(&self, passes: f64) -> Work {
        let mut work = Work::default();
        let times = passes * (self.offloaded() - 1.0).max(0.0);
        work.traffic(OpClass::Prefetch, times, self.block_stored_bytes(), 0.0);
        work
    }

    /// Bytes of the frozen matrices of a block as they are stored, scales included.
    pub(crate) fn block_stored_bytes(&self) -> f64 {
        self.dims.linear_weights_per_block() * self.stored_bytes()
    }

    /// Everything outside the blocks, forward and backward.
    fn ends(&self, backward: bool) -> Work {
        let mut work = Work::default();
        let (width, batch) = (self.dims.width(), self.shape.batch as f64);
        let [(image, _), (text, _)] = self.streams();
        let (latent, joint) = (self.dims.in_channels as f64, self.dims.joint_dim as f64);
        let bytes = [self.activation_bytes, self.precision.bytes_per_weight().max(2.0)];
        for shape in [
            [image, width, latent],
            [text, width, joint],
            [image, latent, width],
            [batch, 2.0 * width, width],
            [batch, width, width],
        ] {
            work.gemm(OpClass::Gemm, 1.0, shape, bytes);
        }
        work.traffic(OpClass::Elementwise, 1.0, 2.0 * width * image * self.activation_bytes, 2.0);
        if backward {
            work.gemm(OpClass::Gemm, 1.0, [image, width, latent], bytes);
            work.traffic(OpClass::Elementwise, 1.0, 4.0 * width * image * self.activation_bytes, 2.0);
        }
        work
    }

    /// Once per optimiser step: clipping and update; once per table: the modulation weights.
    fn per_update(&self) -> Work {
        let mut work = Work::default();
        let parameters = self.dims.lora_parameters(self.rank);
        work.traffic(OpClass::Optimiser, 1.0, parameters * self.optimiser.traffic_bytes(self.rank), 4.0);
        if let Modulation::Table { every_steps } = self.modulation {
            let weights = self.layers() * self.dims.modulation_weights_per_block();
            let times = 1.0 / every_steps.max(1) as f64;
            work.traffic(OpClass::HostTransfer, times, weights * self.stored_bytes(), 1.0);
        }
        work
    }

    /// A forward pass alone, as sampling and scoring do it.
    pub fn inference(&self) -> Work {
        let mut work = self.ends(false);
        work.add(&self.blocks_forward(), 1.0);
        work.add(&self.transfers(1.0), 1.0);
        work
    }

    /// A whole optimiser step: forward, recomputation, backward for each batch, then the update.
    pub fn work(&self) -> Work {
        let mut pass = self.ends(true);
        let forward = self.blocks_forward();
        let share = |blocks: u64| blocks as f64 / self.layers().max(1.0);
        let (again, partly) = (self.recomputed_blocks(), self.partly_recomputed_blocks());
        pass.add(&forward, 1.0 + share(again - partly));
        pass.add(&self.blocks_between_results(), share(partly));
        pass.add(&self.blocks_backward(), 1.0);
        pass.add(&self.transfers(2.0), 1.0);
        let mut work = Work::default();
        work.add(&pass, self.accumulation.max(1) as f64);
        work.add(&self.per_update(), 1.0);
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rank: u64) -> StepConfig {
        StepConfig {
            dims: ModelDims::QWEN_IMAGE,
            shape: StepShape { batch: 1, image_tokens: 4096, text_tokens: 128 },
            rank,
            precision: Precision::Bf16,
            ara_rank: None,
            activation_bytes: 2.0,
            fp8_products: false,
            keep_all: 60,
            keep_results: 0,
            offloaded_blocks: 0,
            modulation: Modulation::Table { every_steps: 64 },
            optimiser: Optimiser::AdamW8bit,
            accumulation: 1,
        }
    }

    fn close(got: f64, expected: f64, relative: f64) {
        assert!((got / expected - 1.0).abs() < relative, "{got:e}, expected {expected:e}");
    }

    #[test]
    fn a_step_of_qwen_image_is_172_teraflop_kept_and_246_recomputed() {
        let kept = config(128);
        close(kept.work().flops(), 172e12, 0.01);
        let again = StepConfig { keep_all: 0, ..kept };
        close(again.work().flops(), 246e12, 0.01);
        // Without attention, 13.9 TFLOP, and the second layer of the MLP, 19.1 with its LoRA.
        let results = StepConfig { keep_results: 60, ..again };
        close(again.work().flops() - results.work().flops(), 33e12, 0.02);
    }

    #[test]
    fn parts_of_the_forward_pass() {
        let forward = config(128).blocks_forward();
        // Image side 2·4096·12c²·60 = 55.7 T; the text side adds 2·128·(3·60 + 9·59)c² = 1.7 T.
        close(forward.of(OpClass::Gemm).flops(), 57.4e12, 0.01);
        close(forward.of(OpClass::AttentionForward).flops(), 4.0 * 4224.0 * 4224.0 * 3072.0 * 60.0, 1e-9);
        // 2·4096·128·18c·60 = 3.48 T on the image side.
        close(forward.of(OpClass::LoraGemm).flops(), 3.6e12, 0.01);
        let backward = config(128).blocks_backward();
        close(backward.of(OpClass::LoraGemm).flops(), 2.0 * forward.of(OpClass::LoraGemm).flops(), 0.01);
    }

    #[test]
    fn work_grows_with_what_it_should() {
        let base = config(16);
        let flops = |c: StepConfig| c.work().flops();
        assert!(flops(config(128)) > flops(base));
        assert!(flops(StepConfig { ara_rank: Some(16), ..base }) > flops(base));
        close(flops(StepConfig { accumulation: 3, ..base }), 3.0 * flops(base), 1e-3);
        let two = StepShape { batch: 2, ..base.shape };
        close(flops(StepConfig { shape: two, ..base }), 2.0 * flops(base), 1e-3);
        let uint3 = StepConfig { precision: Precision::Uint(3), ..base };
        assert!(uint3.work().of(OpClass::Dequantise).bytes() > 0.0);
        assert_eq!(base.work().of(OpClass::Dequantise).bytes(), 0.0);
        // Every step reads 6.8 G weights of 2 bytes for modulation; a table reads none on the device.
        let every = StepConfig { modulation: Modulation::EveryStep, ..base };
        close(every.blocks_forward().bytes() - base.blocks_forward().bytes(), 13.6e9, 0.01);
    }
}
