//! Dimensions of the language model of Qwen2.5-VL.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::weights::{dimension, read_json};
use crate::{Error, Result};

/// What the text path needs of `text_encoder/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Channels of a token.
    pub hidden_size: usize,
    /// Channels inside a feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Added to the mean square of every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    /// Up to transformers 4.
    rope_scaling: Option<Rope>,
    /// From transformers 5 on; holds the base as well.
    rope_parameters: Option<Rope>,
    hidden_act: Option<String>,
    use_sliding_window: Option<bool>,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    #[serde(rename = "type")]
    older_type: Option<String>,
}

impl Config {
    /// Reads and checks `<folder>/config.json`, flat or with a `text_config` section, whose values win.
    ///
    /// # Errors
    /// The file is missing or malformed, lacks a dimension, or describes a variant that is not supported; the
    /// message names the key.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let mut merged: Map<String, Value> = read_json(&path)?;
        if let Some(Value::Object(text)) = merged.remove("text_config") {
            merged.extend(text.into_iter().filter(|(_, value)| !value.is_null()));
        }
        let raw: Raw =
            serde_json::from_value(Value::Object(merged)).map_err(|e| Error::format(&path, e.to_string()))?;
        Self::from_raw(raw).map_err(|reason| Error::format(&path, reason))
    }

    fn from_raw(raw: Raw) -> Result<Self, String> {
        if let Some(other) =
            raw.model_type.filter(|t| !matches!(t.as_str(), "qwen2_5_vl" | "qwen2_5_vl_text"))
        {
            return Err(format!("`model_type` is \"{other}\"; the text encoder of Qwen-Image is qwen2_5_vl"));
        }
        if let Some(other) = raw.hidden_act.filter(|act| act != "silu") {
            return Err(format!("`hidden_act` is \"{other}\"; only silu is supported"));
        }
        if raw.use_sliding_window == Some(true) {
            return Err("`use_sliding_window: true` is not supported".into());
        }
        let rope = raw.rope_parameters.or(raw.rope_scaling);
        let kind = rope.as_ref().and_then(|r| r.rope_type.as_deref().or(r.older_type.as_deref()));
        // "mrope" is an older name of the default. Its three position streams (frame, row, column) coincide
        // for text.
        if let Some(other) = kind.filter(|kind| !matches!(*kind, "default" | "mrope")) {
            return Err(format!("rope type \"{other}\" is not supported; expected default or mrope"));
        }
        let heads = raw.num_attention_heads;
        let config = Config {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / heads.max(1)),
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: rope.and_then(|r| r.rope_theta).or(raw.rope_theta).unwrap_or(1e6),
        };
        for (key, value, least, most) in [
            ("vocab_size", config.vocab_size, 0, 1 << 24),
            ("hidden_size", config.hidden_size, 1, 1 << 16),
            ("intermediate_size", config.intermediate_size, 0, 1 << 20),
            ("num_hidden_layers", config.num_hidden_layers, 0, 1024),
            ("num_attention_heads", config.num_attention_heads, 1, 1024),
            ("num_key_value_heads", config.num_key_value_heads, 1, 1024),
            ("head_dim", config.head_dim, 1, 4096),
        ] {
            dimension(key, value, least, most)?;
        }
        if !config.head_dim.is_multiple_of(2) {
            return Err(format!("`head_dim` is {}; rotary embedding needs an even number", config.head_dim));
        }
        if !heads.is_multiple_of(config.num_key_value_heads) {
            return Err(format!(
                "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {}",
                config.num_key_value_heads
            ));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAT: &str = r#"{"model_type": "qwen2_5_vl", "vocab_size": 640, "hidden_size": 96, "intermediate_size": 224,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 5000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}"#;

    fn read(json: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        Config::read(folder.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn both_forms_read_alike() {
        let flat = read(FLAT).unwrap();
        assert_eq!((flat.head_dim, flat.rope_theta), (16, 5000.0));
        let inner = FLAT.replace(
            r#""rope_theta": 5000.0, "rope_scaling": {"type": "mrope","#,
            r#""head_dim": null, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default","#,
        );
        let nested = format!(r#"{{"model_type": "qwen2_5_vl", "hidden_size": 7, "text_config": {inner}}}"#);
        assert_eq!(read(&nested).unwrap(), flat);
    }

    #[test]
    fn refuses_variants_by_name() {
        for (from, to, named) in [
            ("qwen2_5_vl", "t5", "t5"),
            ("\"type\": \"mrope\"", "\"type\": \"yarn\"", "yarn"),
            ("\"rope_theta\"", "\"use_sliding_window\": true, \"rope_theta\"", "use_sliding_window"),
            ("\"rope_theta\"", "\"hidden_act\": \"gelu\", \"rope_theta\"", "gelu"),
            ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", "num_key_value_heads"),
            ("\"num_attention_heads\": 6", "\"num_attention_heads\": 0", "num_attention_heads"),
            ("\"rope_theta\"", "\"head_dim\": 15, \"rope_theta\"", "head_dim"),
            ("\"vocab_size\"", "\"vocab\"", "vocab_size"),
        ] {
            let error = read(&FLAT.replace(from, to)).unwrap_err();
            assert!(error.contains(named) && error.contains("config.json"), "{error}");
        }
    }
}
