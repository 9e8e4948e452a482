//! Dimensions of a `QwenImageTransformer2DModel`.

use std::path::Path;

use serde::Deserialize;

use crate::lora::Candidate;
use crate::qwen_image::layer::{self, Layer};
use crate::weights::{dimension, read_json};
use crate::{Error, Result};

/// `transformer/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Channels of the text embeddings.
    pub joint_attention_dim: usize,
    /// Channels of a packed latent token: 16 latent channels × patch².
    pub in_channels: usize,
    /// Latent channels of the prediction.
    pub out_channels: usize,
    /// Edge of a patch, in latent pixels.
    pub patch_size: usize,
    /// Head channels turned by the frame, row and column position.
    pub axes_dims_rope: [usize; 3],
    /// Whether the model takes a guidance scale as input. Qwen-Image does not.
    #[serde(default)]
    pub guidance_embeds: bool,
    /// Variant of the layered model.
    #[serde(default)]
    use_additional_t_cond: bool,
    /// Variant of the layered model.
    #[serde(default)]
    use_layer3d_rope: bool,
    /// Variant of the edit model.
    #[serde(default)]
    zero_cond_t: bool,
}

/// Channels of the timestep's sinusoid.
pub const SINUSOID: usize = 256;

impl Config {
    /// The published Qwen-Image: 60 blocks of 24 heads, 20.4 G weights in the blocks.
    pub fn qwen_image() -> Self {
        Config {
            num_layers: 60,
            num_attention_heads: 24,
            attention_head_dim: 128,
            joint_attention_dim: 3584,
            in_channels: 64,
            out_channels: 16,
            patch_size: 2,
            axes_dims_rope: [16, 56, 56],
            guidance_embeds: false,
            use_additional_t_cond: false,
            use_layer3d_rope: false,
            zero_cond_t: false,
        }
    }

    /// Reads and checks `<folder>/config.json`.
    ///
    /// # Errors
    /// The file is missing or malformed, or describes a variant that is not supported.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Config = read_json(&path)?;
        let refuse = |reason: String| Err(Error::format(&path, reason));
        for (key, on) in [
            ("guidance_embeds", config.guidance_embeds),
            ("use_additional_t_cond", config.use_additional_t_cond),
            ("use_layer3d_rope", config.use_layer3d_rope),
            ("zero_cond_t", config.zero_cond_t),
        ] {
            if on {
                return refuse(format!("`{key}: true` is a variant of Qwen-Image that is not supported"));
            }
        }
        config.dimensions().map_err(|reason| Error::format(&path, reason))?;
        let rope: usize = config.axes_dims_rope.iter().sum();
        if rope != config.attention_head_dim || config.axes_dims_rope.iter().any(|d| d % 2 == 1) {
            return refuse(format!(
                "axes_dims_rope {:?} must be even and sum to attention_head_dim {}",
                config.axes_dims_rope, config.attention_head_dim
            ));
        }
        if config.in_channels != config.out_channels * config.patch_size * config.patch_size {
            return refuse(format!(
                "in_channels {} must be out_channels {} x patch_size {} squared",
                config.in_channels, config.out_channels, config.patch_size
            ));
        }
        Ok(config)
    }

    /// Every dimension on its own. The limits are several times those of the largest model.
    ///
    /// # Errors
    /// The message names the dimension and its range.
    fn dimensions(&self) -> std::result::Result<(), String> {
        dimension("num_layers", self.num_layers, 1, 512)?;
        dimension("num_attention_heads", self.num_attention_heads, 1, 256)?;
        dimension("attention_head_dim", self.attention_head_dim, 2, 512)?;
        dimension("joint_attention_dim", self.joint_attention_dim, 1, 32_768)?;
        dimension("in_channels", self.in_channels, 1, 16_384)?;
        dimension("out_channels", self.out_channels, 1, 16_384)?;
        dimension("patch_size", self.patch_size, 1, 32)?;
        self.axes_dims_rope.iter().try_for_each(|&d| dimension("axes_dims_rope", d, 0, 512))?;
        dimension("num_attention_heads × attention_head_dim", self.inner(), 2, 16_384)
    }

    /// Width of the residual streams.
    pub fn inner(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// The fused linear layers of all blocks as LoRA sees them, in the order of [`Layer`].
    pub fn lora_layers(&self) -> Vec<(usize, Vec<Candidate>)> {
        let inner = self.inner();
        let mut layers = Vec::new();
        for block in 0..self.num_layers {
            for layer in Layer::ALL {
                let trained = block + 1 < self.num_layers || layer.feeds_the_last_image();
                let (input, output) = layer.dims(inner);
                let parts = layer.modules();
                let candidates = parts.iter().map(|part| Candidate {
                    name: layer::module_name(block, part),
                    output: output / parts.len(),
                    trained,
                });
                layers.push((input, candidates.collect()));
            }
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_that_no_model_has_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let whole = serde_json::json!({
            "num_layers": 6, "num_attention_heads": 3, "attention_head_dim": 64, "joint_attention_dim": 128,
            "in_channels": 64, "out_channels": 16, "patch_size": 2, "axes_dims_rope": [8, 28, 28],
        });
        let read = |config: &serde_json::Value| {
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            Config::read(folder.path())
        };
        assert_eq!(read(&whole).unwrap().inner(), 192);
        for (key, value) in whole.as_object().unwrap() {
            for absurd in [0, 1 << 31, u64::MAX] {
                let mut config = whole.clone();
                config[key] = match value {
                    serde_json::Value::Array(_) => serde_json::json!([absurd, 28, 28]),
                    _ => absurd.into(),
                };
                let error = read(&config).unwrap_err().to_string();
                assert!(error.contains(key.as_str()), "{key} {absurd}: {error}");
            }
        }
    }
}
