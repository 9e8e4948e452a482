//! Blocks of a diffusion transformer: their matrices, as far as work and memory go.

use serde::{Deserialize, Serialize};

use super::targets::{Streams, Targets};

/// Blocks of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockGroup {
    /// How many.
    pub count: u64,
    /// Streams.
    pub streams: Streams,
    /// Channels of a token.
    pub width: u64,
    /// Channels of all keys together, and of all values; fewer than `width` where heads share them.
    pub key_width: u64,
    /// Whether another matrix gates the attention's output.
    pub gated_attention: bool,
    /// Channels inside the MLP.
    pub mlp_width: u64,
    /// Whether the MLP has a second matrix inwards, which gates the first.
    pub gated_mlp: bool,
    /// Inputs and outputs of the block's modulation matrix, per stream; zeros where blocks share one.
    pub modulation: [u64; 2],
}

/// A linear layer: outputs and inputs.
pub(crate) type Linear = [f64; 2];

impl BlockGroup {
    /// Blocks of Qwen-Image's layout: two streams, an MLP of four widths, six rows of modulation.
    pub const fn qwen_image(count: u64, width: u64) -> Self {
        Self {
            count,
            streams: Streams::Two,
            width,
            key_width: width,
            gated_attention: false,
            mlp_width: width.saturating_mul(4),
            gated_mlp: false,
            modulation: [width, width.saturating_mul(6)],
        }
    }

    /// Streams as a number.
    pub(crate) fn streams(&self) -> f64 {
        match self.streams {
            Streams::Two => 2.0,
            Streams::One => 1.0,
        }
    }

    /// The attention's linear layers in one stream: q, k, v, out, and the gate.
    pub(crate) fn attention_linears(&self) -> Vec<Linear> {
        let (width, keys) = (self.width as f64, self.key_width as f64);
        let mut linears = vec![[width, width], [keys, width], [keys, width], [width, width]];
        linears.extend(self.gated_attention.then_some([width, width]));
        linears
    }

    /// The MLP's linear layers in one stream.
    pub(crate) fn mlp_linears(&self) -> Vec<Linear> {
        let (width, inner) = (self.width as f64, self.mlp_width as f64);
        let mut linears = vec![[inner, width], [width, inner]];
        linears.extend(self.gated_mlp.then_some([inner, width]));
        linears
    }

    /// The modulation matrix of one stream, if the block has one.
    pub(crate) fn modulation_linear(&self) -> Option<Linear> {
        let [inputs, outputs] = self.modulation;
        (outputs > 0).then_some([outputs as f64, inputs as f64])
    }

    /// Weights of one block's matrices without modulation.
    pub fn linear_weights(&self) -> f64 {
        let area = |[out, input]: &Linear| out * input;
        let (attention, mlp) = (self.attention_linears(), self.mlp_linears());
        self.streams() * attention.iter().chain(&mlp).map(area).sum::<f64>()
    }

    /// Weights of one block's modulation matrices.
    pub fn modulation_weights(&self) -> f64 {
        self.streams() * self.modulation_linear().map_or(0.0, |[out, input]| out * input)
    }

    /// Weights of one block.
    pub fn weights(&self) -> f64 {
        self.linear_weights() + self.modulation_weights()
    }

    /// Sum of inputs and outputs of the layers of one block that carry an adapter.
    pub fn adapted_extents(&self, targets: Targets) -> f64 {
        let sum = |linears: &[Linear]| linears.iter().map(|[out, input]| out + input).sum::<f64>();
        let attention = targets.streams_of_attention(self.streams) * sum(&self.attention_linears());
        let mlp = targets.streams_of_mlp(self.streams) * sum(&self.mlp_linears());
        let modulation = if targets.has_modulation() {
            self.streams() * self.modulation_linear().map_or(0.0, |[out, input]| out + input)
        } else {
            0.0
        };
        attention + mlp + modulation
    }

    /// Channels of q and k together over twice the width: 1 where heads do not share keys.
    pub(crate) fn rotated_share(&self) -> f64 {
        (self.width + self.key_width) as f64 / (2.0 * self.width.max(1) as f64)
    }

    /// Channels inside the MLP over the width, counted as often as they are made.
    pub(crate) fn mlp_ratio(&self) -> f64 {
        let made = if self.gated_mlp { 2.0 } else { 1.0 };
        made * self.mlp_width as f64 / self.width.max(1) as f64
    }
}
