//! Reads a T5 encoder; a decoder beside it stays on disk.

use std::path::Path;

use tenggat_tensor::weight::Weight;
use tenggat_tensor::{DType, Device};

use super::bias::Bias;
use super::layer::Layer;
use super::{Config, TextEncoder};
use crate::transformer::Precision;
use crate::weights::{Checkpoint, Matrix, Modules, Progress, Quantisation, Source, Weights};
use crate::{Error, Interrupt, Result};

const CLASS: &str = "T5EncoderModel";

/// The token table, by the names that it is saved under.
const TABLES: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// The linear layers of one encoder layer, in the order of the fields of [`Layer`].
fn matrices(config: &Config, index: usize) -> [Matrix; 7] {
    let (c, inner, ff) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
    let one = |part: &str, input, output| {
        Matrix::stacked(vec![format!("encoder.block.{index}.layer.{part}")], input, output)
    };
    [
        one("0.SelfAttention.q", c, inner),
        one("0.SelfAttention.k", c, inner),
        one("0.SelfAttention.v", c, inner),
        one("0.SelfAttention.o", inner, c),
        one("1.DenseReluDense.wi_0", c, ff),
        one("1.DenseReluDense.wi_1", c, ff),
        one("1.DenseReluDense.wo", ff, c),
    ]
}

struct Loader<'a> {
    source: &'a Checkpoint,
    compute: DType,
    device: &'a Device,
    config: &'a Config,
}

impl Loader<'_> {
    fn weight(&self, matrix: &Matrix) -> Result<Weight> {
        let weight = self.source.matrix(matrix)?.into_device(self.device)?;
        let on_cpu = matches!(self.device, Device::Cpu(_));
        Ok(if on_cpu && self.compute == DType::F32 { weight.packed(true)? } else { weight })
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let norm = |part: usize| {
            let name = format!("encoder.block.{index}.layer.{part}.layer_norm.weight");
            self.source.vector(&name, self.config.d_model)
        };
        let [q, k, v, o, wi_0, wi_1, wo] = matrices(self.config, index);
        Ok(Layer {
            attention_norm: norm(0)?,
            q: self.weight(&q)?,
            k: self.weight(&k)?,
            v: self.weight(&v)?,
            o: self.weight(&o)?,
            mlp_norm: norm(1)?,
            wi_0: self.weight(&wi_0)?,
            wi_1: self.weight(&wi_1)?,
            wo: self.weight(&wo)?,
        })
    }
}

impl TextEncoder {
    /// Reads `<folder>/config.json` and the weights beside it, the linear layers quantised if wanted; the
    /// embeddings stay as they are. `progress` is told how far a first quantisation has come; `interrupt`
    /// ends loading, and later encoding, early.
    ///
    /// # Errors
    /// A file is missing or malformed, a tensor is missing or has another shape, or the variant is not
    /// supported; or the folder of quantised models cannot be written to.
    pub fn load(
        folder: &Path,
        device: &Device,
        precision: Precision,
        quantisation: Option<&Quantisation>,
        progress: Progress<'_>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let config = Config::read(folder)?;
        let weights = Weights::open(folder, CLASS)?;
        let table = TABLES.into_iter().find(|name| weights.contains(name));
        let table = table.ok_or_else(|| Error::MissingTensor {
            path: folder.to_path_buf(),
            name: TABLES[0].into(),
            architecture: CLASS,
        })?;
        let embedding =
            weights.tensor(table, &[config.vocab_size, config.d_model], device, precision.weights)?;
        let (buckets, heads) = (config.relative_attention_num_buckets, config.num_heads);
        let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let values = weights.tensor(name, &[buckets, heads], &Device::cpu(), DType::F64)?.to_f64()?;
        let max_distance = config.relative_attention_max_distance;
        let source = Checkpoint::new(weights, "", device, precision.compute, precision.weights);
        let mut source = source.interrupted_by(interrupt);
        let indices = 0..config.num_layers;
        if let Some(wanted) = quantisation {
            let all: Vec<Matrix> = indices.clone().flat_map(|index| matrices(&config, index)).collect();
            source = source.quantised(wanted, Modules::All, &all, progress)?;
        }
        let load = Loader { source: &source, compute: precision.compute, device, config: &config };
        Ok(TextEncoder {
            embedding,
            bias: Bias { values, heads, buckets, max_distance },
            layers: indices.map(|index| load.layer(index)).collect::<Result<_>>()?,
            norm: source.vector("encoder.final_layer_norm.weight", config.d_model)?,
            compute: precision.compute,
            config,
            interrupt: interrupt.clone(),
        })
    }
}
