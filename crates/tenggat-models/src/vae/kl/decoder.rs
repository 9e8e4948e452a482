//! Latents to picture.

use tenggat_tensor::ops::conv2d::{Pictures, Resample};
use tenggat_tensor::{Tensor, View};

use super::config::Config;
use super::layers::{GroupNorm, MidBlock, ResidualBlock};
use crate::Result;
use crate::vae::layers::{Conv, Kernel, Loader};
use crate::vae::trace::Trace;

/// Source: `Decoder` of diffusers 0.42 `vae.py`.
#[derive(Debug)]
pub struct Decoder {
    conv_in: Conv,
    mid: MidBlock,
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

#[derive(Debug)]
struct Level {
    resnets: Vec<ResidualBlock>,
    double: Option<Conv>,
}

impl Decoder {
    pub fn load(from: &Loader<'_>, config: &Config) -> Result<Self> {
        let from = &from.under("decoder");
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last, groups) = (channels[0], channels[channels.len() - 1], config.norm_num_groups);
        let mut up = Vec::new();
        for (level, &out) in channels.iter().enumerate() {
            let at = from.under(format_args!("up_blocks.{level}"));
            let before = channels[level.saturating_sub(1)];
            let resnet = |i: usize| {
                let input = if i == 0 { before } else { out };
                ResidualBlock::load(&at.under(format_args!("resnets.{i}")), [input, out], groups)
            };
            let double = (level + 1 < channels.len())
                .then(|| Conv::load(&at.under("upsamplers.0.conv"), [out, out], Kernel::Plain));
            let resnets = (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?;
            up.push(Level { resnets, double: double.transpose()? });
        }
        Ok(Decoder {
            conv_in: Conv::load(&from.under("conv_in"), [config.latent_channels, first], Kernel::Plain)?,
            mid: MidBlock::load(&from.under("mid_block"), first, groups)?,
            up,
            norm_out: GroupNorm::load(&from.under("conv_norm_out"), last, groups)?,
            conv_out: Conv::load(&from.under("conv_out"), [last, config.in_channels], Kernel::Plain)?,
        })
    }

    /// latents, with their own mean and spread: `[b·h·w, z]` → picture `[b, f·h, f·w, 3]`, not clamped.
    pub fn forward(&self, latents: View<'_>, input: Pictures, trace: &mut Trace<'_>) -> Result<Tensor> {
        let mut x = self.conv_in.forward_view(latents, input, None, Resample::Keep)?;
        trace.see(|| "dec.conv_in".into(), &x);
        x = self.mid.forward(x, "dec.mid_block", trace)?;
        for (i, level) in self.up.iter().enumerate() {
            for resnet in &level.resnets {
                x = resnet.forward(x)?;
            }
            if let Some(conv) = &level.double {
                x = conv.forward(&x, None, Resample::Double)?;
            }
            trace.see(|| format!("dec.up_blocks.{i}"), &x);
        }
        trace.compute("dec.norm_out", || self.norm_out.forward(&x, false))?;
        x = self.conv_out.forward(&self.norm_out.forward(&x, true)?, None, Resample::Keep)?;
        trace.see(|| "dec.conv_out".into(), &x);
        Ok(x)
    }
}
