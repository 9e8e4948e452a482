//! `vae/config.json` of an `AutoencoderKL`.

use std::path::Path;

use serde::Deserialize;

use crate::weights::{dimension, read_json};
use crate::{Error, Result};

/// Model class that this module reads.
pub(in crate::vae) const ARCHITECTURE: &str = "AutoencoderKL";

/// Most halvings, as for the other autoencoders: one tile is a whole number of latents.
const MAX_HALVINGS: usize = 6;

/// The configuration as it is written; absent fields have the class's defaults.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::vae) struct Config {
    /// Channels of a picture.
    #[serde(default = "three")]
    pub in_channels: usize,
    #[serde(default = "three")]
    out_channels: usize,
    /// Channels of each level, from full size down; each level but the last ends with a halving.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Groups of every group norm.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Latents are multiplied by this…
    pub scaling_factor: f64,
    /// … after this was subtracted.
    #[serde(default)]
    pub shift_factor: Option<f64>,
    #[serde(default)]
    down_block_types: Vec<String>,
    #[serde(default)]
    up_block_types: Vec<String>,
    #[serde(default = "yes")]
    mid_block_add_attention: bool,
    #[serde(default = "yes")]
    use_quant_conv: bool,
    #[serde(default = "yes")]
    use_post_quant_conv: bool,
    act_fn: Option<String>,
}

fn three() -> usize {
    3
}

fn thirty_two() -> usize {
    32
}

fn yes() -> bool {
    true
}

impl Config {
    /// Reads and checks `<folder>/config.json`.
    ///
    /// # Errors
    /// The file is missing or malformed, describes a variant that is not supported, or its fields contradict
    /// each other.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Self = read_json(&path)?;
        config.check().map_err(|reason| Error::format(path, reason))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        for (key, on, supported) in [
            ("use_quant_conv", self.use_quant_conv, false),
            ("use_post_quant_conv", self.use_post_quant_conv, false),
            ("mid_block_add_attention", self.mid_block_add_attention, true),
        ] {
            if on != supported {
                return Err(format!("`{key}: {on}` is not supported; FLUX.1 has {supported}"));
            }
        }
        let blocks = self.down_block_types.iter().chain(&self.up_block_types);
        let plain = |block: &&String| !matches!(block.as_str(), "DownEncoderBlock2D" | "UpDecoderBlock2D");
        if let Some(other) = blocks.into_iter().find(plain) {
            return Err(format!("blocks of type `{other}` are not supported"));
        }
        if let Some(other) = self.act_fn.as_deref().filter(|act| *act != "silu") {
            return Err(format!("`act_fn` is \"{other}\"; only silu is supported"));
        }
        let levels = self.block_out_channels.len();
        dimension("number of block_out_channels", levels, 1, MAX_HALVINGS + 1)?;
        const MOST: usize = 1 << 20;
        let channels = self.block_out_channels.iter().map(|&c| ("block_out_channels", c));
        for (name, value) in [
            ("in_channels", self.in_channels),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ]
        .into_iter()
        .chain(channels)
        {
            dimension(name, value, 1, MOST)?;
        }
        dimension("layers_per_block", self.layers_per_block, 0, 64)?;
        if self.out_channels != self.in_channels {
            let (to, from) = (self.out_channels, self.in_channels);
            return Err(format!("out_channels is {to}; expected as many as in_channels, {from}"));
        }
        let groups = self.norm_num_groups;
        if let Some(c) = self.block_out_channels.iter().find(|c| !c.is_multiple_of(groups)) {
            return Err(format!(
                "block_out_channels has {c}, which norm_num_groups {groups} does not divide"
            ));
        }
        if !(self.scaling_factor > 0.0 && self.scaling_factor.is_finite()) {
            return Err(format!("scaling_factor is {}; expected a positive number", self.scaling_factor));
        }
        match self.shift_factor.filter(|shift| !shift.is_finite()) {
            Some(shift) => Err(format!("shift_factor is {shift}; expected a finite number")),
            None => Ok(()),
        }
    }

    /// Number of halvings.
    pub fn halvings(&self) -> usize {
        self.block_out_channels.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 16,
        "norm_num_groups": 4, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": false,
        "use_post_quant_conv": false}"#;

    #[test]
    fn variants_and_contradictions_are_named() {
        let parse = |text: &str| {
            let config: Config = serde_json::from_str(text).map_err(|e| e.to_string())?;
            config.check().map(|()| config)
        };
        assert_eq!(parse(WHOLE).unwrap().halvings(), 1);
        for (from, to, named) in [
            ("\"use_quant_conv\": false", "\"use_quant_conv\": true", "use_quant_conv"),
            (", \"use_quant_conv\": false", "", "use_quant_conv"),
            ("[8, 16]", "[]", "block_out_channels"),
            ("[8, 16]", "[8, 18]", "18"),
            ("[8, 16]", "[8, 0]", "block_out_channels"),
            ("\"norm_num_groups\": 4", "\"norm_num_groups\": 0", "norm_num_groups"),
            ("0.3611", "0", "scaling_factor"),
            ("\"norm_num_groups\"", "\"act_fn\": \"relu\", \"norm_num_groups\"", "act_fn"),
            ("\"norm_num_groups\"", "\"out_channels\": 4, \"norm_num_groups\"", "out_channels"),
            ("\"norm_num_groups\"", "\"up_block_types\": [\"Attn\"], \"norm_num_groups\"", "Attn"),
        ] {
            let message = parse(&WHOLE.replace(from, to)).unwrap_err();
            assert!(message.contains(named), "{from} {to}: {message}");
        }
    }
}
