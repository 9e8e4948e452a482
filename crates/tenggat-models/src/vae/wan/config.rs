//! `vae/config.json`.

use std::path::Path;

use serde::Deserialize;

use crate::weights::{dimension, read_json};
use crate::{Error, Result};

/// Model class that this module reads.
pub(in crate::vae) const ARCHITECTURE: &str = "AutoencoderKLQwenImage";

/// Most halvings: one tile of 256 pixels and its stride of 192 are whole numbers of latents up to 64 pixels
/// each.
const MAX_HALVINGS: usize = 6;

/// The configuration as it is written; absent fields have the class's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    #[serde(rename = "_class_name")]
    class_name: String,
    /// Channels at full size; each level has a multiple.
    pub base_dim: usize,
    /// Multiples of [`Self::base_dim`], from full size down; each level but the last ends with a halving.
    pub dim_mult: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Sizes, relative to the picture, at which the encoder has attention after each residual block.
    pub attn_scales: Vec<f64>,
    /// Which halvings also halve time; a single picture has no time to halve.
    pub temperal_downsample: Vec<bool>,
    /// Channels of a latent.
    pub z_dim: usize,
    /// Channels of a picture.
    pub input_channels: usize,
    /// Mean of each latent channel over the training set.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of each latent channel over the training set.
    pub latents_std: Vec<f64>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        VaeConfig {
            class_name: ARCHITECTURE.into(),
            base_dim: 96,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            z_dim: 16,
            input_channels: 3,
            latents_mean: vec![
                -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
                -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
            ],
            latents_std: vec![
                2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652,
                1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
            ],
        }
    }
}

impl VaeConfig {
    /// Reads and checks `<folder>/config.json`.
    ///
    /// # Errors
    /// The file is missing or malformed, belongs to another class, or its fields contradict each other.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Self = read_json(&path)?;
        config.check().map_err(|reason| Error::format(path, reason))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.class_name != ARCHITECTURE {
            return Err(format!("is the configuration of a {}; expected {ARCHITECTURE}", self.class_name));
        }
        let halvings = self.temperal_downsample.len();
        if self.dim_mult.len() != halvings + 1 || halvings > MAX_HALVINGS {
            return Err(format!(
                "dim_mult has {} entries and temperal_downsample {halvings}; expected one more in dim_mult, \
                 and at most {MAX_HALVINGS} halvings",
                self.dim_mult.len(),
            ));
        }
        // Far above every real model; keeps products of dimensions from overflowing.
        const MOST: usize = 1 << 20;
        let named = [("base_dim", self.base_dim), ("z_dim", self.z_dim)];
        let named = named.into_iter().chain([("input_channels", self.input_channels)]);
        for (name, value) in named.chain(self.dim_mult.iter().map(|&m| ("dim_mult", m))) {
            if !(1..MOST).contains(&value) {
                return Err(format!("{name} is {value}; expected a positive number below {MOST}"));
            }
        }
        dimension("num_res_blocks", self.num_res_blocks, 0, 64)?;
        if let Some(narrow) = self.dim_mult[1..].iter().find(|&&m| self.base_dim * m < 2) {
            return Err(format!(
                "a level has {} channel, too few for the decoder to halve",
                narrow * self.base_dim
            ));
        }
        for (name, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.len() != self.z_dim {
                return Err(format!("{name} has {} values; expected z_dim = {}", values.len(), self.z_dim));
            }
            if values.iter().any(|v| !v.is_finite()) {
                return Err(format!("{name} has a value that is not a finite number"));
            }
        }
        match self.latents_std.iter().find(|&&v| v <= 0.0) {
            Some(v) => Err(format!("latents_std has the value {v}; expected positive numbers")),
            None => Ok(()),
        }
    }

    /// Pixels per latent in each direction.
    pub fn spatial_factor(&self) -> usize {
        1 << self.temperal_downsample.len()
    }

    /// Channels of the encoder, at its start and after each level.
    pub(super) fn encoder_channels(&self) -> Vec<usize> {
        [1].iter().chain(&self.dim_mult).map(|m| m * self.base_dim).collect()
    }

    /// Input and output channels of the residual blocks of each level of the decoder, from the latents up.
    /// Doubling the size halves the channels.
    pub(super) fn decoder_channels(&self) -> Vec<[usize; 2]> {
        let out: Vec<usize> = self.dim_mult.iter().rev().map(|m| m * self.base_dim).collect();
        (0..out.len()).map(|i| [if i == 0 { out[0] } else { out[i - 1] / 2 }, out[i]]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VaeConfig, String> {
        let config: VaeConfig = serde_json::from_str(text).map_err(|e| e.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn absent_fields_are_those_of_the_published_model() {
        let config = parse("{}").unwrap();
        assert_eq!(config.encoder_channels(), [96, 96, 192, 384, 384]);
        assert_eq!(config.decoder_channels(), [[384, 384], [192, 384], [192, 192], [96, 96]]);
        assert_eq!((config.spatial_factor(), config.input_channels), (8, 3));
    }

    #[test]
    fn contradictions_are_named() {
        for (text, part) in [
            (r#"{"_class_name": "AutoencoderKL"}"#, "AutoencoderKL;"),
            (r#"{"dim_mult": [1, 2]}"#, "dim_mult has 2 entries"),
            (r#"{"dim_mult": [], "temperal_downsample": []}"#, "dim_mult has 0 entries"),
            (r#"{"base_dim": 0}"#, "base_dim is 0"),
            (r#"{"dim_mult": [1, 2, 4, 18446744073709551615]}"#, "dim_mult is 18446744073709551615"),
            (r#"{"z_dim": 4}"#, "latents_mean has 16 values; expected z_dim = 4"),
            (r#"{"z_dim": 1, "latents_mean": [0], "latents_std": [0]}"#, "latents_std has the value 0"),
            (r#"{"base_dim": 1, "dim_mult": [1, 1], "temperal_downsample": [true]}"#, "too few"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
