//! Whole training steps of a small transformer with random weights: the truth that a calibration is corrected
//! by.

use std::path::Path;
use std::sync::Arc;

use tenggat_models::qwen_image::TextBatch;
use tenggat_models::qwen_image::geometry::{LATENTS_PER_TOKEN, PATCH};
use tenggat_models::transformer::layer::{self, Family, Layer};
use tenggat_models::transformer::{
    Config, LoadOptions, Positions, Precision, Recompute, SINUSOID, Transformer,
};
use tenggat_models::{Error, Result};
use tenggat_plan::{ModelDims, Modulation, Precision as Planned, StepConfig, StepShape};
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};

use crate::files::atomic;
use crate::files::tensor_file::{self, Entry};
use crate::job::SaveType;
use crate::lora::initial;
use crate::step::optimiser::{Method, Optimiser};
use crate::step::random::Level;
use crate::step::{Batch, Trainer};

/// Latent channels.
const LATENT_CHANNELS: usize = 16;
/// Channels of a token.
const TOKEN_CHANNELS: usize = LATENTS_PER_TOKEN * LATENT_CHANNELS;

/// A training step to be timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rehearsal {
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels per head; divisible by 8.
    pub head_dim: usize,
    /// Channels of the text embeddings.
    pub joint_dim: usize,
    /// Rows and columns of patches.
    pub grid: (usize, usize),
    /// Text tokens.
    pub text_tokens: usize,
    /// Pictures per step.
    pub batch: usize,
    /// Rank of the LoRA.
    pub rank: usize,
}

impl Rehearsal {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The same step as planning sees it: 32-bit floats, every block keeping its activations, plain AdamW.
    pub fn step_config(&self) -> StepConfig {
        StepConfig {
            dims: ModelDims {
                layers: self.layers as u64,
                heads: self.heads as u64,
                head_dim: self.head_dim as u64,
                joint_dim: self.joint_dim as u64,
                in_channels: TOKEN_CHANNELS as u64,
                ..ModelDims::QWEN_IMAGE
            },
            shape: StepShape {
                batch: self.batch as u64,
                image_tokens: (self.grid.0 * self.grid.1) as u64,
                text_tokens: self.text_tokens as u64,
            },
            rank: self.rank as u64,
            precision: Planned::F32,
            ara_rank: None,
            activation_bytes: 4.0,
            fp8_products: false,
            keep_all: self.layers as u64,
            keep_results: 0,
            offloaded_blocks: 0,
            modulation: Modulation::EveryStep,
            optimiser: tenggat_plan::Optimiser::AdamW,
            accumulation: 1,
        }
    }

    /// The transformer of this step, random weights.
    ///
    /// # Errors
    /// Its files cannot be written to the system's folder for such, or out of memory.
    pub fn model(&self, device: &Device) -> Result<Transformer> {
        self.model_in(device, Precision { compute: DType::F32, weights: DType::F32 })
    }

    /// The same with other element types; products with bf16 weights in bf16.
    ///
    /// # Errors
    /// As [`Rehearsal::model`].
    pub fn model_in(&self, device: &Device, precision: Precision) -> Result<Transformer> {
        let folder = atomic::private_folder().map_err(|e| unwritten(&std::env::temp_dir(), &e))?;
        self.write(folder.path()).map_err(|e| unwritten(folder.path(), &e))?;
        let options = LoadOptions { bf16_products: precision.weights == DType::BF16, ..Default::default() };
        Transformer::load_with(folder.path(), device, precision, options)
    }

    fn write(&self, folder: &Path) -> std::io::Result<()> {
        // Two of three parts for rows and columns; all are even as long as a head is divisible by 8.
        let part = self.head_dim / 8 * 2;
        let config = serde_json::json!({
            "num_layers": self.layers, "num_attention_heads": self.heads, "attention_head_dim": self.head_dim,
            "joint_attention_dim": self.joint_dim, "in_channels": TOKEN_CHANNELS,
            "out_channels": LATENT_CHANNELS, "patch_size": PATCH,
            "axes_dims_rope": [self.head_dim - 2 * part, part, part],
        });
        let text = config.to_string();
        std::fs::write(folder.join("config.json"), &text)?;
        let config: Config = serde_json::from_str(&text)?;
        let (mut entries, random) = (Vec::new(), Philox::new(1));
        let mut push = |name: String, shape: Vec<usize>, scale: f32| {
            let mut values = vec![0.0f32; shape.iter().product()];
            random.normal(entries.len() as u64, &mut values);
            values.iter_mut().for_each(|v| *v *= scale);
            entries.push(Entry::floats(name, shape, &values, SaveType::F32));
        };
        let inner = config.inner();
        let mut linear = |name: &str, input: usize, output: usize| {
            push(format!("{name}.weight"), vec![output, input], 1.0 / (input as f32).sqrt());
            push(format!("{name}.bias"), vec![output], 0.01);
        };
        linear("img_in", config.in_channels, inner);
        linear("txt_in", config.joint_attention_dim, inner);
        linear("time_text_embed.timestep_embedder.linear_1", SINUSOID, inner);
        linear("time_text_embed.timestep_embedder.linear_2", inner, inner);
        linear("norm_out.linear", inner, 2 * inner);
        linear("proj_out", inner, config.in_channels);
        for block in 0..config.num_layers {
            for kind in Layer::ALL {
                let (input, output) = kind.dims(inner);
                let modules = kind.modules(Family::QwenImage);
                for module in modules {
                    linear(&layer::module_name(block, module), input, output / modules.len());
                }
            }
        }
        push("txt_norm.weight".into(), vec![config.joint_attention_dim], 1.0);
        for block in 0..config.num_layers {
            for norm in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
                push(
                    format!("{}.weight", layer::module_name(block, &format!("attn.{norm}"))),
                    vec![self.head_dim],
                    1.0,
                );
            }
        }
        tensor_file::sort(&mut entries);
        tensor_file::write(&folder.join("diffusion_pytorch_model.safetensors"), &[], &entries)
    }

    /// A stage on which the step can be run again and again.
    ///
    /// # Errors
    /// Out of memory.
    pub fn stage<'a>(&self, model: &'a Transformer) -> Result<Stage<'a>> {
        let device = model.device();
        let tokens = self.grid.0 * self.grid.1;
        let shape = [self.batch * tokens, TOKEN_CHANNELS];
        let lora = initial::initialise(model.lora_layout(self.rank, |_| true), 1, device, DType::F32)?;
        let optimiser = Optimiser::new(Method::default(), Some(1.0), &lora)?;
        let caption = normal(device, &[self.text_tokens, self.joint_dim], 2)?;
        Ok(Stage {
            trainer: Trainer::new(model, lora, optimiser, Recompute::NOTHING)?,
            latents: normal(device, &shape, 3)?,
            captions: (0..self.batch).map(|_| caption.duplicate()).collect::<Result<_, _>>()?,
            positions: Arc::new(model.positions(self.grid, TextBatch::padded(device, self.text_tokens))?),
            done: 0,
        })
    }

    /// What tells this step from others in tables: `width 256 × 4 blocks, 144 tokens, rank 16`.
    pub fn name(&self) -> String {
        format!(
            "width {} × {} blocks, {} tokens, rank {}",
            self.width(),
            self.layers,
            self.batch * self.grid.0 * self.grid.1,
            self.rank
        )
    }
}

fn unwritten(folder: &Path, e: &std::io::Error) -> Error {
    Error::Unsupported(format!("a small model for timing cannot be written to {}: {e}", folder.display()))
}

fn normal(device: &Device, shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut values = vec![0.0f32; shape.iter().product()];
    Philox::new(seed).normal(0, &mut values);
    Ok(Tensor::from_f32(device, DType::F32, &values, shape)?)
}

/// A trainer with data.
#[derive(Debug)]
pub struct Stage<'a> {
    trainer: Trainer<'a>,
    latents: Tensor,
    captions: Vec<Tensor>,
    positions: Arc<Positions>,
    done: u64,
}

impl Stage<'_> {
    /// One step as the training loop does it, noise and batch included.
    ///
    /// # Errors
    /// The device failed.
    pub fn step(&mut self) -> Result<()> {
        self.done += 1;
        let shape = self.latents.shape().to_vec();
        let batch = Batch {
            mask: None,
            share: 1.0,
            strength: 1.0,
            number: 0,
            latents: self.latents.duplicate()?,
            noise: normal(&self.latents.device(), &shape, self.done)?,
            levels: vec![Level { sigma: 0.5, weight: 1.0 }; self.captions.len()],
            text: TextBatch::new(&self.captions.iter().collect::<Vec<_>>())?,
            positions: Arc::clone(&self.positions),
        };
        self.trainer.step(&[batch], 1e-5)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_runs() {
        let rehearsal = Rehearsal {
            layers: 2,
            heads: 2,
            head_dim: 24,
            joint_dim: 40,
            grid: (3, 4),
            text_tokens: 5,
            batch: 2,
            rank: 4,
        };
        let model = rehearsal.model(&Device::cpu()).unwrap();
        let mut stage = rehearsal.stage(&model).unwrap();
        stage.step().unwrap();
        stage.step().unwrap();
        // Planning counts the parameters that the trainer has.
        let layout = model.lora_layout(4, |_| true);
        assert_eq!(rehearsal.step_config().dims.lora_parameters(4), layout.len() as f64);
    }
}
