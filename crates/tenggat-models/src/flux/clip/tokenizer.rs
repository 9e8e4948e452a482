//! Text to token ids: CLIP's lower-case BPE.
//!
//! Built from the files of the published `tokenizer/` folder, which has no `tokenizer.json`. Source:
//! transformers `convert_slow_tokenizer.py` (`CLIPConverter`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use crate::tokenizer_files::Added;
use crate::weights::{dimension, read_json};
use crate::{Error, Result, tokenizer_files};

/// Words before merging: contractions, runs of letters, single digits, runs of anything else but spaces.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// What the vocabulary puts behind the last piece of a word.
const END_OF_WORD: &str = "</w>";

/// Turns prompts into the ids that CLIP was trained on.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    padding: u32,
    length: usize,
}

/// `tokenizer_config.json`, as far as it matters here.
#[derive(Deserialize)]
struct Config {
    bos_token: Token,
    eos_token: Token,
    pad_token: Option<Token>,
    unk_token: Option<Token>,
    model_max_length: usize,
}

/// A token by its spelling, alone or with its properties.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Spelt(String),
    Described { content: String },
}

impl Token {
    fn spelling(&self) -> &str {
        match self {
            Token::Spelt(content) | Token::Described { content } => content,
        }
    }
}

impl Tokenizer {
    /// Reads `vocab.json`, `merges.txt` and `tokenizer_config.json` of a tokenizer's folder.
    ///
    /// # Errors
    /// A file is missing or malformed; the message names it.
    pub fn load(folder: &Path) -> Result<Self> {
        let (vocab_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let config_path = folder.join("tokenizer_config.json");
        let mut vocab: BTreeMap<String, u32> = read_json(&vocab_path)?;
        let merges = tokenizer_files::merges(&merges_path)?;
        let config: Config = read_json(&config_path)?;
        let added = tokenizer_files::added_tokens(folder)?;
        vocab.extend(added.iter().map(|(&id, token)| (token.content.clone(), id)));
        let id = |token: &Token| {
            vocab.get(token.spelling()).copied().ok_or_else(|| {
                let reason = format!("the token `{}` is not in vocab.json", token.spelling());
                Error::format(&config_path, reason)
            })
        };
        let (start, end) = (id(&config.bos_token)?, id(&config.eos_token)?);
        let padding = config.pad_token.as_ref().map_or(Ok(end), id)?;
        let length = config.model_max_length;
        dimension("model_max_length", length, 2, 1 << 20).map_err(|e| Error::format(&config_path, e))?;

        let mut model = BPE::builder().end_of_word_suffix(END_OF_WORD.into());
        if let Some(unknown) = &config.unk_token {
            model = model.unk_token(unknown.spelling().into());
        }
        let model = model
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .build()
            .map_err(|e| Error::format(&merges_path, format!("{e}; does it belong to vocab.json?")))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let refused = |e: tokenizers::Error| Error::format(folder, e.to_string());
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(refused)?;
        let normalizers = Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)
            .map_err(|e| Error::Unsupported(format!("the pattern of words does not compile: {e}")))?;
        let bytes = ByteLevel::new(false, true, false);
        inner
            .with_normalizer(Some(normalizers))
            .map_err(refused)?
            .with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
        inner.add_tokens(added.into_values().map(Added::token)).map_err(refused)?;
        Ok(Tokenizer { inner, start, end, padding, length })
    }

    /// Ids of a prompt between its start and its end token, of whatever length.
    ///
    /// # Errors
    /// The text holds something that the vocabulary cannot spell; a byte-level one spells everything.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.start];
        ids.extend(tokenizer_files::ids(&self.inner, text)?);
        ids.push(self.end);
        Ok(ids)
    }

    /// The same, cut off before the end token to the model's length.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn cut(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        if ids.len() > self.length {
            ids.truncate(self.length - 1);
            ids.push(self.end);
        }
        Ok(ids)
    }

    /// The same, padded to the model's length.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn padded(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.cut(text)?;
        ids.resize(self.length, self.padding);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of all bytes in the middle and at the end of a word, the merge h+e, and the two frame
    /// tokens.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut letters: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        letters.sort_unstable();
        let ends = letters.iter().map(|c| format!("{c}{END_OF_WORD}"));
        let words = letters.iter().cloned().chain(ends).chain(["he</w>".into()]);
        let vocab: BTreeMap<String, usize> = words.enumerate().map(|(i, word)| (word, i)).collect();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("vocab.json", &serde_json::to_string(&vocab).unwrap());
        write("merges.txt", "#version: 0.2\nh e</w>\n");
        write(
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<s>"}, "eos_token": "<e>", "pad_token": "<e>", "unk_token": "<e>",
                "model_max_length": 6, "added_tokens_decoder": {"600": {"content": "<s>", "special": true},
                "601": {"content": "<e>", "special": true}}}"#,
        );
        folder
    }

    #[test]
    fn lower_case_cut_and_padded() {
        let folder = folder();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let he = 2 * 256;
        assert_eq!(tokenizer.encode("HE").unwrap(), [600, he, 601]);
        assert_eq!(tokenizer.padded(" he  He").unwrap(), [600, he, he, 601, 601, 601]);
        assert_eq!(tokenizer.cut("he he he he he").unwrap(), [600, he, he, he, he, 601]);
        assert_eq!(tokenizer.padded("").unwrap(), [600, 601, 601, 601, 601, 601]);
    }

    #[test]
    fn broken_folders_are_named() {
        let message = |folder: &Path| Tokenizer::load(folder).unwrap_err().to_string();
        let broken = folder();
        let path = broken.path().join("tokenizer_config.json");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, config.replace(r#""eos_token": "<e>""#, r#""eos_token": "<x>""#)).unwrap();
        assert!(message(broken.path()).contains("`<x>` is not in vocab.json"));
        std::fs::write(&path, config.replace("\"model_max_length\": 6", "\"model_max_length\": 1")).unwrap();
        assert!(message(broken.path()).contains("model_max_length"));
        std::fs::remove_file(broken.path().join("merges.txt")).unwrap();
        assert!(message(broken.path()).contains("merges.txt"));
    }
}
