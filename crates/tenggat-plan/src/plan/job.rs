//! A job, as far as planning sees it.

use serde::{Deserialize, Serialize};

use crate::budget::PhaseCosts;
use crate::cost::{ModelDims, Modulation, Optimiser, Precision, StepConfig, StepShape};

/// Pictures of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BucketShape {
    /// Width in pixels.
    pub width_px: u64,
    /// Height in pixels.
    pub height_px: u64,
    /// Share of the steps; shares need not sum to 1.
    pub share: f64,
    /// Pictures of this shape, for caching.
    pub pictures: u64,
}

/// Sample pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SampleJob {
    /// Steps between two rounds during training; 0 for none.
    pub every_steps: u64,
    /// Pictures per round.
    pub prompts: u64,
    /// Denoising steps per picture.
    pub denoising_steps: u64,
    /// Whether guidance doubles the forward passes.
    pub guided: bool,
    /// Width in pixels.
    pub width_px: u64,
    /// Height in pixels.
    pub height_px: u64,
    /// Whether there is a round before the first step.
    pub first: bool,
    /// Whether there is a round after the last step.
    pub last: bool,
}

/// Validation pictures, measured after the first step and every so many.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidationJob {
    /// Steps between two measurements; 0 for the first step's alone.
    pub every_steps: u64,
    /// Pictures, each measured at every level.
    pub pictures: u64,
    /// Noise levels.
    pub levels: u64,
    /// Side of a square of their area in pixels.
    pub side_px: u64,
    /// Largest share of the training time where there is a deadline.
    pub share_max: f64,
}

/// What the model weighs and computes beside its transformer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Surroundings {
    /// Weights of the text encoder's matrices.
    pub text_encoder_weights: f64,
    /// FLOPs per pixel of encoding a picture.
    pub vae_encode_flops_per_px: f64,
    /// FLOPs per pixel of decoding one.
    pub vae_decode_flops_per_px: f64,
}

impl Surroundings {
    /// Qwen-Image: a text encoder of 7.6 G parameters; VAE figures from its channel widths (96, 192, 384, 384), one
    /// frame.
    pub const QWEN_IMAGE: Self =
        Self { text_encoder_weights: 7.6e9, vae_encode_flops_per_px: 5e6, vae_decode_flops_per_px: 1e7 };
}

/// A job, as far as planning sees it. All fields are public; start from [`PlanJob::qwen_image`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanJob {
    /// Dimensions of the transformer.
    pub dims: ModelDims,
    /// The rest of the model.
    pub surroundings: Surroundings,
    /// Shape buckets; at least one.
    pub buckets: Vec<BucketShape>,
    /// Pictures per step.
    pub batch: u64,
    /// Batches per optimiser step.
    pub accumulation: u64,
    /// Text tokens per caption.
    pub text_tokens: u64,
    /// Rank.
    pub rank: u64,
    /// Storage of the frozen weights.
    pub precision: Precision,
    /// Rank of an accuracy recovery adapter.
    pub ara_rank: Option<u64>,
    /// Whether frozen matrices are multiplied in 8-bit floats where the machine does that.
    pub fp8_products: bool,
    /// Share of the blocks whose quantised weights stay in their file.
    pub offloaded_share: f64,
    /// Optimiser.
    pub optimiser: Optimiser,
    /// Use of the modulation weights.
    pub modulation: Modulation,
    /// Steps asked for.
    pub steps: Option<u64>,
    /// Whether the budget overrules the steps upwards.
    pub fill: bool,
    /// Steps between two numbered files; 0 for none.
    pub save_every: u64,
    /// Sample pictures.
    pub samples: Option<SampleJob>,
    /// Validation pictures.
    pub validation: Option<ValidationJob>,
    /// Whether the finished LoRA is sent to the hub.
    pub upload: bool,
    /// Forward passes of one scoring, before and after the training; 0 for none.
    pub score_passes: u64,
    /// Durations that are known better than predicted, for instance from an earlier run; 0 for those that are not.
    pub known_phases: PhaseCosts,
    /// Device memory that may be used, bytes.
    pub memory_limit_bytes: Option<f64>,
}

impl PlanJob {
    /// A job on Qwen-Image with 20 pictures at 1024², rank 16, no samples and no score.
    pub fn qwen_image() -> Self {
        Self {
            dims: ModelDims::QWEN_IMAGE,
            surroundings: Surroundings::QWEN_IMAGE,
            buckets: vec![BucketShape { width_px: 1024, height_px: 1024, share: 1.0, pictures: 20 }],
            batch: 1,
            accumulation: 1,
            text_tokens: 128,
            rank: 16,
            precision: Precision::Bf16,
            ara_rank: None,
            fp8_products: false,
            offloaded_share: 0.0,
            optimiser: Optimiser::AdamW8bit,
            modulation: Modulation::Table { every_steps: 64 },
            steps: None,
            fill: false,
            save_every: 0,
            samples: None,
            validation: None,
            upload: false,
            score_passes: 0,
            known_phases: PhaseCosts::default(),
            memory_limit_bytes: None,
        }
    }

    /// The training step in one bucket, with `kept_blocks` still to be chosen.
    pub fn step_config(&self, bucket: &BucketShape, activation_bytes: f64) -> StepConfig {
        StepConfig {
            dims: self.dims,
            shape: StepShape {
                batch: self.batch,
                image_tokens: self.dims.image_tokens(bucket.width_px, bucket.height_px),
                text_tokens: self.text_tokens,
            },
            rank: self.rank,
            precision: self.precision,
            ara_rank: self.ara_rank,
            activation_bytes,
            fp8_products: self.fp8_products && self.ara_rank.is_none(),
            kept_blocks: 0,
            result_blocks: 0,
            offloaded_blocks: (self.offloaded_share.clamp(0.0, 1.0) * self.dims.layers as f64).ceil() as u64,
            modulation: self.modulation,
            optimiser: self.optimiser,
            accumulation: self.accumulation,
        }
    }

    /// The bucket with the most pixels, which decides about memory.
    pub(super) fn largest_bucket(&self) -> Option<&BucketShape> {
        self.buckets.iter().max_by_key(|bucket| bucket.width_px.saturating_mul(bucket.height_px))
    }
}

/// Storage and its rates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    /// Reading large files, bytes/s.
    pub read_bytes_per_s: f64,
    /// Writing and syncing, bytes/s.
    pub write_bytes_per_s: f64,
}

impl Default for Storage {
    /// A common NVMe drive: 2 GB/s and 1 GB/s. Assumed.
    fn default() -> Self {
        Self { read_bytes_per_s: 2e9, write_bytes_per_s: 1e9 }
    }
}
