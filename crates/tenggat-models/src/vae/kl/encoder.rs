//! Picture to the moments of its latents.

use tenggat_tensor::ops::conv2d::{Pictures, Resample};
use tenggat_tensor::{Tensor, View};

use super::config::Config;
use super::layers::{GroupNorm, MidBlock, ResidualBlock};
use crate::Result;
use crate::vae::layers::{Conv, Kernel, Loader};
use crate::vae::trace::Trace;

/// Source: `Encoder` of diffusers 0.42 `vae.py`.
#[derive(Debug)]
pub struct Encoder {
    conv_in: Conv,
    down: Vec<Level>,
    mid: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv,
}

#[derive(Debug)]
struct Level {
    resnets: Vec<ResidualBlock>,
    halve: Option<Conv>,
}

impl Encoder {
    pub fn load(from: &Loader<'_>, config: &Config) -> Result<Self> {
        let from = &from.under("encoder");
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut down = Vec::new();
        for (level, &out) in channels.iter().enumerate() {
            let at = from.under(format_args!("down_blocks.{level}"));
            let before = channels[level.saturating_sub(1)];
            let resnet = |i: usize| {
                let input = if i == 0 { before } else { out };
                ResidualBlock::load(&at.under(format_args!("resnets.{i}")), [input, out], groups)
            };
            let halve = (level + 1 < channels.len())
                .then(|| Conv::load(&at.under("downsamplers.0.conv"), [out, out], Kernel::Plain));
            let resnets = (0..config.layers_per_block).map(resnet).collect::<Result<_>>()?;
            down.push(Level { resnets, halve: halve.transpose()? });
        }
        Ok(Encoder {
            conv_in: Conv::load(&from.under("conv_in"), [config.in_channels, first], Kernel::Plain)?,
            down,
            mid: MidBlock::load(&from.under("mid_block"), last, groups)?,
            norm_out: GroupNorm::load(&from.under("conv_norm_out"), last, groups)?,
            conv_out: Conv::load(&from.under("conv_out"), [last, 2 * config.latent_channels], Kernel::Plain)?,
        })
    }

    /// image: `[b·h·w, 3]` → moments `[b, h/f, w/f, 2z]`.
    pub fn forward(&self, image: View<'_>, input: Pictures, trace: &mut Trace<'_>) -> Result<Tensor> {
        let mut x = self.conv_in.forward_view(image, input, None, Resample::Keep)?;
        trace.see(|| "enc.conv_in".into(), &x);
        for (i, level) in self.down.iter().enumerate() {
            for resnet in &level.resnets {
                x = resnet.forward(x)?;
            }
            if let Some(conv) = &level.halve {
                x = conv.forward(&x, None, Resample::Halve)?;
            }
            trace.see(|| format!("enc.down_blocks.{i}"), &x);
        }
        x = self.mid.forward(x, "enc.mid_block", trace)?;
        trace.compute("enc.norm_out", || self.norm_out.forward(&x, false))?;
        x = self.conv_out.forward(&self.norm_out.forward(&x, true)?, None, Resample::Keep)?;
        trace.see(|| "enc.conv_out".into(), &x);
        Ok(x)
    }
}
