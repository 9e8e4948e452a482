//! The job file as its author wrote it: field names are ai-toolkit's keys, every value may be missing,
//! nothing is decided. Source: ai-toolkit `toolkit/config_modules.py`.

use serde::Deserialize;

use super::de::lenient;

/// A section that is kept as it is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub(super) struct Free(pub serde_json::Map<String, serde_json::Value>);

/// One value, or a list of them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct OneOrMany<T>(pub Vec<T>);

/// A name, or a plain yes or no.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected text, true or false")]
pub(super) enum TextOrFlag {
    Text(String),
    Flag(bool),
}

/// Derives a struct whose fields are all optional.
macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default)]
        pub(super) struct $name { $(#[serde(deserialize_with = "lenient")] pub $field: Option<$type>),* }
    )*};
}

sections! {
    /// The whole file.
    File { job: String, config: Config, meta: Free, compat: OneOrMany<String> }
    /// `config`.
    Config { name: String, process: Vec<Process> }
    /// `config.process[]`.
    Process {
        r#type: String, training_folder: String, trigger_word: String, log_dir: String, training_seed: u64,
        network: Network, save: Save, logging: Logging, datasets: Vec<Dataset>, train: Train, model: Model,
        sample: Sample, tenggat: Tenggat,
    }
    /// `network`.
    Network {
        r#type: String, linear: u64, rank: u64, linear_alpha: f64, alpha: f64,
        network_kwargs: NetworkArguments, pretrained_lora_path: String, dropout: f64, lokr_full_rank: bool,
        lokr_factor: i64,
    }
    /// `network.network_kwargs`.
    NetworkArguments {
        only_if_contains: OneOrMany<String>, ignore_if_contains: OneOrMany<String>, rank_dropout: f64,
        module_dropout: f64,
    }
    /// `save`.
    Save {
        save_every: u64, dtype: String, max_step_saves_to_keep: u64, save_format: String, push_to_hub: bool,
        hf_repo_id: String, hf_private: bool,
    }
    /// `logging`.
    Logging { log_every: u64 }
    /// `datasets[]`.
    Dataset {
        folder_path: String, dataset_path: String, default_caption: String, caption_ext: String,
        caption_type: String, trigger_word: String, resolution: OneOrMany<u64>, num_repeats: u64,
        caption_dropout_rate: f64, token_dropout_rate: f64, keep_tokens: u64, shuffle_tokens: bool,
        flip_x: bool, flip_y: bool, cache_latents: bool, cache_latents_to_disk: bool,
        cache_text_embeddings: bool, scale: f64, square_crop: bool, loss_multiplier: f64, batch_size: u64,
        random_crop: bool, network_weight: f64, is_reg: bool, mask_path: String, alpha_mask: bool,
        mask_min_value: f64, invert_mask: bool, random_triggers: OneOrMany<String>, random_triggers_max: u64,
        use_short_captions: bool,
    }
    /// `train`.
    Train {
        steps: u64, batch_size: u64, lr: f64, optimizer: String, optimizer_params: OptimizerParams,
        lr_scheduler: String, lr_scheduler_params: SchedulerParams, dtype: String, timestep_type: String,
        content_or_style: String, linear_timesteps: bool, linear_timesteps2: bool, loss_type: String,
        min_denoising_steps: u64, max_denoising_steps: u64, gradient_accumulation: u64,
        gradient_accumulation_steps: u64, max_grad_norm: f64, gradient_checkpointing: TextOrFlag,
        noise_offset: f64, reg_weight: f64, max_loss: f64,
        validation_config: Validation, ema_config: Ema, seed: u64, cache_text_embeddings: bool,
        unload_text_encoder: bool, disable_sampling: bool, skip_first_sample: bool, force_first_sample: bool,
    }
    /// `train.validation_config`.
    Validation {
        validation_items: Vec<ValidationItem>, resolution: u64, validate_every_n_steps: u64,
        validation_sigmas: Vec<f64>,
    }
    /// `train.validation_config.validation_items[]`.
    ValidationItem { image_path: String, prompt: String }
    /// `train.optimizer_params`.
    OptimizerParams {
        betas: Vec<f64>, eps: OneOrMany<f64>, weight_decay: f64, min_8bit_size: u64,
        decoupled_weight_decay: bool, beta3: f64, decouple: bool, use_bias_correction: bool,
        safeguard_warmup: bool, d0: f64, d_coef: f64, growth_rate: f64, beta1: f64, clip_threshold: f64,
        decay_rate: f64, scale_parameter: bool,
    }
    /// `train.lr_scheduler_params`.
    SchedulerParams { num_warmup_steps: u64, warmup_steps: u64, eta_min: f64, num_cycles: u64 }
    /// `train.ema_config`.
    Ema { use_ema: bool, ema_decay: f64 }
    /// `model`.
    Model {
        name_or_path: String, arch: String, quantize: bool, quantize_te: bool, qtype: String,
        qtype_te: String, accuracy_recovery_adapter: String, low_vram: bool, layer_offloading: bool,
        layer_offloading_transformer_percent: f64,
    }
    /// `sample`.
    Sample {
        sample_every: u64, sample_start_step: u64, width: u64, height: u64, prompts: Vec<String>,
        samples: Vec<SampleItem>, neg: TextOrFlag, seed: i64, walk_seed: bool, guidance_scale: f64,
        sample_steps: u64, network_multiplier: f64, format: String,
    }
    /// `sample.samples[]`.
    SampleItem {
        prompt: String, width: u64, height: u64, neg: TextOrFlag, seed: i64, guidance_scale: f64,
        sample_steps: u64, network_multiplier: f64,
    }
    /// `tenggat`: what ai-toolkit does not have.
    Tenggat {
        budget: String, deadline: String, fill: bool, keep_best: bool, margin: String, memory_limit: String,
        seed: u64, compat: OneOrMany<String>, threads: u64, resume: bool, held_out: String, deliver: String,
        lr_times_steps: f64, fp8_products: bool, held_out_weights: String,
    }
}
