//! Dimensions of a T5 encoder.

use std::path::Path;

use serde::Deserialize;

use crate::weights::{dimension, read_json};
use crate::{Error, Result};

/// What is needed of `text_encoder_2/config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    model_type: Option<String>,
    feed_forward_proj: Option<String>,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Channels of a token.
    pub d_model: usize,
    /// Channels of a head.
    pub d_kv: usize,
    /// Channels inside a feed-forward layer.
    pub d_ff: usize,
    /// Layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Buckets of distances between tokens.
    #[serde(default = "buckets")]
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all fall into the last bucket.
    #[serde(default = "max_distance")]
    pub relative_attention_max_distance: usize,
    /// Added to the mean square of every norm.
    #[serde(default = "epsilon")]
    pub layer_norm_epsilon: f64,
}

fn buckets() -> usize {
    32
}

fn max_distance() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

impl Config {
    /// Reads and checks `<folder>/config.json`.
    ///
    /// # Errors
    /// The file is missing or malformed, lacks a dimension, or describes a variant that is not supported; the
    /// message names the key.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Config = read_json(&path)?;
        config.check().map_err(|reason| Error::format(&path, reason))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if let Some(other) = self.model_type.as_deref().filter(|t| *t != "t5") {
            return Err(format!("`model_type` is \"{other}\"; expected t5"));
        }
        // Absent, the class's own default is another.
        match self.feed_forward_proj.as_deref() {
            Some("gated-gelu") => {}
            other => {
                let other = other.unwrap_or("relu");
                return Err(format!("`feed_forward_proj` is \"{other}\"; only gated-gelu is supported"));
            }
        }
        for (key, value, least, most) in [
            ("vocab_size", self.vocab_size, 1, 1 << 24),
            ("d_model", self.d_model, 1, 1 << 16),
            ("d_kv", self.d_kv, 1, 4096),
            ("d_ff", self.d_ff, 1, 1 << 20),
            ("num_layers", self.num_layers, 1, 1024),
            ("num_heads", self.num_heads, 1, 1024),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets, 4, 1 << 16),
            ("relative_attention_max_distance", self.relative_attention_max_distance, 2, 1 << 24),
        ] {
            dimension(key, value, least, most)?;
        }
        let exact = self.relative_attention_num_buckets / 4;
        if self.relative_attention_max_distance <= exact {
            return Err(format!(
                "`relative_attention_max_distance` {} is not above a quarter of \
                 `relative_attention_num_buckets` {}",
                self.relative_attention_max_distance, self.relative_attention_num_buckets
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"model_type": "t5", "feed_forward_proj": "gated-gelu", "vocab_size": 288,
        "d_model": 40, "d_kv": 16, "d_ff": 72, "num_layers": 2, "num_heads": 3}"#;

    #[test]
    fn refuses_variants_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let read = |json: &str| {
            std::fs::write(folder.path().join("config.json"), json).unwrap();
            Config::read(folder.path()).map_err(|e| e.to_string())
        };
        let whole = read(WHOLE).unwrap();
        assert_eq!((whole.relative_attention_num_buckets, whole.relative_attention_max_distance), (32, 128));
        for (from, to, named) in [
            ("\"t5\"", "\"umt5\"", "umt5"),
            ("gated-gelu", "relu", "feed_forward_proj"),
            ("\"num_heads\": 3", "\"num_heads\": 0", "num_heads"),
            ("\"d_kv\"", "\"d_k\"", "d_kv"),
            ("\"d_kv\"", "\"relative_attention_num_buckets\": 1, \"d_kv\"", "relative_attention_num_buckets"),
            (
                "\"d_kv\"",
                "\"relative_attention_max_distance\": 8, \"d_kv\"",
                "relative_attention_max_distance",
            ),
        ] {
            let error = read(&WHOLE.replace(from, to)).unwrap_err();
            assert!(error.contains(named) && error.contains("config.json"), "{error}");
        }
    }
}
