//! Dimensions of a Qwen-Image transformer and what follows from them.

use serde::{Deserialize, Serialize};

/// Dimensions of a `QwenImageTransformer2DModel`, the numbers of its `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelDims {
    /// Blocks.
    pub layers: u64,
    /// Attention heads.
    pub heads: u64,
    /// Channels per head.
    pub head_dim: u64,
    /// Channels of the text encoder's output.
    pub joint_dim: u64,
    /// Channels of a packed latent token.
    pub in_channels: u64,
    /// Pixels on the side of the square that becomes one token.
    pub pixels_per_token: u64,
}

impl ModelDims {
    /// Qwen-Image and Qwen-Image-2512. Source: `transformer/config.json` of `Qwen/Qwen-Image`.
    pub const QWEN_IMAGE: Self =
        Self { layers: 60, heads: 24, head_dim: 128, joint_dim: 3584, in_channels: 64, pixels_per_token: 16 };

    /// Width of both streams, `heads · head_dim`.
    pub fn width(&self) -> f64 {
        self.heads as f64 * self.head_dim as f64
    }

    /// Image tokens of a picture.
    pub fn image_tokens(&self, width_px: u64, height_px: u64) -> u64 {
        let side = self.pixels_per_token.max(1);
        (width_px / side).max(1).saturating_mul((height_px / side).max(1))
    }

    /// Weights of one block's matrices without modulation: per stream q, k, v, out (4 c²) and the MLP (8 c²).
    pub fn linear_weights_per_block(&self) -> f64 {
        24.0 * self.width() * self.width()
    }

    /// Weights of one block's two modulation matrices, 6 c² each.
    pub fn modulation_weights_per_block(&self) -> f64 {
        12.0 * self.width() * self.width()
    }

    /// Weights of all blocks' matrices: 36 c² per block, 20.4 G in Qwen-Image, of which 6.8 G are modulation.
    pub fn block_weights(&self) -> f64 {
        self.layers as f64 * (self.linear_weights_per_block() + self.modulation_weights_per_block())
    }

    /// Weights of everything outside the blocks: patch and text input, timestep embedding, output modulation
    /// and projection.
    pub fn other_weights(&self) -> f64 {
        let c = self.width();
        let (input, text) = (self.in_channels as f64 * c, self.joint_dim as f64 * c);
        let timestep = SINUSOID * c + c * c;
        input + text + timestep + 2.0 * c * c + c * self.in_channels as f64
    }

    /// Trainable parameters of a LoRA on all 14 linears of every block: `rank · Σ(in + out)` with Σ = 50 c
    /// per block (attention 16, MLP 20, modulation 14). Rank 128: 1.18 G; rank 16: 147 M.
    pub fn lora_parameters(&self, rank: u64) -> f64 {
        self.layers as f64 * rank as f64 * 50.0 * self.width()
    }
}

/// Width of the sinusoid that the timestep embedding starts from.
pub(crate) const SINUSOID: f64 = 256.0;

/// What one training step sees: one shape bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepShape {
    /// Pictures per step.
    pub batch: u64,
    /// Image tokens per picture.
    pub image_tokens: u64,
    /// Text tokens per caption, padding included.
    pub text_tokens: u64,
}

impl StepShape {
    /// Tokens of the joint sequence of one sample.
    pub fn joint_tokens(&self) -> f64 {
        self.image_tokens as f64 + self.text_tokens as f64
    }

    /// Rows of both streams together.
    pub fn rows(&self) -> f64 {
        self.batch as f64 * self.joint_tokens()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_numbers_of_qwen_image() {
        let dims = ModelDims::QWEN_IMAGE;
        assert_eq!(dims.width(), 3072.0);
        assert_eq!(dims.image_tokens(1024, 1024), 4096);
        assert!((dims.block_weights() / 1e9 - 20.38).abs() < 0.01);
        let modulation = dims.layers as f64 * dims.modulation_weights_per_block();
        assert!((modulation / 1e9 - 6.79).abs() < 0.01);
        assert!((dims.lora_parameters(128) / 1e9 - 1.18).abs() < 0.01);
        assert!((dims.lora_parameters(16) / 1e6 - 147.0).abs() < 1.0);
    }
}
