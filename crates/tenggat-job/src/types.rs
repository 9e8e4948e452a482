//! The job as it will be run: every value decided, every name understood.

use std::path::PathBuf;

use super::values::{
    Balance, Bell, Deliver, FirstRound, Loss, LrScheduler, NetworkKind, Optimiser, PictureFormat, Qtype,
    Recompute, SaveType, TimestepType,
};
use super::{Compat, ErrorWeights};

/// A job, with every value decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Name of the run, of its folder and of its files.
    pub name: String,
    /// Folder of the results: `training_folder/name`.
    pub folder: PathBuf,
    /// The job file as it was read, variables replaced but for secret ones; what a resumed run is compared
    /// by.
    pub text: String,
    /// The same for `config.yaml`, so that Python's YAML reads numbers as numbers.
    pub config: String,
    /// Word that stands for the new concept.
    pub trigger_word: Option<String>,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Free entries for the metadata of the result.
    pub meta: serde_json::Map<String, serde_json::Value>,
    /// Folder of TensorBoard files, if wanted.
    pub log_dir: Option<PathBuf>,
    /// Steps between two lines of the log.
    pub log_every: u64,
    /// What is trained.
    pub network: Network,
    /// How results are kept.
    pub save: Save,
    /// Where the finished LoRA is uploaded, if anywhere.
    pub push: Option<Push>,
    /// What is trained on; at least one.
    pub datasets: Vec<Dataset>,
    /// Folder of pictures with captions that are kept out of training, to measure on.
    pub held_out: Option<PathBuf>,
    /// What the error on them with captions and that with the empty prompt count.
    pub held_out_weights: ErrorWeights,
    /// How it is trained.
    pub train: Train,
    /// What is adapted.
    pub model: Model,
    /// Pictures made on the way.
    pub sample: Sample,
    /// Whether checkpoints are written, and an unfinished run is resumed.
    pub resume: bool,
    /// Time.
    pub limits: Limits,
    /// Bugs to keep.
    pub compat: Compat,
}

/// The LoRA. Its scale is 1 whatever alpha says: ai-toolkit sets alpha to the rank for transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Rank of every module; of no meaning to Kronecker products.
    pub rank: usize,
    /// What is added to a layer.
    pub kind: NetworkKind,
    /// Only modules whose name contains one of these; all if empty.
    pub only_if_contains: Vec<String>,
    /// No module whose name contains one of these.
    pub ignore_if_contains: Vec<String>,
    /// Chance that an element of the rank's activations is dropped in a training step.
    pub dropout: f64,
    /// Chance that a rank is dropped, for each sample.
    pub rank_dropout: f64,
    /// Chance that a module is left out.
    pub module_dropout: f64,
    /// LoRA file to start from.
    pub pretrained: Option<PathBuf>,
}

impl Network {
    /// Whether a module of the transformer, `transformer_blocks.0.attn.to_q`, is trained.
    /// Source: ai-toolkit `toolkit/lora_special.py`; names are tested with `transformer.` before them.
    pub fn trains(&self, module: &str) -> bool {
        let name = format!("transformer.{module}");
        let contains =
            |part: &String| name.contains(part.as_str()) || name.contains(&part.replace("$$", "."));
        (self.only_if_contains.is_empty() || self.only_if_contains.iter().any(contains))
            && !self.ignore_if_contains.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Where the finished LoRA is uploaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    /// Repository of the hub, `account/name`.
    pub repository: String,
    /// Whether a repository that is made for it is private.
    pub private: bool,
}

/// How results are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Save {
    /// Steps between two numbered files; 0 writes none.
    pub every: u64,
    /// Whether the LoRA with the lowest validation loss is kept as `<name>_best.safetensors`.
    pub best: bool,
    /// Which LoRA of the run is the finished one.
    pub deliver: Deliver,
    /// Numbered files kept; 0 keeps all.
    pub keep: u64,
    /// Type of the tensors.
    pub dtype: SaveType,
}

/// One set of pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Folder of the pictures, or a JSON file that lists them with their captions.
    pub path: PathBuf,
    /// Extension of caption files, dot included.
    pub caption_ext: String,
    /// Caption of pictures that have none.
    pub default_caption: Option<String>,
    /// Word that stands for the new concept, of this set or of the job.
    pub trigger_word: Option<String>,
    /// Chance of training without the caption.
    pub caption_dropout_rate: f64,
    /// Chance of leaving out each comma-separated part of a caption.
    pub token_dropout_rate: f64,
    /// Parts at the start that are neither left out nor moved.
    pub keep_tokens: usize,
    /// Whether the parts are shuffled.
    pub shuffle_tokens: bool,
    /// Side of the square that no picture exceeds in area; every picture is used once for each.
    pub resolutions: Vec<usize>,
    /// Times each picture is used.
    pub num_repeats: usize,
    /// Adds copies mirrored left to right.
    pub flip_x: bool,
    /// Adds copies mirrored top to bottom.
    pub flip_y: bool,
    /// Factor on the size of the pictures before anything else.
    pub scale: f64,
    /// Crops squares of the resolution instead of using buckets.
    pub square_crop: bool,
    /// Pictures in a batch of this set.
    pub batch_size: usize,
    /// Draws the place of the cut, once for each entry, instead of taking the middle.
    pub random_crop: bool,
    /// Factor on the loss.
    pub loss_multiplier: f64,
    /// Strength of the LoRA while it trains on this set.
    pub network_weight: f64,
    /// Whether it shows what must not be learnt anew: no trigger word, every second step, weighted by
    /// [`Train::reg_weight`].
    pub is_reg: bool,
    /// Which parts of the pictures count.
    pub masks: Option<Masks>,
    /// Words of which some are put behind each caption, at random.
    pub random_triggers: Vec<String>,
    /// How many of them: that one for 1, else a random number up to this.
    pub random_triggers_max: usize,
    /// Takes `caption_short` of a JSON list in place of `caption`.
    pub short_captions: bool,
    /// Whether latents are kept on disk beside the pictures.
    pub cache_latents_to_disk: bool,
    /// Whether text embeddings are kept on disk beside the pictures.
    pub cache_text_to_disk: bool,
}

/// Masks of a data set: white counts whole, black as `floor` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Masks {
    /// Folder with a picture of the same name for each; `None` takes the transparency of the pictures
    /// themselves.
    pub folder: Option<PathBuf>,
    /// Exchanges black and white.
    pub inverted: bool,
    /// What black counts, 0 to 1.
    pub floor: f64,
}

/// How it is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Train {
    /// Steps; `None` if the job does not say.
    pub steps: Option<u64>,
    /// Pictures in a batch.
    pub batch_size: usize,
    /// Batches in a step.
    pub gradient_accumulation: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Product of the peak learning rate and the steps expected in all, which the rate follows as the
    /// forecast changes: at most [`Train::LR_SPAN`] times `lr`, at least that part of it.
    pub lr_times_steps: Option<f64>,
    /// Optimiser and its numbers.
    pub optimiser: OptimiserConfig,
    /// Course of the learning rate; `None` if the job does not say.
    pub lr_scheduler: Option<LrScheduler>,
    /// Steps of warm-up, if the job says.
    pub warmup_steps: Option<u64>,
    /// Learning rate at the end of a cosine.
    pub lr_min: f64,
    /// Half cosines in `cosine_with_restarts`.
    pub lr_cycles: u64,
    /// Largest norm of the gradient; larger ones are scaled down to it.
    pub max_grad_norm: f64,
    /// Where timesteps are drawn from.
    pub timestep_type: TimestepType,
    /// Which end is drawn more often.
    pub balance: Balance,
    /// Weights of `linear_timesteps` or `linear_timesteps2`.
    pub bell: Bell,
    /// Indices of the timestep table that may be drawn, from the noisy end; the last is excluded.
    pub denoising_steps: (usize, usize),
    /// Pictures to measure on, if any.
    pub validation: Option<Validation>,
    /// What is minimised.
    pub loss: Loss,
    /// Losses of a batch above this count as this and train nothing.
    pub max_loss: Option<f64>,
    /// Factor on the loss of regularisation sets.
    pub reg_weight: f64,
    /// Standard deviation of a constant added to the noise of each channel.
    pub noise_offset: f64,
    /// Decay of averaged weights, if wanted.
    pub ema_decay: Option<f64>,
    /// Which blocks recompute their activations rather than keep them.
    pub recompute: Recompute,
    /// Whether products with frozen weights may be in bf16, as `dtype: bf16` says. The LoRA is trained in 32
    /// bits.
    pub bf16: bool,
}

impl Train {
    /// How far the rate may be from `lr` where it follows the steps.
    pub const LR_SPAN: f64 = 5.0;
}

/// `validation_config`.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// Pictures and their prompts; at least one.
    pub items: Vec<(PathBuf, String)>,
    /// Side of the square that no picture exceeds in area.
    pub resolution: usize,
    /// Steps between two measurements; 0 measures after the first step alone.
    pub every: u64,
    /// Noise levels.
    pub sigmas: Vec<f64>,
}

/// Optimiser and its numbers; `None` is the optimiser's own default, which the training decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimiserConfig {
    /// Which.
    pub kind: Optimiser,
    /// Numbers that the job gives.
    pub params: OptimiserParams,
}

/// `train.optimizer_params`, named as in the libraries that ai-toolkit uses; each belongs to some optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OptimiserParams {
    /// Decay of the running averages; all but Adafactor.
    pub betas: Option<(f64, f64)>,
    /// Added to the denominator; all but Lion.
    pub eps: Option<f64>,
    /// Decay of the weights; all.
    pub weight_decay: Option<f64>,
    /// Elements from which on a matrix has 8-bit states; AdamW8bit.
    pub min_8bit_size: Option<usize>,
    /// Whether the learning rate is divided out of the decay; Lion.
    pub decoupled_weight_decay: Option<bool>,
    /// Decay of the sums of the step size; Prodigy, as all down to the growth.
    pub beta3: Option<f64>,
    /// Whether the decay stays out of the gradient.
    pub decouple: Option<bool>,
    /// Whether Adam's bias correction is on.
    pub use_bias_correction: Option<bool>,
    /// Whether the learning rate stays out of the sums.
    pub safeguard_warmup: Option<bool>,
    /// First estimate of the step size.
    pub d0: Option<f64>,
    /// Factor on the estimates.
    pub d_coef: Option<f64>,
    /// Largest growth of the estimate in a step.
    pub growth_rate: Option<f64>,
    /// Decay of the first moment; Adafactor, as all that follow.
    pub beta1: Option<f64>,
    /// The second of two `eps`: least scale of the parameters.
    pub second_eps: Option<f64>,
    /// Root mean square of an update from which on it is scaled down.
    pub clip_threshold: Option<f64>,
    /// Exponent of the decay of the second moment.
    pub decay_rate: Option<f64>,
    /// Whether the learning rate is scaled by the parameters.
    pub scale_parameter: Option<bool>,
}

/// What is adapted.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Folder, or name on the Hub.
    pub name_or_path: String,
    /// Format of the frozen transformer, if quantised.
    pub quantisation: Option<Qtype>,
    /// LoRA that repairs the quantised transformer.
    pub recovery_adapter: Option<String>,
    /// Format of the text encoder, if quantised.
    pub text_quantisation: Option<Qtype>,
    /// Whether frozen linears are multiplied in 8-bit floats where the device does that. Such products err
    /// by a few percent.
    pub fp8_products: bool,
    /// Whether modulation matrices are never kept in memory; otherwise the plan decides.
    pub low_vram: bool,
    /// Share of the blocks whose weights stay in their file and are read when it is their turn, 0 to 1.
    pub offloaded_share: f64,
}

/// Architecture name, as ai-toolkit writes it into caches and metadata.
pub const ARCH: &str = "qwen_image";

/// Pictures made on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Whether there are any.
    pub enabled: bool,
    /// Steps between two rounds; 0 draws none on the way.
    pub every: u64,
    /// First step with a round.
    pub start_step: u64,
    /// Whether a round comes before the first step; when resuming, only if asked by `force_first_sample`.
    pub first: FirstRound,
    /// File format.
    pub format: PictureFormat,
    /// Pictures of a round.
    pub prompts: Vec<Prompt>,
}

/// One picture of a round.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Prompt, trigger word in place.
    pub text: String,
    /// What to stay away from; `None` leaves it to the sampler.
    pub negative: Option<String>,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Seed of the noise; `None` draws one.
    pub seed: Option<u64>,
    /// Classifier-free guidance; 1 or less is off.
    pub guidance_scale: f64,
    /// Steps of the sampler.
    pub steps: usize,
    /// Strength of the LoRA.
    pub strength: f64,
}

/// Time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// Seconds that the run may take.
    pub budget_s: Option<f64>,
    /// Moment at which it must have ended.
    pub deadline: Option<jiff::Timestamp>,
    /// Whether steps are added until the budget is used up.
    pub fill: bool,
    /// Seconds kept free before the end.
    pub margin_s: Option<f64>,
    /// Device memory that may be used, bytes.
    pub memory_bytes: Option<f64>,
    /// Threads to compute with.
    pub threads: Option<usize>,
}
