//! Reads the transformer's weights into the fused layers.

use std::path::Path;

use tenggat_tensor::ops::linear::Weight;
use tenggat_tensor::{DType, Device, Tensor};

use super::Transformer;
use super::block::Block;
use super::config::{Config, Layer, SINUSOID};
use super::linear::Linear;
use super::stream::{Layers, Stream};
use crate::Result;
use crate::weights::Weights;

/// Element types of a loaded model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Activations, biases and norms.
    pub compute: DType,
    /// Matrices of the blocks.
    pub weights: DType,
}

struct Loader<'a> {
    weights: &'a Weights,
    device: &'a Device,
    precision: Precision,
}

impl Loader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(name, shape, self.device, self.precision.compute)
    }

    fn linear(&self, name: &str, input: usize, output: usize) -> Result<Linear> {
        self.fused(&[name.to_string()], input, output)
    }

    /// Modules of equal width stacked into one layer of `output` channels.
    fn fused(&self, names: &[String], input: usize, output: usize) -> Result<Linear> {
        let part = output / names.len();
        let weight = |name: &String| {
            let name = format!("{name}.weight");
            self.weights.tensor(&name, &[part, input], self.device, self.precision.weights)
        };
        let bias = |name: &String| self.tensor(&format!("{name}.bias"), &[part]);
        let weight = stack(names.iter().map(weight).collect::<Result<_>>()?, &[output, input])?;
        let bias = stack(names.iter().map(bias).collect::<Result<_>>()?, &[output])?;
        Ok(Linear { weight: Weight::Dense(weight), bias: Some(bias) })
    }

    fn stream(&self, config: &Config, prefix: &str, layers: Layers, norms: [&str; 2]) -> Result<Stream> {
        let layer = |layer: Layer| {
            let (input, output) = layer.dims(config.inner());
            let names: Vec<String> = layer.modules().iter().map(|m| format!("{prefix}.{m}")).collect();
            self.fused(&names, input, output)
        };
        let d = config.attention_head_dim;
        let norm = |name: &&str| self.tensor(&format!("{prefix}.attn.{name}.weight"), &[d]);
        Ok(Stream {
            layers,
            modulation: layer(layers.modulation)?,
            qkv: layer(layers.qkv)?,
            head_norms: stack(norms.iter().map(norm).collect::<Result<_>>()?, &[2, d])?,
            out: layer(layers.out)?,
            mlp_in: layer(layers.mlp_in)?,
            mlp_out: layer(layers.mlp_out)?,
        })
    }
}

/// Tensors of one type laid end to end under a new shape.
fn stack(mut parts: Vec<Tensor>, shape: &[usize]) -> Result<Tensor> {
    if parts.len() == 1 {
        return Ok(parts.remove(0).reshape(shape)?);
    }
    let mut out = parts[0].empty_like(shape)?;
    let mut at = 0;
    for part in &parts {
        let n = part.len();
        tenggat_tensor::ops::copy::forward(part.matrix(0, 1, n)?, out.matrix_mut(at, 1, n)?)?;
        at += n;
    }
    Ok(out)
}

impl Transformer {
    /// Reads `<folder>/config.json` and the weights beside it.
    ///
    /// # Errors
    /// A file is missing or malformed, a tensor is missing or has another shape, or the variant is not supported.
    pub fn load(folder: &Path, device: &Device, precision: Precision) -> Result<Self> {
        let config = Config::read(folder)?;
        let weights = Weights::open(folder, "QwenImageTransformer2DModel")?;
        let load = Loader { weights: &weights, device, precision };
        let inner = config.inner();
        let mut blocks = Vec::with_capacity(config.num_layers);
        for i in 0..config.num_layers {
            let prefix = format!("transformer_blocks.{i}");
            blocks.push(Block {
                image: load.stream(&config, &prefix, Layers::IMAGE, ["norm_q", "norm_k"])?,
                text: load.stream(&config, &prefix, Layers::TEXT, ["norm_added_q", "norm_added_k"])?,
                last: i + 1 == config.num_layers,
            });
        }
        Ok(Transformer {
            image_in: load.linear("img_in", config.in_channels, inner)?,
            text_norm: load.tensor("txt_norm.weight", &[config.joint_attention_dim])?,
            text_in: load.linear("txt_in", config.joint_attention_dim, inner)?,
            time_1: load.linear("time_text_embed.timestep_embedder.linear_1", SINUSOID, inner)?,
            time_2: load.linear("time_text_embed.timestep_embedder.linear_2", inner, inner)?,
            // Upstream's last modulation is scale | shift; the op takes shift | scale.
            norm_out: swap_halves(load.linear("norm_out.linear", inner, 2 * inner)?)?,
            proj_out: load.linear("proj_out", inner, config.in_channels)?,
            device: device.clone(),
            precision,
            blocks,
            config,
        })
    }
}

/// The same layer with the two halves of its outputs exchanged.
fn swap_halves(linear: Linear) -> Result<Linear> {
    let swap = |t: &Tensor| -> Result<Tensor> {
        let mut out = t.empty_like(t.shape())?;
        let half = t.len() / 2;
        for (from, to) in [(0, half), (half, 0)] {
            tenggat_tensor::ops::copy::forward(t.matrix(from, 1, half)?, out.matrix_mut(to, 1, half)?)?;
        }
        Ok(out)
    };
    let Weight::Dense(weight) = &linear.weight else {
        return Err(crate::Error::Unsupported("the last modulation cannot be quantised".into()));
    };
    Ok(Linear { weight: Weight::Dense(swap(weight)?), bias: linear.bias.as_ref().map(swap).transpose()? })
}
