//! Reads CLIP's text model.

use std::path::Path;

use tenggat_tensor::{Device, Tensor};

use super::layer::{Layer, Linear, Norm};
use super::{Config, TextModel};
use crate::transformer::Precision;
use crate::weights::{Checkpoint, Matrix, Source, Weights};
use crate::{Error, Interrupt, Result};

const CLASS: &str = "CLIPTextModel";

/// Where the tensors lie: as published, and as a text model alone is saved.
const PREFIXES: [&str; 2] = ["text_model.", ""];

struct Loader<'a> {
    source: &'a Checkpoint,
    device: &'a Device,
    config: &'a Config,
}

impl Loader<'_> {
    fn linear(&self, module: String, input: usize, output: usize) -> Result<Linear> {
        let matrix = Matrix::stacked(vec![module], input, output);
        let weight = self.source.matrix(&matrix)?.into_device(self.device)?;
        Ok(Linear { weight, bias: self.source.bias(&matrix)? })
    }

    fn norm(&self, module: &str) -> Result<Norm> {
        let c = self.config.hidden_size;
        let row = |part: &str| -> Result<Tensor> {
            Ok(self.source.vector(&format!("{module}.{part}"), c)?.reshape(&[1, c])?)
        };
        Ok(Norm { weight: row("weight")?, bias: row("bias")? })
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let (c, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let name = |part: &str| format!("encoder.layers.{index}.{part}");
        Ok(Layer {
            norm1: self.norm(&name("layer_norm1"))?,
            q: self.linear(name("self_attn.q_proj"), c, c)?,
            k: self.linear(name("self_attn.k_proj"), c, c)?,
            v: self.linear(name("self_attn.v_proj"), c, c)?,
            out: self.linear(name("self_attn.out_proj"), c, c)?,
            norm2: self.norm(&name("layer_norm2"))?,
            fc1: self.linear(name("mlp.fc1"), c, inner)?,
            fc2: self.linear(name("mlp.fc2"), inner, c)?,
        })
    }
}

impl TextModel {
    /// Reads `<folder>/config.json` and the weights beside it. `interrupt` ends loading, and later encoding,
    /// early.
    ///
    /// # Errors
    /// A file is missing or malformed, a tensor is missing or has another shape, or the variant is not
    /// supported.
    pub fn load(folder: &Path, device: &Device, precision: Precision, interrupt: &Interrupt) -> Result<Self> {
        let config = Config::read(folder)?;
        let weights = Weights::open(folder, CLASS)?;
        let table = "embeddings.token_embedding.weight";
        let prefix = PREFIXES.into_iter().find(|prefix| weights.contains(&format!("{prefix}{table}")));
        let prefix = prefix.ok_or_else(|| Error::MissingTensor {
            path: folder.to_path_buf(),
            name: format!("{}{table}", PREFIXES[0]),
            architecture: CLASS,
        })?;
        let embedding = |name: &str, rows| {
            let name = format!("{prefix}embeddings.{name}_embedding.weight");
            weights.tensor(&name, &[rows, config.hidden_size], device, precision.compute)
        };
        let (tokens, positions) =
            (embedding("token", config.vocab_size)?, embedding("position", config.max_position_embeddings)?);
        let source = Checkpoint::new(weights, prefix, device, precision.compute, precision.weights);
        let source = source.interrupted_by(interrupt);
        let load = Loader { source: &source, device, config: &config };
        let layers = (0..config.num_hidden_layers).map(|index| load.layer(index)).collect::<Result<_>>()?;
        let (norm, interrupt) = (load.norm("final_layer_norm")?, interrupt.clone());
        Ok(TextModel { tokens, positions, layers, norm, compute: precision.compute, config, interrupt })
    }
}
