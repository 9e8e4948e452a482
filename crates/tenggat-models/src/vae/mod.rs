//! Image autoencoders: picture to latents and back.
//!
//! Forward only. The autoencoder is frozen and stands outside the training loss: latents are computed once
//! and pictures are decoded for people, so nothing trainable lies below any of its layers and no gradient
//! enters it.

mod kl;
mod layers;
mod posterior;
mod tiling;
mod trace;
mod wan;

use std::path::Path;

use serde::Deserialize;
use tenggat_tensor::ops::conv2d::Pictures;
use tenggat_tensor::ops::{copy, scale_shift};
use tenggat_tensor::{DType, Device, Error as TensorError, Tensor, View};

use crate::weights::{Weights, read_json};
use crate::{Error, Interrupt, Result};
use layers::Loader;
pub use posterior::Posterior;
use trace::Trace;
pub use wan::VaeConfig;

/// Pixels that pass through the layers at once; larger batches go through in groups of images, which bounds
/// the memory and keeps the activations of small pictures in the cache.
const GROUP_PIXELS: usize = 1 << 18;

/// Encoder and decoder with their weights, of either class.
///
/// `f`, the [`Vae::spatial_factor`], is 8 and `z` is 16 for the published models.
#[derive(Debug)]
pub struct Vae {
    dims: Dims,
    model: Model,
    /// Scale and shift per latent channel, and those of the way back.
    normalise: [Tensor; 2],
    denormalise: [Tensor; 2],
    tile_above_pixels: usize,
    interrupt: Interrupt,
}

/// What the shapes of pictures and latents depend on.
#[derive(Debug, Clone, Copy)]
struct Dims {
    /// Channels of a latent.
    z: usize,
    /// Channels of a picture.
    channels: usize,
    /// Pixels per latent in each direction.
    factor: usize,
}

/// The classes.
#[derive(Debug)]
enum Model {
    Wan(Box<(wan::Encoder, wan::Decoder)>),
    Kl(Box<(kl::Encoder, kl::Decoder)>),
}

/// The part of `config.json` that all classes share.
#[derive(Deserialize)]
struct Class {
    #[serde(rename = "_class_name")]
    name: Option<String>,
}

impl Vae {
    /// Reads `config.json` and the weights of the `vae` folder of a model. `dtype`: F32, or F64 for checking.
    ///
    /// # Errors
    /// A file is missing or malformed, the folder holds another model, or a tensor is missing or has another
    /// shape than the configuration says.
    pub fn load(folder: &Path, device: &Device, dtype: DType) -> Result<Self> {
        if dtype == DType::BF16 {
            return Err(Error::Unsupported("the VAE computes in F32 or F64, not in BF16".into()));
        }
        let class: Class = read_json(&folder.join("config.json"))?;
        let open = |architecture| Weights::open(folder, architecture);
        let root = |weights| Loader { weights, device, dtype, prefix: String::new() };
        // Every other class is refused, by its name, as a configuration of this one.
        if class.name.as_deref() != Some(kl::ARCHITECTURE) {
            let config = VaeConfig::read(folder)?;
            let weights = open(wan::ARCHITECTURE)?;
            let root = root(&weights);
            let model = (wan::Encoder::load(&root, &config)?, wan::Decoder::load(&root, &config)?);
            let (z, channels, factor) = (config.z_dim, config.input_channels, config.spatial_factor());
            let spread = config.latents_mean.iter().zip(&config.latents_std).map(|(&m, &s)| (m, s));
            let dims = Dims { z, channels, factor };
            return Self::new(dims, Model::Wan(Box::new(model)), spread.collect(), device, dtype);
        }
        let config = kl::Config::read(folder)?;
        let weights = open(kl::ARCHITECTURE)?;
        let root = root(&weights);
        let model = (kl::Encoder::load(&root, &config)?, kl::Decoder::load(&root, &config)?);
        let (z, channels, factor) = (config.latent_channels, config.in_channels, 1 << config.halvings());
        let spread = vec![(config.shift_factor.unwrap_or(0.0), 1.0 / config.scaling_factor); z];
        Self::new(Dims { z, channels, factor }, Model::Kl(Box::new(model)), spread, device, dtype)
    }

    /// `spread`: mean and standard deviation of each latent channel.
    fn new(dims: Dims, model: Model, spread: Vec<(f64, f64)>, device: &Device, dtype: DType) -> Result<Self> {
        let row = |value: &dyn Fn(f64, f64) -> f64| {
            let values: Vec<f64> = spread.iter().map(|&(mean, std)| value(mean, std)).collect();
            Tensor::from_f64(device, dtype, &values, &[values.len()])
        };
        Ok(Vae {
            normalise: [row(&|_, std| 1.0 / std)?, row(&|mean, std| -mean / std)?],
            denormalise: [row(&|_, std| std)?, row(&|mean, _| mean)?],
            dims,
            model,
            tile_above_pixels: usize::MAX,
            interrupt: Interrupt::default(),
        })
    }

    /// The same; encoding and decoding end with [`Error::Interrupted`] before the next picture or tile once
    /// that is asked for.
    #[must_use]
    pub fn interrupted_by(self, interrupt: &Interrupt) -> Self {
        Vae { interrupt: interrupt.clone(), ..self }
    }

    /// Pixels per latent in each direction, `f`.
    pub fn spatial_factor(&self) -> usize {
        self.dims.factor
    }

    /// Channels of a latent, `z`.
    pub fn latent_channels(&self) -> usize {
        self.dims.z
    }

    /// Channels of a picture.
    pub fn picture_channels(&self) -> usize {
        self.dims.channels
    }

    /// From now on, pictures of more pixels than this (and more than one tile of 256×256) are encoded and
    /// decoded in overlapping tiles, which bounds the memory; a loaded autoencoder never tiles.
    pub fn tile_above(&mut self, pixels: usize) {
        self.tile_above_pixels = pixels;
    }

    /// The distribution of the latents of pictures. image: `[b, h, w, 3]` in -1..1, h and w multiples of `f`.
    ///
    /// # Errors
    /// The image has another shape or type.
    pub fn encode(&self, image: &Tensor) -> Result<Posterior> {
        Posterior::from_moments(&self.moments(image, &mut Trace(None))?)
    }

    /// [`Vae::encode`], showing intermediate activations by the names of the golden data (`enc.conv_in`,
    /// `enc.down_blocks.N`, …, as `[b, h, w, c]`) to an observer. For tests; it costs what the observer does.
    /// Names come once per tile and per group of pictures.
    ///
    /// # Errors
    /// As [`Vae::encode`].
    pub fn encode_traced(
        &self,
        image: &Tensor,
        observer: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Posterior> {
        Posterior::from_moments(&self.moments(image, &mut Trace(Some(observer)))?)
    }

    /// Pictures from normalised latents `[b, h, w, z]`: `[b, f·h, f·w, 3]`, about -1..1 but not clamped; see
    /// [`clamp`].
    ///
    /// # Errors
    /// The latents have another shape or type.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.pixels(latents, &mut Trace(None))
    }

    /// [`Vae::decode`], showing intermediate activations (`post_quant_conv`, `dec.conv_in`, …) like
    /// [`Vae::encode_traced`].
    ///
    /// # Errors
    /// As [`Vae::decode`].
    pub fn decode_traced(&self, latents: &Tensor, observer: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        self.pixels(latents, &mut Trace(Some(observer)))
    }

    /// `(latents − latents_mean) / latents_std` per channel: what the transformer is trained on.
    ///
    /// # Errors
    /// The last axis is not `z`, or the type is another.
    pub fn normalise(&self, latents: &Tensor) -> Result<Tensor> {
        affine(latents, &self.normalise)
    }

    /// `latents · latents_std + latents_mean` per channel: the inverse of [`Vae::normalise`].
    ///
    /// # Errors
    /// The last axis is not `z`, or the type is another.
    pub fn denormalise(&self, latents: &Tensor) -> Result<Tensor> {
        affine(latents, &self.denormalise)
    }

    fn moments(&self, image: &Tensor, trace: &mut Trace<'_>) -> Result<Tensor> {
        let factor = self.spatial_factor();
        let size = batch("vae encode", "image", image, self.dims.channels)?;
        if !size.height.is_multiple_of(factor) || !size.width.is_multiple_of(factor) {
            return Err(Error::Unsupported(format!(
                "a picture of {}x{} pixels cannot be encoded: height and width must be multiples of {factor}",
                size.height, size.width,
            )));
        }
        let out = [size.count, size.height / factor, size.width / factor, 2 * self.dims.z];
        let units = tiling::Units { input: 1, output: factor };
        self.grouped(image, size, size.height * size.width, units, out, |x, size| match &self.model {
            Model::Wan(model) => model.0.forward(x, size, trace),
            Model::Kl(model) => model.0.forward(x, size, trace),
        })
    }

    fn pixels(&self, latents: &Tensor, trace: &mut Trace<'_>) -> Result<Tensor> {
        let factor = self.spatial_factor();
        let size = batch("vae decode", "latents", latents, self.dims.z)?;
        let latents = self.denormalise(latents)?;
        let out = [size.count, size.height * factor, size.width * factor, self.dims.channels];
        let units = tiling::Units { input: factor, output: 1 };
        self.grouped(&latents, size, out[1] * out[2], units, out, |x, size| match &self.model {
            Model::Wan(model) => model.1.forward(x, size, trace),
            Model::Kl(model) => model.1.forward(x, size, trace),
        })
    }

    /// Runs `each` on whole pictures, several at once, or on tiles of each; `pixels`: of one picture; `out`:
    /// shape of the result.
    fn grouped(
        &self,
        x: &Tensor,
        size: Pictures,
        pixels: usize,
        units: tiling::Units,
        out: [usize; 4],
        mut each: impl FnMut(View<'_>, Pictures) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let longer = size.height.max(size.width) * units.input;
        let tiled = pixels > self.tile_above_pixels && longer > tiling::TILE;
        let group = if tiled { 1 } else { (GROUP_PIXELS / pixels).clamp(1, size.count) };
        let (rows_in, rows_out) = (size.height * size.width, out[1] * out[2]);
        let mut result: Option<Tensor> = None;
        for first in (0..size.count).step_by(group) {
            let count = group.min(size.count - first);
            self.interrupt.check()?;
            let part = if tiled {
                tiling::map(x, first, units, |tile| {
                    self.interrupt.check()?;
                    each(tile.view(), layers::pictures(&tile))
                })?
            } else {
                let rows = first * rows_in..(first + count) * rows_in;
                each(x.view().row_range(rows), Pictures { count, ..size })?
            };
            if count == size.count {
                return Ok(part);
            }
            let all = match &mut result {
                Some(all) => all,
                none => none.insert(x.empty_like(&out)?),
            };
            let rows = first * rows_out..(first + count) * rows_out;
            copy::forward(part.view(), all.view_mut().row_range(rows))?;
        }
        result.ok_or_else(|| Error::Unsupported("a batch without pictures".into()))
    }
}

/// Decoded pictures clamped to -1..1, in place: the range of a picture file.
///
/// # Errors
/// The tensor cannot be read back.
pub fn clamp(picture: &mut Tensor) -> Result<()> {
    let mut values = picture.to_f64()?;
    values.iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0));
    *picture = Tensor::from_f64(&picture.device(), picture.dtype(), &values, picture.shape())?;
    Ok(())
}

/// Size of a batch `[b, h, w, channels]` of at least one pixel.
fn batch(op: &'static str, what: &'static str, x: &Tensor, channels: usize) -> Result<Pictures> {
    match *x.shape() {
        [count, height, width, c] if c == channels && count * height * width > 0 => {
            Ok(Pictures { count, height, width })
        }
        _ => {
            let mut expected = vec![1; 4];
            expected.iter_mut().zip(x.shape()).take(3).for_each(|(e, &n)| *e = n.max(1));
            expected[3] = channels;
            Err(TensorError::shape(op, what, &expected, x.shape()).into())
        }
    }
}

fn affine(latents: &Tensor, [scale, shift]: &[Tensor; 2]) -> Result<Tensor> {
    let mut y = latents.empty_like(latents.shape())?;
    scale_shift::forward(latents.view(), scale, shift, y.view_mut())?;
    Ok(y)
}
