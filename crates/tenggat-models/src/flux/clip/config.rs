//! Dimensions of CLIP's text model.

use std::path::Path;

use serde::Deserialize;

use crate::weights::{dimension, read_json};
use crate::{Error, Result};

/// What is needed of `text_encoder/config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    model_type: Option<String>,
    hidden_act: Option<String>,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Channels of a token.
    pub hidden_size: usize,
    /// Channels inside a feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Most tokens of a sequence.
    pub max_position_embeddings: usize,
    /// Added to the variance of every norm.
    pub layer_norm_eps: f64,
    /// The token at which a sequence ends, or [`Config::LEGACY_END`].
    pub eos_token_id: u32,
}

impl Config {
    /// Stands for the largest id of a sequence.
    pub const LEGACY_END: u32 = 2;

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
        if let Some(other) = self.model_type.as_deref().filter(|t| !matches!(*t, "clip_text_model" | "clip"))
        {
            return Err(format!("`model_type` is \"{other}\"; expected clip_text_model"));
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|act| *act != "quick_gelu") {
            return Err(format!("`hidden_act` is \"{other}\"; only quick_gelu is supported"));
        }
        for (key, value, least, most) in [
            ("vocab_size", self.vocab_size, 1, 1 << 24),
            ("hidden_size", self.hidden_size, 1, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 0, 1024),
            ("num_attention_heads", self.num_attention_heads, 1, 1024),
            ("max_position_embeddings", self.max_position_embeddings, 2, 1 << 20),
        ] {
            dimension(key, value, least, most)?;
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!(
                "`hidden_size` {} is not a multiple of `num_attention_heads` {}",
                self.hidden_size, self.num_attention_heads
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"model_type": "clip_text_model", "hidden_act": "quick_gelu", "vocab_size": 634,
        "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 77, "layer_norm_eps": 1e-5, "eos_token_id": 2}"#;

    #[test]
    fn refuses_variants_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let read = |json: &str| {
            std::fs::write(folder.path().join("config.json"), json).unwrap();
            Config::read(folder.path()).map_err(|e| e.to_string())
        };
        assert_eq!(read(WHOLE).unwrap().hidden_size, 32);
        for (from, to, named) in [
            ("clip_text_model", "t5", "t5"),
            ("quick_gelu", "gelu", "hidden_act"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "num_attention_heads"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "num_attention_heads"),
            ("\"max_position_embeddings\": 77", "\"max_position_embeddings\": 1", "max_position_embeddings"),
            ("vocab_size", "vocab", "vocab_size"),
        ] {
            let error = read(&WHOLE.replace(from, to)).unwrap_err();
            assert!(error.contains(named) && error.contains("config.json"), "{error}");
        }
    }
}
