//! Reads the language model's weights; the vision tower and the output head stay on disk.

use std::path::Path;

use tenggat_tensor::ops::linear::Weight;
use tenggat_tensor::{Device, Tensor};

use super::layer::{Layer, Linear};
use super::{Config, TextEncoder};
use crate::qwen_image::transformer::Precision;
use crate::weights::Weights;
use crate::{Error, Result};

const CLASS: &str = "Qwen2_5_VLForConditionalGeneration";

/// Where the language model's tensors lie: as published (transformers up to 4.51), as later versions save it, as
/// those before its release did, and the language model alone.
const PREFIXES: [&str; 4] = ["model.", "model.language_model.", "language_model.model.", ""];

struct Loader<'a> {
    weights: Weights,
    prefix: &'static str,
    device: &'a Device,
    precision: Precision,
}

impl Loader<'_> {
    /// A norm or a bias, in the computing type.
    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix), &[len], self.device, self.precision.compute)
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        let name = format!("{}{name}", self.prefix);
        self.weights.tensor(&name, &[rows, columns], self.device, self.precision.weights)
    }

    fn linear(&self, name: &str, input: usize, output: usize, bias: bool) -> Result<Linear> {
        let weight = Weight::Dense(self.matrix(&format!("{name}.weight"), output, input)?);
        let bias = if bias { Some(self.vector(&format!("{name}.bias"), output)?) } else { None };
        Ok(Linear { weight, bias })
    }

    fn layer(&self, config: &Config, index: usize) -> Result<Layer> {
        let (c, inner) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let name = |part: &str| format!("layers.{index}.{part}");
        Ok(Layer {
            attention_norm: self.vector(&name("input_layernorm.weight"), c)?,
            q: self.linear(&name("self_attn.q_proj"), c, q, true)?,
            k: self.linear(&name("self_attn.k_proj"), c, kv, true)?,
            v: self.linear(&name("self_attn.v_proj"), c, kv, true)?,
            o: self.linear(&name("self_attn.o_proj"), q, c, false)?,
            mlp_norm: self.vector(&name("post_attention_layernorm.weight"), c)?,
            gate: self.linear(&name("mlp.gate_proj"), c, inner, false)?,
            up: self.linear(&name("mlp.up_proj"), c, inner, false)?,
            down: self.linear(&name("mlp.down_proj"), inner, c, false)?,
        })
    }
}

impl TextEncoder {
    /// Reads `<folder>/config.json` and the weights beside it. With bf16 weights the published encoder takes 14 GB
    /// and computes the same numbers as with f32 ones: they are widened as they are used.
    ///
    /// # Errors
    /// A file is missing or malformed, a tensor is missing or has another shape, or the variant is not supported.
    pub fn load(folder: &Path, device: &Device, precision: Precision) -> Result<Self> {
        let config = Config::read(folder)?;
        let weights = Weights::open(folder, CLASS)?;
        let table = "embed_tokens.weight";
        let prefix = PREFIXES.into_iter().find(|prefix| weights.contains(&format!("{prefix}{table}")));
        let prefix = prefix.ok_or_else(|| Error::MissingTensor {
            path: folder.to_path_buf(),
            name: format!("{}{table}", PREFIXES[0]),
            architecture: CLASS,
        })?;
        let load = Loader { weights, prefix, device, precision };
        Ok(TextEncoder {
            embedding: load.matrix(table, config.vocab_size, config.hidden_size)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| load.layer(&config, index))
                .collect::<Result<_>>()?,
            norm: load.vector("norm.weight", config.hidden_size)?,
            compute: precision.compute,
            config,
        })
    }
}
