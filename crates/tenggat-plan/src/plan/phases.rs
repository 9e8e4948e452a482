//! Predicted durations of everything that is not a training step.

use crate::budget::{Phase, PhaseCosts};
use crate::cost::{Machine, Precision};
use crate::forecast::own_step;
use crate::job::{BucketShape, PlanJob, SampleJob, SamplePicture, Storage, ValidationJob};
use crate::program::Program;
use serde::{Deserialize, Serialize};

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
/// The VAE's file.
const VAE_BYTES: f64 = 0.3e9;
/// Files of the LoRA that are kept, if there are as many.
const KEPT_FILES: u64 = 4;
/// Weights per second that other programs quantise where they lie, the CPU. Assumed.
const UPSTREAM_QUANTISED_PER_S: f64 = 3e8;

/// What phases are predicted from.
pub(super) struct Scene<'a> {
    pub(super) job: &'a PlanJob,
    pub(super) machine: &'a Machine,
    pub(super) storage: &'a Storage,
    pub(super) program: Program,
}

/// What a first start on a machine takes beside the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FirstStart {
    /// Bytes to fetch: transformer, text encoder, VAE as published.
    pub download_bytes: f64,
    /// Seconds that this takes.
    pub download_s: f64,
    /// Disk space, bytes: what is fetched, quantised weights beside it, and the LoRA files.
    pub disk_bytes: f64,
}

impl Scene<'_> {
    /// All phases but the training.
    pub(super) fn costs(&self) -> PhaseCosts {
        let job = self.job;
        let round_s = self.samples_s();
        let score_s = job.score_passes as f64 * self.largest_forward_s();
        let when = |wanted: bool, seconds: f64| if wanted { seconds } else { 0.0 };
        let predicted = PhaseCosts::default()
            .with(Phase::Load, self.load_s())
            .with(Phase::Quantise, self.quantise_s())
            .with(Phase::Cache, self.cache_s())
            .with(Phase::ScoreBefore, score_s)
            .with(Phase::FirstSample, when(job.samples.as_ref().is_some_and(|s| s.first), round_s))
            .with(Phase::FinalSave, self.save_s())
            .with(Phase::FinalSample, when(job.samples.as_ref().is_some_and(|s| s.last), round_s))
            .with(Phase::ScoreAfter, score_s)
            .with(Phase::Report, REPORT_S)
            .with(Phase::Upload, when(job.upload, upload_s(self.lora_bytes())));
        Phase::ALL.into_iter().fold(predicted, |costs, phase| match job.known_phases.get(phase) {
            known_s if known_s > 0.0 => costs.with(phase, known_s),
            _ => costs,
        })
    }

    /// Weights of transformer and text encoder, as published.
    fn published_weights(&self) -> f64 {
        let job = self.job;
        match self.program {
            Program::Tenggat => {
                let (dims, beside) = (&job.dims, job.surroundings.text_encoder_weights);
                dims.block_weights() + dims.other_weights() + beside
            }
            _ => job.model.weights() + job.model.text_encoder_weights,
        }
    }

    /// Reading them, 2 bytes per weight.
    fn load_s(&self) -> f64 {
        START_S + 2.0 * self.published_weights() / self.storage.read_bytes_per_s
    }

    /// Fetching the model and the room that it takes on the disk.
    pub(super) fn first_start(&self, saves: u64) -> FirstStart {
        let download_bytes = 2.0 * self.published_weights() + VAE_BYTES;
        let quantised = if self.job.precision.is_quantised() && self.program == Program::Tenggat {
            self.job.dims.block_weights() * self.job.precision.bytes_per_weight()
        } else {
            0.0
        };
        FirstStart {
            download_bytes,
            download_s: download_bytes / self.storage.download_bytes_per_s,
            disk_bytes: download_bytes + quantised + (saves.min(KEPT_FILES) + 1) as f64 * self.lora_bytes(),
        }
    }

    fn quantise_s(&self) -> f64 {
        if !self.job.precision.is_quantised() {
            return 0.0;
        }
        match self.program {
            // Through the device in passing: in over the host's link, read and written there.
            Program::Tenggat => {
                let weights = self.job.dims.block_weights();
                let stored = self.job.precision.bytes_per_weight();
                let rates = &self.machine.rates;
                weights * (2.0 / rates.host_bytes_per_s + (2.0 + stored) / rates.elementwise_bytes_per_s)
            }
            _ => self.job.model.block_weights() / UPSTREAM_QUANTISED_PER_S,
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

    /// A forward pass of one picture of this size.
    fn forward_s(&self, width_px: u64, height_px: u64) -> f64 {
        let bucket = BucketShape { width_px, height_px, share: 1.0, pictures: 0 };
        match self.program.profile() {
            Some(profile) => self.job.program_step(profile, &bucket).forward_seconds(self.machine),
            None => {
                let mut config = own_step(self.job, self.machine, &bucket);
                config.shape.batch = 1;
                self.machine.rates.seconds(&config.inference())
            }
        }
    }

    fn largest_forward_s(&self) -> f64 {
        let largest = self.job.largest_bucket();
        largest.map_or(0.0, |bucket| self.forward_s(bucket.width_px, bucket.height_px))
    }

    /// One round of sample pictures, each in its own size.
    pub(super) fn samples_s(&self) -> f64 {
        self.job.samples.as_ref().map_or(0.0, |samples: &SampleJob| {
            samples.pictures.iter().map(|picture| self.picture_s(picture)).sum()
        })
    }

    fn picture_s(&self, picture: &SamplePicture) -> f64 {
        let passes = picture.denoising_steps as f64 * if picture.guided { 2.0 } else { 1.0 };
        let pixels = picture.width_px as f64 * picture.height_px as f64;
        let decode_s = pixels * self.job.surroundings.vae_decode_flops_per_px / self.beside_rate();
        passes * self.forward_s(picture.width_px, picture.height_px) + decode_s
    }

    /// One measurement of the validation pictures.
    pub(super) fn validation_s(&self, validation: &ValidationJob) -> f64 {
        let passes = validation.pictures as f64 * validation.levels as f64;
        passes * self.forward_s(validation.side_px, validation.side_px)
    }

    /// Bytes of the LoRA in 16 bits.
    fn lora_bytes(&self) -> f64 {
        2.0 * self.lora_parameters()
    }

    fn lora_parameters(&self) -> f64 {
        match self.program.profile() {
            Some(profile) => {
                let targets = self.job.elsewhere.targets.unwrap_or(profile.targets);
                self.job.model.lora_parameters(self.job.rank, targets)
            }
            None => self.job.dims.lora_parameters(self.job.rank),
        }
    }

    /// Writing the LoRA in 16 bits; ai-toolkit also writes the optimiser, and hashes the file by serialising
    /// it again.
    pub(super) fn save_s(&self) -> f64 {
        let parameters = self.lora_parameters();
        let bytes = match self.program {
            Program::AiToolkit | Program::AiToolkit2025 => {
                4.0 + self.job.optimiser.state_bytes(self.job.rank)
            }
            _ => 2.0,
        };
        FILE_S + parameters * bytes / self.storage.write_bytes_per_s
    }
}

/// Signing in, creating the repository and the commit, and sending so many bytes: predicted seconds of an
/// upload.
pub fn upload_s(bytes: f64) -> f64 {
    UPLOAD_START_S + bytes / UPLOAD_BYTES_PER_S
}

/// Whether a base of this precision is worth a note about quality.
pub(super) fn damages(precision: Precision) -> bool {
    matches!(precision, Precision::Uint(bits) if bits < 4)
}
