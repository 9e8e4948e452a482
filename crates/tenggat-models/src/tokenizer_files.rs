//! The files of a tokenizer's folder, as the transformers library writes them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::Merges;
use tokenizers::{AddedToken, Tokenizer};

use crate::weights::read_json;
use crate::{Error, Result};

/// Reads a `tokenizer.json`, without the padding and the truncation that it may carry from its last use.
///
/// # Errors
/// It cannot be read, or is no tokenizer.
pub fn whole(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    let broken =
        |e: &dyn std::fmt::Display| Error::format(path, format!("not a tokenizer ({e}); fetch it again"));
    // The library panics if the JSON ends, or turns bad, inside of its decoder.
    serde_json::from_slice::<serde_json::Value>(&bytes).map_err(|e| broken(&e))?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| broken(&e))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| Error::format(path, e.to_string()))?;
    Ok(tokenizer)
}

/// Ids of a text, without any token before or after it.
///
/// # Errors
/// The text holds something that the vocabulary cannot spell.
pub fn ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    match tokenizer.encode_fast(text, false) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(e) => Err(Error::Unsupported(format!("cannot tokenise {text:?}: {e}"))),
    }
}

/// Pairs to merge, best first: one per line, after an optional `#version` line.
///
/// # Errors
/// The file is missing, or a line is not a pair.
pub fn merges(path: &Path) -> Result<Merges> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
    let lines =
        text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    lines
        .map(|(i, line)| match line.split_once(' ') {
            Some((a, b)) if !b.contains(' ') => Ok((a.to_string(), b.to_string())),
            _ => Err(Error::format(path, format!("line {}: expected two tokens, got {line:?}", i + 1))),
        })
        .collect()
}

/// `tokenizer_config.json`, as far as it matters here.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, Added>,
}

/// A token that is matched as a whole before the text is cut into words.
#[derive(Deserialize)]
pub struct Added {
    /// How it is spelt.
    pub content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl Added {
    /// As the library takes it.
    pub fn token(self) -> AddedToken {
        AddedToken::from(self.content, self.special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized)
    }
}

/// Special tokens by id.
///
/// # Errors
/// No file of the folder has any.
pub fn added_tokens(folder: &Path) -> Result<BTreeMap<u32, Added>> {
    let (config, older) = (folder.join("tokenizer_config.json"), folder.join("added_tokens.json"));
    if config.is_file() {
        let config: Config = read_json(&config)?;
        if !config.added_tokens_decoder.is_empty() {
            return Ok(config.added_tokens_decoder);
        }
    }
    if older.is_file() {
        let ids: BTreeMap<String, u32> = read_json(&older)?;
        let plain = |content| Added {
            content,
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
            special: true,
        };
        return Ok(ids.into_iter().map(|(content, id)| (id, plain(content))).collect());
    }
    Err(Error::format(
        folder,
        "no special tokens here: expected them in tokenizer_config.json or added_tokens.json",
    ))
}
