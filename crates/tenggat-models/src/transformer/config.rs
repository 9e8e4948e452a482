//! Dimensions of a transformer.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::layer::{self, Family, Layer, SingleLayer};
use crate::lora::Candidate;
use crate::weights::{Matrix, Part, dimension, read_json};
use crate::{Error, Result};

/// `transformer/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    #[serde(skip, default = "qwen_image")]
    family: Family,
    /// Double blocks.
    pub num_layers: usize,
    /// Single blocks, which follow them.
    #[serde(default)]
    pub num_single_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Channels of the text embeddings.
    pub joint_attention_dim: usize,
    /// Channels of the pooled text, where the family has one.
    #[serde(default)]
    pub pooled_projection_dim: Option<usize>,
    /// Channels of a packed latent token: 16 latent channels × patch².
    pub in_channels: usize,
    /// Latent channels of the prediction.
    pub out_channels: usize,
    /// Edge of a patch, in latent pixels.
    pub patch_size: usize,
    /// Head channels turned by the frame, row and column position.
    pub axes_dims_rope: [usize; 3],
    /// Whether the model takes a guidance scale as input: FLUX.1-dev does.
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

/// Edge of a patch of FLUX.1, whose pipeline cuts them; its configuration counts tokens and says 1.
const FLUX_PATCH: usize = 2;

fn qwen_image() -> Family {
    Family::QwenImage
}

/// A fused linear layer of a block: modules whose outputs lie side by side.
pub(super) struct Fused {
    /// Input width.
    pub input: usize,
    /// Dotted name and output width of each.
    pub modules: Vec<(String, usize)>,
    /// Whether the prediction depends on it.
    pub trained: bool,
}

impl Fused {
    /// The layer as parts of the checkpoint.
    pub fn matrix(&self) -> Matrix {
        let part = |(module, output): &(String, usize)| Part {
            module: module.clone(),
            rows: 0..*output,
            of: *output,
        };
        Matrix { parts: self.modules.iter().map(part).collect(), input: self.input }
    }
}

impl Config {
    /// The published Qwen-Image: 60 blocks of 24 heads, 20.4 G weights in the blocks.
    pub fn qwen_image() -> Self {
        Config {
            family: Family::QwenImage,
            num_layers: 60,
            num_single_layers: 0,
            pooled_projection_dim: None,
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
        let mut raw: Value = read_json(&path)?;
        let is_flux = raw.get("_class_name").and_then(Value::as_str) == Some(Family::Flux.class());
        if is_flux && let Some(fields) = raw.as_object_mut() {
            let channels = fields.get("in_channels").and_then(Value::as_u64).unwrap_or(0);
            fields.insert("patch_size".into(), FLUX_PATCH.into());
            fields.insert("out_channels".into(), (channels / (FLUX_PATCH * FLUX_PATCH) as u64).into());
        }
        let parsed = serde_json::from_value(raw).map_err(|e| Error::format(&path, e.to_string()));
        let mut config: Config = parsed?;
        if is_flux {
            config.family = Family::Flux;
        } else {
            // Published configurations of Qwen-Image have the keys of FLUX.1 that nothing reads.
            (config.num_single_layers, config.pooled_projection_dim) = (0, None);
        }
        let refuse = |reason: String| Err(Error::format(&path, reason));
        config.variants().map_err(|reason| Error::format(&path, reason))?;
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

    /// Refuses what the family's class can be beside the model that is built here.
    ///
    /// # Errors
    /// The message names the key.
    fn variants(&self) -> Result<(), String> {
        if self.family == Family::Flux {
            return match self.pooled_projection_dim {
                Some(_) => Ok(()),
                None => Err("`pooled_projection_dim` is missing; FLUX.1 has it".into()),
            };
        }
        for (key, on) in [
            ("guidance_embeds", self.guidance_embeds),
            ("use_additional_t_cond", self.use_additional_t_cond),
            ("use_layer3d_rope", self.use_layer3d_rope),
            ("zero_cond_t", self.zero_cond_t),
        ] {
            if on {
                return Err(format!("`{key}: true` is a variant of Qwen-Image that is not supported"));
            }
        }
        Ok(())
    }

    /// Every dimension on its own. The limits are several times those of the largest model.
    ///
    /// # Errors
    /// The message names the dimension and its range.
    fn dimensions(&self) -> std::result::Result<(), String> {
        dimension("num_layers", self.num_layers, 1, 512)?;
        dimension("num_single_layers", self.num_single_layers, 0, 512)?;
        dimension("pooled_projection_dim", self.pooled_projection_dim.unwrap_or(1), 1, 32_768)?;
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

    /// Which model it is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Blocks of both kinds.
    pub fn blocks(&self) -> usize {
        self.num_layers + self.num_single_layers
    }

    /// Numbers of the fused layers of a block among those of all blocks.
    pub(super) fn layers_of(&self, block: usize) -> Range<usize> {
        let (double, single) = (Layer::ALL.len(), SingleLayer::ALL.len());
        if block < self.num_layers {
            return block * double..(block + 1) * double;
        }
        let first = self.num_layers * double + (block - self.num_layers) * single;
        first..first + single
    }

    /// The fused linear layers of a block, in the order of their numbers.
    pub(super) fn fused(&self, block: usize) -> Vec<Fused> {
        let inner = self.inner();
        if block >= self.num_layers {
            let name = |module| layer::single_module_name(block - self.num_layers, module);
            let fused = |layer: SingleLayer| Fused {
                input: layer.input(inner),
                modules: layer.modules().iter().map(|&(module, by)| (name(module), by * inner)).collect(),
                trained: true,
            };
            return SingleLayer::ALL.into_iter().map(fused).collect();
        }
        let last = block + 1 == self.blocks();
        let fused = |layer: Layer| {
            let (input, output) = layer.dims(inner);
            let parts = layer.modules(self.family);
            let name = |module: &&str| (layer::module_name(block, module), output / parts.len());
            let trained = !last || layer.feeds_the_last_image();
            Fused { input, modules: parts.iter().map(name).collect(), trained }
        };
        Layer::ALL.into_iter().map(fused).collect()
    }

    /// The fused linear layers of all blocks as LoRA sees them, in the order of their numbers.
    pub fn lora_layers(&self) -> Vec<(usize, Vec<Candidate>)> {
        let layers = (0..self.blocks()).flat_map(|block| self.fused(block));
        let layers = layers.map(|Fused { input, modules, trained }| {
            let candidate = |(name, output)| Candidate { name, output, trained };
            (input, modules.into_iter().map(candidate).collect())
        });
        layers.collect()
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

    #[test]
    fn flux_is_told_by_its_class_and_counts_patches_as_its_pipeline_does() {
        let folder = tempfile::tempdir().unwrap();
        let whole = serde_json::json!({
            "_class_name": "FluxTransformer2DModel", "num_layers": 2, "num_single_layers": 3,
            "num_attention_heads": 4, "attention_head_dim": 16, "joint_attention_dim": 40,
            "pooled_projection_dim": 32, "in_channels": 64, "out_channels": null, "patch_size": 1,
            "axes_dims_rope": [2, 6, 8], "guidance_embeds": true,
        });
        let read = |config: &serde_json::Value| {
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            Config::read(folder.path())
        };
        let config = read(&whole).unwrap();
        assert_eq!((config.family(), config.blocks()), (Family::Flux, 5));
        assert_eq!((config.patch_size, config.out_channels), (2, 16));
        assert_eq!(config.layers_of(4), 26..29);
        let modules: usize = config.lora_layers().iter().map(|(_, modules)| modules.len()).sum();
        assert_eq!(modules, 2 * 14 + 3 * 6);
        assert!(config.lora_layers().iter().flat_map(|(_, modules)| modules).all(|module| module.trained));
        let mut without = whole.clone();
        without["pooled_projection_dim"] = serde_json::Value::Null;
        assert!(read(&without).unwrap_err().to_string().contains("pooled_projection_dim"));
        without["_class_name"] = "QwenImageTransformer2DModel".into();
        without["patch_size"] = 2.into();
        without["out_channels"] = 16.into();
        let error = read(&without).unwrap_err().to_string();
        assert!(error.contains("guidance_embeds"), "{error}");
    }
}
