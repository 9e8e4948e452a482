//! Predicted durations of everything that is not a training step.

use super::job::{BucketShape, PlanJob, SampleJob, Storage, ValidationJob};
use crate::budget::{Phase, PhaseCosts};
use crate::cost::{Machine, Precision, StepConfig};
use crate::trainer::Trainer;

/// Share of the product rate that convolutions and the text encoder's short rows reach. Assumed.
const BESIDE_RATE_SHARE: f64 = 0.3;
/// Starting the process, the driver and its libraries. Assumed.
const START_S: f64 = 1.0;
/// Opening, syncing and renaming a file. Assumed.
const FILE_S: f64 = 0.05;
/// Writing the closing words and plots. Assumed.
const REPORT_S: f64 = 0.5;
/// The requests around an upload. Assumed.
const UPLOAD_START_S: f64 = 5.0;
/// Sending to the hub, bytes/s. Assumed.
const UPLOAD_BYTES_PER_S: f64 = 2e7;
/// Weights per second that ai-toolkit quantises where they lie, the CPU. Assumed.
const UPSTREAM_QUANTISED_PER_S: f64 = 3e8;

/// What phases are predicted from.
pub(super) struct Scene<'a> {
    pub(super) job: &'a PlanJob,
    pub(super) machine: &'a Machine,
    pub(super) storage: &'a Storage,
    pub(super) trainer: Trainer,
    /// The adapted job in its largest bucket.
    pub(super) config: StepConfig,
}

impl Scene<'_> {
    /// All phases but the training.
    pub(super) fn costs(&self) -> PhaseCosts {
        let job = self.job;
        let round_s = job.samples.map_or(0.0, |samples| self.round_s(&samples));
        let score_s = job.score_passes as f64 * self.forward_s(&self.config);
        let when = |wanted: bool, seconds: f64| if wanted { seconds } else { 0.0 };
        let predicted = PhaseCosts::default()
            .with(Phase::Load, self.load_s())
            .with(Phase::Quantise, self.quantise_s())
            .with(Phase::Cache, self.cache_s())
            .with(Phase::ScoreBefore, score_s)
            .with(Phase::FirstSample, when(job.samples.is_some_and(|s| s.first), round_s))
            .with(Phase::FinalSave, self.save_s())
            .with(Phase::FinalSample, when(job.samples.is_some_and(|s| s.last), round_s))
            .with(Phase::ScoreAfter, score_s)
            .with(Phase::Report, REPORT_S)
            .with(Phase::Upload, when(job.upload, upload_s(self.lora_bytes())));
        Phase::ALL.into_iter().fold(predicted, |costs, phase| match job.known_phases.get(phase) {
            known_s if known_s > 0.0 => costs.with(phase, known_s),
            _ => costs,
        })
    }

    /// Reading transformer and text encoder as published, 2 bytes per weight.
    fn load_s(&self) -> f64 {
        let dims = &self.job.dims;
        let weights =
            dims.block_weights() + dims.other_weights() + self.job.surroundings.text_encoder_weights;
        START_S + 2.0 * weights / self.storage.read_bytes_per_s
    }

    fn quantise_s(&self) -> f64 {
        if !self.job.precision.is_quantised() {
            return 0.0;
        }
        let weights = self.job.dims.block_weights();
        match self.trainer {
            Trainer::AiToolkit => weights / UPSTREAM_QUANTISED_PER_S,
            // Through the device in passing: in over the host's link, read and written there.
            Trainer::Tenggat => {
                let stored = self.job.precision.bytes_per_weight();
                let rates = &self.machine.rates;
                weights * (2.0 / rates.host_bytes_per_s + (2.0 + stored) / rates.elementwise_bytes_per_s)
            }
        }
    }

    fn beside_rate(&self) -> f64 {
        self.machine.rates.gemm.per_s * BESIDE_RATE_SHARE
    }

    /// Encoding every picture and its caption once.
    fn cache_s(&self) -> f64 {
        let of_bucket = |bucket: &BucketShape| {
            let pixels = bucket.width_px as f64 * bucket.height_px as f64;
            let picture = pixels * self.job.surroundings.vae_encode_flops_per_px;
            // The prompt template is as long as a short caption.
            let tokens = self.job.text_tokens as f64 + 34.0;
            let caption = 2.0 * self.job.surroundings.text_encoder_weights * tokens;
            bucket.pictures as f64 * (picture + caption) / self.beside_rate()
        };
        self.job.buckets.iter().map(of_bucket).sum()
    }

    /// A forward pass of one picture in the shape of `config`.
    fn forward_s(&self, config: &StepConfig) -> f64 {
        let mut config = *config;
        config.shape.batch = 1;
        let rates = &self.machine.rates;
        match self.trainer {
            Trainer::Tenggat => rates.seconds(&config.inference()),
            // A step is about three forward passes as upstream runs them: forward, forward again, backward.
            Trainer::AiToolkit => self.trainer.step_seconds(&config, self.machine) / 3.0,
        }
    }

    /// One round of sample pictures.
    pub(super) fn round_s(&self, samples: &SampleJob) -> f64 {
        let bucket =
            BucketShape { width_px: samples.width_px, height_px: samples.height_px, share: 1.0, pictures: 0 };
        let config = self.job.step_config(&bucket, self.machine.activation_bytes);
        let config = self.trainer.adapt(&config, self.machine);
        let passes = samples.denoising_steps as f64 * if samples.guided { 2.0 } else { 1.0 };
        let pixels = samples.width_px as f64 * samples.height_px as f64;
        let decode_s = pixels * self.job.surroundings.vae_decode_flops_per_px / self.beside_rate();
        samples.prompts as f64 * (passes * self.forward_s(&config) + decode_s)
    }

    /// One measurement of the validation pictures.
    pub(super) fn validation_s(&self, validation: &ValidationJob) -> f64 {
        let (width_px, height_px) = (validation.side_px, validation.side_px);
        let bucket = BucketShape { width_px, height_px, share: 1.0, pictures: 0 };
        let config = self.job.step_config(&bucket, self.machine.activation_bytes);
        let config = self.trainer.adapt(&config, self.machine);
        validation.pictures as f64 * validation.levels as f64 * self.forward_s(&config)
    }

    /// Bytes of the LoRA in 16 bits.
    fn lora_bytes(&self) -> f64 {
        2.0 * self.job.dims.lora_parameters(self.job.rank)
    }

    /// Writing the LoRA in 16 bits; ai-toolkit also writes the optimiser, and hashes the file by serialising it again.
    pub(super) fn save_s(&self) -> f64 {
        let parameters = self.job.dims.lora_parameters(self.job.rank);
        let bytes = match self.trainer {
            Trainer::Tenggat => 2.0,
            Trainer::AiToolkit => 4.0 + self.job.optimiser.state_bytes(self.job.rank),
        };
        FILE_S + parameters * bytes / self.storage.write_bytes_per_s
    }
}

/// Signing in, making the repository and the commit, and sending so many bytes: predicted seconds of an upload.
pub fn upload_s(bytes: f64) -> f64 {
    UPLOAD_START_S + bytes / UPLOAD_BYTES_PER_S
}

/// Whether a base of this precision is worth a note about quality.
pub(super) fn damages(precision: Precision) -> bool {
    matches!(precision, Precision::Uint(bits) if bits < 4)
}
