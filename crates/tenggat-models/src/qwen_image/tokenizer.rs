//! Text to token ids: the byte-level BPE of Qwen2.
//!
//! Built from the files of the published `tokenizer/` folder, which has no `tokenizer.json`: `vocab.json`,
//! `merges.txt` and the special tokens of `tokenizer_config.json` (or of the older `added_tokens.json`).
//! Source: transformers `models/qwen2/tokenization_qwen2.py`.

use std::collections::BTreeMap;
use std::path::Path;

use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use crate::tokenizer_files::Added;
use crate::weights::read_json;
use crate::{Error, Result, tokenizer_files};

/// Cuts text into words before merging: contractions, letters with one leading mark, single digits,
/// punctuation, line ends, spaces.
const WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    r"|\s+(?!\S)|\s+",
);

/// Turns text into the ids that the text encoder was trained on.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a tokenizer folder: `vocab.json` and `merges.txt` as published, else `tokenizer.json`.
    ///
    /// # Errors
    /// A file is missing or malformed; the message names it.
    pub fn load(folder: &Path) -> Result<Self> {
        let (vocab, whole) = (folder.join("vocab.json"), folder.join("tokenizer.json"));
        if vocab.is_file() {
            return Self::from_vocabulary(folder, &vocab);
        }
        if !whole.is_file() {
            return Err(Error::format(
                folder,
                "no tokenizer here: expected vocab.json and merges.txt, or tokenizer.json",
            ));
        }
        Ok(Tokenizer { inner: tokenizer_files::whole(&whole)? })
    }

    fn from_vocabulary(folder: &Path, vocab_path: &Path) -> Result<Self> {
        let mut vocab: BTreeMap<String, u32> = read_json(vocab_path)?;
        let merges_path = folder.join("merges.txt");
        let merges = tokenizer_files::merges(&merges_path)?;
        let added = tokenizer_files::added_tokens(folder)?;
        // With the added tokens in the vocabulary each keeps its own id, whatever gap lies before it.
        vocab.extend(added.iter().map(|(&id, token)| (token.content.clone(), id)));
        let model = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .build()
            .map_err(|e| Error::format(&merges_path, format!("{e}; does it belong to vocab.json?")))?;

        let pattern = SplitPattern::Regex(WORDS.into());
        let words = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| Error::Unsupported(format!("the pattern of words does not compile: {e}")))?;
        let bytes = ByteLevel::new(false, true, false);
        let mut inner = tokenizers::Tokenizer::new(model);
        let refused = |e: tokenizers::Error| Error::format(folder, e.to_string());
        inner
            .with_normalizer(Some(NFC))
            .map_err(refused)?
            .with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])))
            .with_decoder(Some(bytes));
        let tokens = added.into_values().map(Added::token);
        inner.add_tokens(tokens).map_err(refused)?;
        Ok(Tokenizer { inner })
    }

    /// Ids of a text, without any frame around it.
    ///
    /// # Errors
    /// The text holds something that the vocabulary cannot spell; a byte-level one spells everything.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        tokenizer_files::ids(&self.inner, text)
    }

    /// Number of ids, special tokens included.
    pub fn vocabulary_len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of all bytes, the merges h+e and he+y, and one added token after a gap.
    fn folder(added: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut letters: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        letters.sort_unstable();
        let mut vocab: BTreeMap<String, u32> =
            letters.iter().enumerate().map(|(i, c)| (c.to_string(), i as u32)).collect();
        vocab.extend([("he".into(), 256), ("hey".into(), 257)]);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("vocab.json", &serde_json::to_string(&vocab).unwrap());
        write("merges.txt", "#version: 0.2\nh e\nhe y\n");
        if let Some(name) = added {
            let text = match name {
                "added_tokens.json" => r#"{"<|end|>": 300}"#,
                _ => r#"{"added_tokens_decoder": {"300": {"content": "<|end|>", "special": true}}}"#,
            };
            write(name, text);
        }
        folder
    }

    #[test]
    fn merges_words_and_keeps_the_ids_of_added_tokens() {
        for name in ["tokenizer_config.json", "added_tokens.json"] {
            let folder = folder(Some(name));
            let tokenizer = Tokenizer::load(folder.path()).unwrap();
            let ids = tokenizer.encode("hey<|end|>he").unwrap();
            assert_eq!(ids, [257, 300, 256], "{name}");
            assert!(tokenizer.encode("").unwrap().is_empty());
            // A contraction is cut off before it can merge: he | 's.
            assert_eq!(tokenizer.encode("he's").unwrap().len(), 3);
        }
    }

    #[test]
    fn a_whole_tokenizer_file_gives_the_same_ids() {
        let split = folder(Some("tokenizer_config.json"));
        let tokenizer = Tokenizer::load(split.path()).unwrap();
        let whole = tempfile::tempdir().unwrap();
        tokenizer.inner.save(whole.path().join("tokenizer.json"), false).unwrap();
        let same = Tokenizer::load(whole.path()).unwrap();
        let text = "hey you, they're he<|end|>\n\n 12 é";
        assert_eq!(same.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }

    #[test]
    fn broken_folders_are_named() {
        let message = |folder: &Path| Tokenizer::load(folder).unwrap_err().to_string();
        let empty = tempfile::tempdir().unwrap();
        assert!(message(empty.path()).contains("vocab.json"));
        assert!(message(folder(None).path()).contains("added_tokens.json"));
        let broken = folder(Some("added_tokens.json"));
        std::fs::write(broken.path().join("merges.txt"), "h e\nhe\n").unwrap();
        assert!(message(broken.path()).contains("line 2"));
        std::fs::write(broken.path().join("merges.txt"), "h e\nq x\n").unwrap();
        assert!(message(broken.path()).contains("merges.txt"));
        std::fs::remove_file(broken.path().join("merges.txt")).unwrap();
        assert!(message(broken.path()).contains("merges.txt"));
        std::fs::write(broken.path().join("vocab.json"), "{").unwrap();
        assert!(message(broken.path()).contains("vocab.json"));
    }
}
