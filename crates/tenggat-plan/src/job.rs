//! A job, as far as planning sees it.

use serde::{Deserialize, Serialize};

use crate::budget::PhaseCosts;
use crate::cost::{ModelDims, Modulation, Optimiser, Precision, StepConfig, StepShape};
use crate::model::{MODELS, ModelProfile, Targets};
use crate::program::{Compiles, ProgramProfile, ProgramStep, Sequence};

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

/// One sample picture of a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplePicture {
    /// Width in pixels.
    pub width_px: u64,
    /// Height in pixels.
    pub height_px: u64,
    /// Denoising steps.
    pub denoising_steps: u64,
    /// Whether guidance doubles the forward passes.
    pub guided: bool,
}

/// Sample pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleJob {
    /// Steps between two rounds during training; 0 for none.
    pub every_steps: u64,
    /// First step with a round during training.
    pub start_step: u64,
    /// Pictures of a round, each in its own size.
    pub pictures: Vec<SamplePicture>,
    /// Whether there is a round before the first step.
    pub first: bool,
    /// Whether there is a round after the last step. The round that is due at the last step is this one.
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

/// An image that the model is shown beside the one it learns to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlImage {
    /// As large as the image.
    AsImage,
    /// Of one size for all images.
    Sized {
        /// Width in pixels.
        width_px: u64,
        /// Height in pixels.
        height_px: u64,
    },
}

/// What a job says to other programs, and tenggat decides by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Layers that carry an adapter; the program's own choice if it is not said.
    pub targets: Option<Targets>,
    /// Whether to compile.
    pub compiled: Option<bool>,
    /// Whether blocks are recomputed in the backward pass.
    pub checkpointed: Option<bool>,
    /// Blocks that are fetched from the host in every pass.
    pub swapped_blocks: u64,
    /// Whether captions are encoded before the training (`cache_text_embeddings`).
    pub captions_encoded: bool,
    /// Whether it runs on Windows.
    pub on_windows: bool,
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
    /// Qwen-Image: a text encoder of 7.6 G parameters; VAE figures from its channel widths (96, 192, 384,
    /// 384), one frame.
    pub const QWEN_IMAGE: Self =
        Self { text_encoder_weights: 7.6e9, vae_encode_flops_per_px: 5e6, vae_decode_flops_per_px: 1e7 };
}

/// A job, as far as planning sees it. All fields are public; start from [`PlanJob::qwen_image`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanJob {
    /// The model, as other programs train it.
    pub model: ModelProfile,
    /// Dimensions of the transformer, as tenggat trains it.
    pub dims: ModelDims,
    /// The rest of the model.
    pub surroundings: Surroundings,
    /// Shape buckets; at least one.
    pub buckets: Vec<BucketShape>,
    /// Control images of every sample; only other programs take them.
    pub controls: Vec<ControlImage>,
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
    /// Durations that are known better than predicted, for instance from an earlier run; 0 for those that
    /// are not.
    pub known_phases: PhaseCosts,
    /// Device memory that may be used, bytes.
    pub memory_limit_bytes: Option<f64>,
    /// What it says to other programs.
    pub elsewhere: Elsewhere,
}

impl PlanJob {
    /// A job on Qwen-Image with 20 pictures at 1024², rank 16, no samples and no score.
    pub fn qwen_image() -> Self {
        Self {
            model: MODELS[0].clone(),
            dims: ModelDims::QWEN_IMAGE,
            surroundings: Surroundings::QWEN_IMAGE,
            buckets: vec![BucketShape { width_px: 1024, height_px: 1024, share: 1.0, pictures: 20 }],
            controls: Vec::new(),
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
            elsewhere: Elsewhere::default(),
        }
    }

    /// The training step of tenggat in one bucket, with `keep_all` still to be chosen.
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
            keep_all: 0,
            keep_results: 0,
            offloaded_blocks: (self.offloaded_share.clamp(0.0, 1.0) * self.dims.layers as f64).ceil() as u64,
            modulation: self.modulation,
            optimiser: self.optimiser,
            accumulation: self.accumulation,
        }
    }

    /// The training step of another program in one bucket.
    pub fn program_step<'a>(&'a self, profile: &'a ProgramProfile, bucket: &BucketShape) -> ProgramStep<'a> {
        let Elsewhere { targets, compiled, checkpointed, swapped_blocks, captions_encoded, on_windows } =
            self.elsewhere;
        let compiled = match profile.compiles {
            Compiles::Never => false,
            Compiles::IfAsked => compiled.unwrap_or(false),
            Compiles::ByDefault => compiled.unwrap_or(true),
        };
        ProgramStep {
            profile,
            model: &self.model,
            sequence: self.sequence(bucket),
            rank: self.rank,
            targets: targets.unwrap_or(profile.targets),
            precision: self.precision,
            ara_rank: self.ara_rank,
            optimiser: self.optimiser,
            accumulation: self.accumulation,
            compiled,
            checkpointed: checkpointed.unwrap_or(profile.checkpoints),
            swapped_blocks,
            captions_encoded,
            on_windows,
        }
    }

    /// What the transformer sees in one bucket.
    fn sequence(&self, bucket: &BucketShape) -> Sequence {
        let sizes = || {
            self.controls.iter().map(|control| match *control {
                ControlImage::AsImage => (bucket.width_px, bucket.height_px),
                ControlImage::Sized { width_px, height_px } => (width_px, height_px),
            })
        };
        let tokens = |(width, height)| self.model.image_tokens(width, height);
        let seen = |(width, height): (u64, u64)| {
            self.model.text_tokens(0, 1, width as f64 * height as f64) - self.model.text_tokens(0, 0, 0.0)
        };
        let caption = self.model.text_tokens(self.text_tokens, 0, 0.0);
        Sequence {
            batch: self.batch,
            image_tokens: tokens((bucket.width_px, bucket.height_px)),
            control_tokens: sizes().map(tokens).fold(0, u64::saturating_add),
            text_tokens: sizes().map(seen).fold(caption, u64::saturating_add),
        }
    }

    /// The same job with images whose sides are this share of what they are, in whole tokens.
    #[must_use]
    pub fn scaled(&self, share: f64) -> Self {
        let token = self.model.pixels_per_token.max(1);
        let side = |px: u64| ((px as f64 * share / token as f64).round() as u64).max(1) * token;
        let scaled =
            |b: &BucketShape| BucketShape { width_px: side(b.width_px), height_px: side(b.height_px), ..*b };
        let buckets =
            if share == 1.0 { self.buckets.clone() } else { self.buckets.iter().map(scaled).collect() };
        Self { buckets, ..self.clone() }
    }

    /// The bucket with the most pixels, which decides about memory.
    pub(crate) fn largest_bucket(&self) -> Option<&BucketShape> {
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
    /// Fetching from the hub, bytes/s.
    pub download_bytes_per_s: f64,
}

impl Default for Storage {
    /// A common NVMe drive, 2 GB/s and 1 GB/s, and a rented machine's line, 100 MB/s. Assumed.
    fn default() -> Self {
        Self { read_bytes_per_s: 2e9, write_bytes_per_s: 1e9, download_bytes_per_s: 1e8 }
    }
}
