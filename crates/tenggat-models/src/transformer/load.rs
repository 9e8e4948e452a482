//! Builds the transformer from a source of weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tenggat_tensor::ops::copy;
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{DType, Device, Tensor};

use super::block::Block;
use super::config::{Config, SINUSOID};
use super::double::Double;
use super::embedder::Embedder;
use super::layer::{BLOCKS, Family, Layer, SINGLE_BLOCKS, SingleLayer, module_name, single_module_name};
use super::linear::Linear;
use super::model::Transformer;
use super::modulation::{Current, Modulation, ModulationStorage, Streamed};
use super::offloading::Offloading;
use super::precision::Precision;
use super::recovery::Recovery;
use super::single::Single;
use super::stream::{Layers, Stream};
use crate::weights::{Checkpoint, Matrix, Modules, Progress, Quantisation, Source, Weights};
use crate::{Error, Interrupt, Result};

/// How a transformer is loaded beyond its element types.
#[derive(Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// How matrices are quantised, if they are.
    pub quantisation: Option<&'a Quantisation>,
    /// Whether the modulation matrices stay in memory.
    pub modulation: ModulationStorage,
    /// Rounds the operands of products to bf16 where that is faster: those with matrices that are stored in
    /// bf16, and the attention's.
    pub bf16_products: bool,
    /// Multiplies the blocks' frozen linears in 8-bit floats where the device does that
    /// ([`Device::fp8_products`]) and their widths allow it: queries, keys and values, the output and
    /// the MLP of both streams. Their weights and the other operands of their products are rounded to 8
    /// bits, and they take 2 bytes per weight. Modulation, the ends of the model, adapters and layers
    /// that a recovery adapter repairs stay as they are.
    pub fp8_products: bool,
    /// Blocks, spread over the model, whose weights leave memory after each use and are read ahead of the
    /// next. Only quantised weights that lie in a file can.
    pub offloaded_blocks: usize,
    /// Told how far a first quantisation has come.
    pub progress: Option<Progress<'a>>,
    /// Ends loading, and later every pass through the model, early; `None`: nothing does.
    pub interrupt: Option<&'a Interrupt>,
}

struct Loader<'a> {
    source: &'a Arc<dyn Source>,
    recovery: Option<&'a Recovery>,
    device: &'a Device,
    modulation: ModulationStorage,
    bf16_products: bool,
    offloading: &'a Offloading,
    fp8_products: bool,
    compute: DType,
    config: &'a Config,
}

impl Loader<'_> {
    /// A matrix in the form in which the device multiplies it.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, a matrix cannot be read or quantised, or the device failed.
    fn weight(&self, matrix: &Matrix, offloaded: bool) -> Result<Weight> {
        let weight = self.source.matrix(matrix)?;
        if let Device::Cuda(_) = self.device {
            return Ok(if offloaded {
                weight.lent_to(self.device)?
            } else {
                weight.into_device(self.device)?
            });
        }
        // Packed products are 32-bit.
        if self.compute == DType::F32 { Ok(weight.packed(!self.bf16_products)?) } else { Ok(weight) }
    }

    /// A linear layer outside the blocks: weight `[out, in]`, bias `[out]`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, a matrix cannot be read or quantised, or the device failed.
    fn linear(&self, matrix: Matrix) -> Result<Linear> {
        self.linear_of(matrix, false)
    }

    /// The same of a block whose weights leave memory after each use, if it is one.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, a matrix cannot be read or quantised, or the device failed.
    fn linear_of(&self, matrix: Matrix, offloaded: bool) -> Result<Linear> {
        Ok(Linear {
            weight: self.weight(&matrix, offloaded)?,
            bias: Some(self.source.bias(&matrix)?),
            recovery: self.recovery.map(|r| r.branch(&matrix, self.device)).transpose()?.flatten(),
        })
    }

    /// A linear of a block, whose weights may leave memory after each use.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, a matrix cannot be read or quantised, or the device failed.
    fn block_linear(&self, matrix: Matrix, offloaded: bool) -> Result<Linear> {
        let mut linear = self.linear_of(matrix, offloaded)?;
        // A recovery adapter was made for the weights as they are quantised, not for others near them.
        if self.fp8_products && !offloaded && linear.recovery.is_none() {
            linear.weight = linear.weight.into_fp8()?;
        }
        Ok(linear)
    }

    /// The modulation of a stream, `c` to `6c`; `slot`: its place in the table of streamed results.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, a matrix cannot be read or quantised, or the device failed.
    fn modulation(&self, matrix: Matrix, slot: usize) -> Result<Modulation> {
        if self.modulation == ModulationStorage::Resident {
            return Ok(Modulation::Resident(self.linear(matrix)?));
        }
        Ok(Modulation::Streamed(Streamed {
            columns: slot * matrix.output()..(slot + 1) * matrix.output(),
            bias: self.source.bias(&matrix)?,
            recovery: self.recovery.map(|r| r.branch(&matrix, self.device)).transpose()?.flatten(),
            source: Arc::clone(self.source),
            matrix,
        }))
    }

    /// A stream of a block; `norms`: names of its query norm and key norm.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, a matrix cannot be read or quantised, or the device failed.
    fn stream(&self, block: usize, layers: Layers, norms: [&str; 2]) -> Result<Stream> {
        let fused = self.config.fused(block);
        let matrix = |layer: usize| fused[layer].matrix();
        let head_norms = self.head_norms(norms.map(|name| module_name(block, &format!("attn.{name}"))))?;
        let offloaded = self.offloading.has(block);
        let slot = 2 * block + usize::from(layers.modulation == Layer::TxtMod as usize);
        Ok(Stream {
            layers,
            modulation: self.modulation(matrix(layers.modulation), slot)?,
            qkv: self.block_linear(matrix(layers.qkv), offloaded)?,
            head_norms,
            out: self.block_linear(matrix(layers.out), offloaded)?,
            mlp_in: self.block_linear(matrix(layers.mlp_in), offloaded)?,
            mlp_out: self.block_linear(matrix(layers.mlp_out), offloaded)?,
        })
    }

    /// Query and key norm weights, `[2, d]`, of two modules.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    fn head_norms(&self, modules: [String; 2]) -> Result<Tensor> {
        let d = self.config.attention_head_dim;
        let [first, second] = modules.map(|module| self.source.vector(&format!("{module}.weight"), d));
        let (first, second) = (first?, second?);
        let mut head_norms = first.empty_like(&[2, d])?;
        copy::forward(first.view(), head_norms.view_mut().row_range(0..1))?;
        copy::forward(second.view(), head_norms.view_mut().row_range(1..2))?;
        Ok(head_norms)
    }

    /// A block, by its number among both kinds.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, a matrix cannot be read or quantised, or the device failed.
    fn block(&self, block: usize) -> Result<Block> {
        let doubles = self.config.num_layers;
        if block < doubles {
            return Ok(Block::Double(Box::new(Double {
                image: self.stream(block, Layers::IMAGE, ["norm_q", "norm_k"])?,
                text: self.stream(block, Layers::TEXT, ["norm_added_q", "norm_added_k"])?,
                last: block + 1 == self.config.blocks(),
            })));
        }
        let fused = self.config.fused(block);
        let matrix = |layer: SingleLayer| fused[layer as usize].matrix();
        let offloaded = self.offloading.has(block);
        let norm = |name: &str| single_module_name(block - doubles, &format!("attn.{name}"));
        Ok(Block::Single(Box::new(Single {
            modulation: self.linear(matrix(SingleLayer::Mod))?,
            fused: self.block_linear(matrix(SingleLayer::QkvMlp), offloaded)?,
            head_norms: self.head_norms(["norm_q", "norm_k"].map(norm))?,
            out: self.block_linear(matrix(SingleLayer::Out), offloaded)?,
        })))
    }

    /// An embedder outside the blocks.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, a matrix cannot be read or quantised, or the device failed.
    fn embedder(&self, [first, second]: [Matrix; 2]) -> Result<Embedder> {
        Ok(Embedder { first: self.linear(first)?, second: self.linear(second)? })
    }
}

/// Matrices outside the blocks.
struct Ends {
    image_in: Matrix,
    text_in: Matrix,
    time: [Matrix; 2],
    guidance: Option<[Matrix; 2]>,
    pooled: Option<[Matrix; 2]>,
    norm_out: Matrix,
    proj_out: Matrix,
}

impl Ends {
    fn new(config: &Config) -> Self {
        let inner = config.inner();
        let one = |name: &str, input, output| Matrix::stacked(vec![name.into()], input, output);
        let embedder = |name: &str, input| {
            let layer = |number, input| one(&format!("time_text_embed.{name}.linear_{number}"), input, inner);
            [layer(1, input), layer(2, inner)]
        };
        let (image_in, text_in) = match config.family() {
            Family::QwenImage => ("img_in", "txt_in"),
            Family::Flux => ("x_embedder", "context_embedder"),
        };
        Ends {
            image_in: one(image_in, config.in_channels, inner),
            text_in: one(text_in, config.joint_attention_dim, inner),
            time: embedder("timestep_embedder", SINUSOID),
            guidance: config.guidance_embeds.then(|| embedder("guidance_embedder", SINUSOID)),
            pooled: config.pooled_projection_dim.map(|width| embedder("text_embedder", width)),
            // Upstream's last modulation is scale | shift; the op takes shift | scale.
            norm_out: Matrix::halves_swapped("norm_out.linear", inner, 2 * inner),
            proj_out: one("proj_out", inner, config.in_channels),
        }
    }
}

impl Config {
    /// All matrices of the model.
    pub fn matrices(&self) -> Vec<Matrix> {
        let blocks = (0..self.blocks()).flat_map(|block| self.fused(block));
        let mut all: Vec<Matrix> = blocks.map(|fused| fused.matrix()).collect();
        let Ends { image_in, text_in, time, guidance, pooled, norm_out, proj_out } = Ends::new(self);
        all.extend([image_in, text_in]);
        all.extend([Some(time), guidance, pooled].into_iter().flatten().flatten());
        all.extend([norm_out, proj_out]);
        all
    }
}

/// Opens the weights in a folder, quantised if the options say so, and the recovery adapter that belongs to
/// them.
///
/// # Errors
/// A file is missing or malformed, the adapter does not fit, or the cache folder cannot be written to.
fn open(
    folder: &Path,
    config: &Config,
    device: &Device,
    precision: Precision,
    options: LoadOptions<'_>,
) -> Result<(Checkpoint, Option<Recovery>)> {
    let weights = Weights::open(folder, config.family().class())?;
    let checkpoint = Checkpoint::new(weights, "", device, precision.compute, precision.weights);
    let checkpoint = match options.interrupt {
        Some(interrupt) => checkpoint.interrupted_by(interrupt),
        None => checkpoint,
    };
    let Some(wanted) = options.quantisation else { return Ok((checkpoint, None)) };
    let recovery = wanted.recovery.as_deref().map(Recovery::open).transpose()?;
    // Without a recovery adapter only the blocks are quantised. Deliberate difference: ai-toolkit quantises
    // the ends of the model too (`toolkit/util/quantize.py`), which are 0.1 % of its weights and which
    // every token passes.
    let modules =
        recovery.as_ref().map_or(Modules::Under(&[BLOCKS, SINGLE_BLOCKS]), |r| Modules::Only(r.modules()));
    let progress = options.progress.unwrap_or(&|_, _| {});
    Ok((checkpoint.quantised(wanted, modules, &config.matrices(), progress)?, recovery))
}

impl Transformer {
    /// Reads `<folder>/config.json` and the weights beside it.
    ///
    /// # Errors
    /// A file is missing or malformed, a tensor is missing or has another shape, or the variant is not
    /// supported.
    pub fn load(folder: &Path, device: &Device, precision: Precision) -> Result<Self> {
        Self::load_with(folder, device, precision, LoadOptions::default())
    }

    /// The same, quantised or with streamed modulation.
    ///
    /// One matrix at a time goes from the mapped file through quantisation to its place, so that no more is
    /// in memory than the result and one matrix. Quantised without a recovery adapter, every matrix of a
    /// block is quantised whose width the format allows; with one, those that it repairs.
    ///
    /// # Errors
    /// As [`Transformer::load`]; or the adapter does not fit, or the cache folder cannot be written to.
    pub fn load_with(
        folder: &Path,
        device: &Device,
        precision: Precision,
        options: LoadOptions<'_>,
    ) -> Result<Self> {
        let config = Config::read(folder)?;
        let (checkpoint, recovery) = open(folder, &config, device, precision, options)?;
        Self::from_source(config, device, precision, Arc::new(checkpoint), recovery.as_ref(), options)
    }

    /// Quantises the model in a folder for later loads and returns the file that keeps it; does nothing more
    /// if it is there. `wanted` names a folder to keep it in.
    ///
    /// # Errors
    /// As [`Transformer::load_with`]; `wanted` names no folder; somebody asked for the end.
    pub fn quantise(
        folder: &Path,
        wanted: &Quantisation,
        progress: Progress<'_>,
        interrupt: &Interrupt,
    ) -> Result<PathBuf> {
        let config = Config::read(folder)?;
        let precision = Precision { compute: DType::F32, weights: DType::BF16 };
        let (quantisation, progress, interrupt) = (Some(wanted), Some(progress), Some(interrupt));
        let options = LoadOptions { quantisation, progress, interrupt, ..LoadOptions::default() };
        let (checkpoint, _) = open(folder, &config, &Device::cpu(), precision, options)?;
        let path = checkpoint.kept().map(Path::to_path_buf);
        path.ok_or_else(|| Error::Unsupported("no folder was given to keep the quantised model in".into()))
    }

    /// A model of these dimensions from any source of weights.
    ///
    /// # Errors
    /// The source or the recovery adapter does not have what the dimensions ask for.
    pub fn from_source(
        config: Config,
        device: &Device,
        precision: Precision,
        source: Arc<dyn Source>,
        recovery: Option<&Recovery>,
        options: LoadOptions<'_>,
    ) -> Result<Self> {
        let LoadOptions { modulation, bf16_products, fp8_products, offloaded_blocks, .. } = options;
        let compute = precision.compute;
        // With a pooled text, modulation is no function of the noise level alone.
        let modulation = match config.pooled_projection_dim {
            Some(_) => ModulationStorage::Resident,
            None => modulation,
        };
        let offloading = Offloading::new(config.blocks(), offloaded_blocks);
        let load = Loader {
            source: &source,
            recovery,
            device,
            modulation,
            bf16_products,
            offloading: &offloading,
            fp8_products,
            compute,
            config: &config,
        };
        let blocks = (0..config.blocks()).map(|block| load.block(block)).collect::<Result<_>>()?;
        let ends = Ends::new(&config);
        let text_norm = (config.family() == Family::QwenImage)
            .then(|| source.vector("txt_norm.weight", config.joint_attention_dim));
        Ok(Transformer {
            image_in: load.linear(ends.image_in)?,
            text_norm: text_norm.transpose()?,
            text_in: load.linear(ends.text_in)?,
            time: load.embedder(ends.time)?,
            guidance: ends.guidance.map(|matrices| load.embedder(matrices)).transpose()?,
            pooled: ends.pooled.map(|matrices| load.embedder(matrices)).transpose()?,
            norm_out: load.linear(ends.norm_out)?,
            proj_out: load.linear(ends.proj_out)?,
            modulation: Current::default(),
            device: device.clone(),
            precision,
            bf16_products,
            offloading,
            blocks,
            config,
            interrupt: options.interrupt.cloned().unwrap_or_default(),
        })
    }
}
