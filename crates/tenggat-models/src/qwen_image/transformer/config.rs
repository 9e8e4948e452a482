//! Dimensions of a `QwenImageTransformer2DModel`.

use std::path::Path;

use serde::Deserialize;

use crate::lora::Candidate;
use crate::weights::read_json;
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
/// Hidden width of the feed-forward layers over the inner width.
pub const MLP_RATIO: usize = 4;

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
        if config.num_layers == 0 || config.num_attention_heads == 0 || config.patch_size == 0 {
            return refuse("num_layers, num_attention_heads and patch_size must be at least 1".into());
        }
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
                    name: format!("transformer_blocks.{block}.{part}"),
                    output: output / parts.len(),
                    trained,
                });
                layers.push((input, candidates.collect()));
            }
        }
        layers
    }
}

/// The fused linear layers of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Modulation of the image stream.
    ImgMod,
    /// Modulation of the text stream.
    TxtMod,
    /// Queries, keys and values of the image stream.
    ImgQkv,
    /// Queries, keys and values of the text stream.
    TxtQkv,
    /// Output projection of the image stream.
    ImgOut,
    /// Output projection of the text stream.
    TxtOut,
    /// First feed-forward layer of the image stream.
    ImgMlpIn,
    /// Second feed-forward layer of the image stream.
    ImgMlpOut,
    /// First feed-forward layer of the text stream.
    TxtMlpIn,
    /// Second feed-forward layer of the text stream.
    TxtMlpOut,
}

impl Layer {
    /// All of them, in the order of their numbers.
    pub const ALL: [Layer; 10] = [
        Layer::ImgMod,
        Layer::TxtMod,
        Layer::ImgQkv,
        Layer::TxtQkv,
        Layer::ImgOut,
        Layer::TxtOut,
        Layer::ImgMlpIn,
        Layer::ImgMlpOut,
        Layer::TxtMlpIn,
        Layer::TxtMlpOut,
    ];

    /// Number of this layer among those of all blocks.
    pub fn number(self, block: usize) -> usize {
        block * Self::ALL.len() + self as usize
    }

    /// Modules whose outputs stand side by side in the fused output, as diffusers names them.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Layer::ImgMod => &["img_mod.1"],
            Layer::TxtMod => &["txt_mod.1"],
            Layer::ImgQkv => &["attn.to_q", "attn.to_k", "attn.to_v"],
            Layer::TxtQkv => &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
            Layer::ImgOut => &["attn.to_out.0"],
            Layer::TxtOut => &["attn.to_add_out"],
            Layer::ImgMlpIn => &["img_mlp.net.0.proj"],
            Layer::ImgMlpOut => &["img_mlp.net.2"],
            Layer::TxtMlpIn => &["txt_mlp.net.0.proj"],
            Layer::TxtMlpOut => &["txt_mlp.net.2"],
        }
    }

    /// Input and fused output width.
    pub fn dims(self, inner: usize) -> (usize, usize) {
        match self {
            Layer::ImgMod | Layer::TxtMod => (inner, 6 * inner),
            Layer::ImgQkv | Layer::TxtQkv => (inner, 3 * inner),
            Layer::ImgOut | Layer::TxtOut => (inner, inner),
            Layer::ImgMlpIn | Layer::TxtMlpIn => (inner, MLP_RATIO * inner),
            Layer::ImgMlpOut | Layer::TxtMlpOut => (MLP_RATIO * inner, inner),
        }
    }

    /// Whether the prediction depends on this layer of the last block, whose text output is thrown away.
    fn feeds_the_last_image(self) -> bool {
        !matches!(self, Layer::TxtOut | Layer::TxtMlpIn | Layer::TxtMlpOut)
    }
}
