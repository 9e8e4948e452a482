//! Text to token ids: T5's unigram model, from `tokenizer.json`.

use std::path::Path;

use crate::{Error, Result, tokenizer_files};

const END: &str = "</s>";
const PADDING: &str = "<pad>";

/// Turns prompts into the ids that T5 was trained on.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end: u32,
    padding: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a tokenizer's folder.
    ///
    /// # Errors
    /// It is missing or malformed, or lacks the end or the padding token.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let inner = tokenizer_files::whole(&path)?;
        let id = |token: &str| {
            let missing = || Error::format(&path, format!("has no token `{token}`; is it that of a T5?"));
            inner.token_to_id(token).ok_or_else(missing)
        };
        Ok(Tokenizer { end: id(END)?, padding: id(PADDING)?, inner })
    }

    /// Ids of a prompt and the end token, of whatever length.
    ///
    /// # Errors
    /// The library cannot tokenise the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = tokenizer_files::ids(&self.inner, text)?;
        ids.push(self.end);
        Ok(ids)
    }

    /// The same, cut off before the end token to a length of at least 1.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn cut(&self, text: &str, length: usize) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        if ids.len() > length {
            ids.truncate(length.saturating_sub(1));
            ids.push(self.end);
        }
        Ok(ids)
    }

    /// The same, padded to that length.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn padded(&self, text: &str, length: usize) -> Result<Vec<u32>> {
        let mut ids = self.cut(text, length)?;
        ids.resize(length.max(ids.len()), self.padding);
        Ok(ids)
    }
}
