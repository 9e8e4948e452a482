//! Reads the language model's weights; the vision tower and the output head stay on disk.

use std::path::Path;

use tenggat_tensor::{DType, Device};

use super::layer::{Layer, Linear};
use super::{Config, TextEncoder};
use crate::transformer::Precision;
use crate::weights::{Checkpoint, Matrix, Modules, Progress, Quantisation, Source, Weights};
use crate::{Error, Interrupt, Result};

const CLASS: &str = "Qwen2_5_VLForConditionalGeneration";

/// Where the language model's tensors lie: as published (transformers up to 4.51), as later versions save it,
/// as those before its release did, and the language model alone.
const PREFIXES: [&str; 4] = ["model.", "model.language_model.", "language_model.model.", ""];

/// Reads vectors and matrices by the names of the language model.
struct Loader<'a> {
    source: &'a Checkpoint,
    compute: DType,
    device: &'a Device,
    config: &'a Config,
}

/// A linear layer as part of the checkpoint, and whether it has a bias.
type Named = (Matrix, bool);

/// The linear layers of one decoder layer.
struct Layers {
    q: Named,
    k: Named,
    v: Named,
    o: Named,
    gate: Named,
    up: Named,
    down: Named,
}

impl Layers {
    fn new(config: &Config, index: usize) -> Self {
        let (c, inner) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let named = |part: &str, input, output, bias| {
            (Matrix::stacked(vec![format!("layers.{index}.{part}")], input, output), bias)
        };
        Layers {
            q: named("self_attn.q_proj", c, q, true),
            k: named("self_attn.k_proj", c, kv, true),
            v: named("self_attn.v_proj", c, kv, true),
            o: named("self_attn.o_proj", q, c, false),
            gate: named("mlp.gate_proj", c, inner, false),
            up: named("mlp.up_proj", c, inner, false),
            down: named("mlp.down_proj", inner, c, false),
        }
    }

    fn matrices(self) -> [Matrix; 7] {
        [self.q, self.k, self.v, self.o, self.gate, self.up, self.down].map(|(matrix, _)| matrix)
    }
}

impl Loader<'_> {
    fn linear(&self, (matrix, bias): Named) -> Result<Linear> {
        let weight = self.source.matrix(&matrix)?.into_device(self.device)?;
        let on_cpu = matches!(self.device, Device::Cpu(_));
        let weight = if on_cpu && self.compute == DType::F32 { weight.packed(true)? } else { weight };
        Ok(Linear { weight, bias: bias.then(|| self.source.bias(&matrix)).transpose()? })
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let norm = |part: &str| {
            self.source.vector(&format!("layers.{index}.{part}.weight"), self.config.hidden_size)
        };
        let layers = Layers::new(self.config, index);
        Ok(Layer {
            attention_norm: norm("input_layernorm")?,
            q: self.linear(layers.q)?,
            k: self.linear(layers.k)?,
            v: self.linear(layers.v)?,
            o: self.linear(layers.o)?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate: self.linear(layers.gate)?,
            up: self.linear(layers.up)?,
            down: self.linear(layers.down)?,
        })
    }
}

impl TextEncoder {
    /// Reads `<folder>/config.json` and the weights beside it. With bf16 weights the published encoder takes
    /// 14 GB and computes the same numbers as with f32 ones: they are widened as they are used.
    ///
    /// # Errors
    /// A file is missing or malformed, a tensor is missing or has another shape, or the variant is not
    /// supported.
    pub fn load(folder: &Path, device: &Device, precision: Precision) -> Result<Self> {
        Self::load_with(folder, device, precision, None, &|_, _| {}, &Interrupt::default())
    }

    /// The same with quantised linear layers; the embeddings stay as they are. `progress` is told how far a
    /// first quantisation has come; `interrupt` ends loading, and later encoding, early.
    ///
    /// # Errors
    /// As [`TextEncoder::load`]; or the folder of quantised models cannot be written to.
    pub fn load_with(
        folder: &Path,
        device: &Device,
        precision: Precision,
        quantisation: Option<&Quantisation>,
        progress: Progress<'_>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let config = Config::read(folder)?;
        let weights = Weights::open(folder, CLASS)?;
        let table = "embed_tokens.weight";
        let prefix = PREFIXES.into_iter().find(|prefix| weights.contains(&format!("{prefix}{table}")));
        let prefix = prefix.ok_or_else(|| Error::MissingTensor {
            path: folder.to_path_buf(),
            name: format!("{}{table}", PREFIXES[0]),
            architecture: CLASS,
        })?;
        let shape = [config.vocab_size, config.hidden_size];
        let embedding = weights.tensor(&format!("{prefix}{table}"), &shape, device, precision.weights)?;
        let source = Checkpoint::new(weights, prefix, device, precision.compute, precision.weights);
        let mut source = source.interrupted_by(interrupt);
        let indices = 0..config.num_hidden_layers;
        if let Some(wanted) = quantisation {
            let matrices: Vec<Matrix> =
                indices.clone().flat_map(|index| Layers::new(&config, index).matrices()).collect();
            source = source.quantised(wanted, Modules::All, &matrices, progress)?;
        }
        let load = Loader { source: &source, compute: precision.compute, device, config: &config };
        Ok(TextEncoder {
            embedding,
            layers: indices.map(|index| load.layer(index)).collect::<Result<_>>()?,
            norm: source.vector("norm.weight", config.hidden_size)?,
            compute: precision.compute,
            config,
            interrupt: interrupt.clone(),
        })
    }
}
