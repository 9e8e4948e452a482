//! Latents to picture.

use tenggat_tensor::ops::conv2d::{Pictures, Resample};
use tenggat_tensor::{Tensor, View};

use super::config::VaeConfig;
use super::layers::{ResidualBlock, gamma, norm};
use super::mid_block::MidBlock;
use crate::Result;
use crate::vae::layers::{Conv, Kernel, Loader, Pointwise};
use crate::vae::trace::Trace;

/// Source: `QwenImageDecoder3d` and `post_quant_conv` of diffusers 0.42 `autoencoder_kl_qwenimage.py`. The
/// `time_conv` of its doublings is not applied to the first frame and is never read here.
#[derive(Debug)]
pub struct Decoder {
    post_quant_conv: Pointwise,
    conv_in: Conv,
    mid: MidBlock,
    up: Vec<UpBlock>,
    norm_out: Tensor,
    conv_out: Conv,
}

#[derive(Debug)]
struct UpBlock {
    resnets: Vec<ResidualBlock>,
    double: Option<Conv>,
}

impl Decoder {
    /// Reads the decoder's weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    pub fn load(from: &Loader<'_>, config: &VaeConfig) -> Result<Self> {
        let root = from;
        let from = &root.under("decoder");
        let (levels, z) = (config.decoder_channels(), config.z_dim);
        let (first, last) = (levels[0][0], levels[levels.len() - 1][1]);
        let mut up = Vec::new();
        for (level, &[input, out]) in levels.iter().enumerate() {
            let at = from.under(format_args!("up_blocks.{level}"));
            let mut resnets = Vec::new();
            for i in 0..=config.num_res_blocks {
                let input = if i == 0 { input } else { out };
                resnets.push(ResidualBlock::load(&at.under(format_args!("resnets.{i}")), [input, out])?);
            }
            let double = match level + 1 < levels.len() {
                true => {
                    Some(Conv::load(&at.under("upsamplers.0.resample.1"), [out, out / 2], Kernel::Plain)?)
                }
                false => None,
            };
            up.push(UpBlock { resnets, double });
        }
        Ok(Decoder {
            post_quant_conv: Pointwise::load(&root.under("post_quant_conv"), [z, z], 3)?,
            conv_in: Conv::load(&from.under("conv_in"), [z, first], Kernel::Causal)?,
            mid: MidBlock::load(&from.under("mid_block"), first)?,
            up,
            norm_out: gamma(from, "norm_out", last, 3)?,
            conv_out: Conv::load(&from.under("conv_out"), [last, config.input_channels], Kernel::Causal)?,
        })
    }

    /// latents, with their own mean and spread: `[b·h·w, z]` → picture `[b, f·h, f·w, 3]`, not clamped.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward(&self, latents: View<'_>, input: Pictures, trace: &mut Trace<'_>) -> Result<Tensor> {
        let mut x = self.post_quant_conv.forward_view(latents, input)?;
        trace.see(|| "post_quant_conv".into(), &x);
        x = self.conv_in.forward(&x, None, Resample::Keep)?;
        trace.see(|| "dec.conv_in".into(), &x);
        x = self.mid.forward(x, "dec.mid_block", trace)?;
        for (i, block) in self.up.iter().enumerate() {
            for resnet in &block.resnets {
                x = resnet.forward(x)?;
            }
            if let Some(conv) = &block.double {
                x = conv.forward(&x, None, Resample::Double)?;
            }
            trace.see(|| format!("dec.up_blocks.{i}"), &x);
        }
        trace.compute("dec.norm_out", || norm(&x, &self.norm_out))?;
        x = self.conv_out.forward(&x, Some(&self.norm_out), Resample::Keep)?;
        trace.see(|| "dec.conv_out".into(), &x);
        Ok(x)
    }
}
