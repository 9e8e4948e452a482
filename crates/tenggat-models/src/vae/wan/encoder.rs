//! Picture to the moments of its latents.

use tenggat_tensor::ops::conv2d::{Pictures, Resample};
use tenggat_tensor::{Tensor, View};

use super::config::VaeConfig;
use super::layers::{AttentionBlock, ResidualBlock, gamma, norm};
use super::mid_block::MidBlock;
use crate::Result;
use crate::vae::layers::{Conv, Kernel, Loader, Pointwise};
use crate::vae::trace::Trace;

/// Source: `QwenImageEncoder3d` and `quant_conv` of diffusers 0.42 `autoencoder_kl_qwenimage.py`. The
/// `time_conv` of its halvings is not applied to the first frame and is never read here.
#[derive(Debug)]
pub struct Encoder {
    conv_in: Conv,
    down: Vec<Down>,
    mid: MidBlock,
    norm_out: Tensor,
    conv_out: Conv,
    quant_conv: Pointwise,
}

#[derive(Debug)]
enum Down {
    Residual(Box<ResidualBlock>),
    Attention(Box<AttentionBlock>),
    Halve(Conv),
}

impl Encoder {
    /// Reads the encoder's weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    pub fn load(from: &Loader<'_>, config: &VaeConfig) -> Result<Self> {
        let root = from;
        let from = &root.under("encoder");
        let (channels, moments) = (config.encoder_channels(), 2 * config.z_dim);
        let mut down = Vec::new();
        let mut scale = 1.0;
        for (level, pair) in channels.windows(2).enumerate() {
            let out = pair[1];
            for block in 0..config.num_res_blocks {
                let input = if block == 0 { pair[0] } else { out };
                let at = from.under(format_args!("down_blocks.{}", down.len()));
                down.push(Down::Residual(Box::new(ResidualBlock::load(&at, [input, out])?)));
                if config.attn_scales.contains(&scale) {
                    let at = from.under(format_args!("down_blocks.{}", down.len()));
                    down.push(Down::Attention(Box::new(AttentionBlock::load(&at, out)?)));
                }
            }
            if level + 2 < channels.len() {
                let at = from.under(format_args!("down_blocks.{}.resample.1", down.len()));
                down.push(Down::Halve(Conv::load(&at, [out, out], Kernel::Plain)?));
                scale /= 2.0;
            }
        }
        let last = *channels.last().unwrap_or(&config.base_dim);
        Ok(Encoder {
            conv_in: Conv::load(
                &from.under("conv_in"),
                [config.input_channels, channels[0]],
                Kernel::Causal,
            )?,
            down,
            mid: MidBlock::load(&from.under("mid_block"), last)?,
            norm_out: gamma(from, "norm_out", last, 3)?,
            conv_out: Conv::load(&from.under("conv_out"), [last, moments], Kernel::Causal)?,
            quant_conv: Pointwise::load(&root.under("quant_conv"), [moments, moments], 3)?,
        })
    }

    /// image: `[b·h·w, 3]` → moments `[b, h/f, w/f, 2z]`.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward(&self, image: View<'_>, input: Pictures, trace: &mut Trace<'_>) -> Result<Tensor> {
        let mut x = self.conv_in.forward_view(image, input, None, Resample::Keep)?;
        trace.see(|| "enc.conv_in".into(), &x);
        for (i, layer) in self.down.iter().enumerate() {
            x = match layer {
                Down::Residual(block) => block.forward(x)?,
                Down::Attention(block) => block.forward(x)?,
                Down::Halve(conv) => conv.forward(&x, None, Resample::Halve)?,
            };
            trace.see(|| format!("enc.down_blocks.{i}"), &x);
        }
        x = self.mid.forward(x, "enc.mid_block", trace)?;
        trace.compute("enc.norm_out", || norm(&x, &self.norm_out))?;
        x = self.conv_out.forward(&x, Some(&self.norm_out), Resample::Keep)?;
        trace.see(|| "enc.conv_out".into(), &x);
        x = self.quant_conv.forward(&x)?;
        trace.see(|| "quant_conv".into(), &x);
        Ok(x)
    }
}
