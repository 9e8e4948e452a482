//! The frame that Qwen-Image puts around every prompt.

use std::path::Path;

use serde::Deserialize;

use super::Tokenizer;
use crate::Result;
use crate::weights::read_json;

const BEFORE: &str = "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, \
    text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";

/// Most tokens of a prompt with what follows it; the rest is cut off at the end.
pub const MAX_PROMPT_TOKENS: usize = 1024;

/// The chat template of the text-to-image pipeline, and how much of it the transformer never sees.
///
/// Source: diffusers `pipelines/qwenimage/pipeline_qwenimage.py` (`prompt_template_encode`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    dropped: usize,
}

impl Default for PromptTemplate {
    /// The pipeline's own: the first 34 positions are dropped, which with the Qwen2 vocabulary is all that
    /// stands before the prompt.
    fn default() -> Self {
        PromptTemplate { dropped: 34 }
    }
}

#[derive(Deserialize)]
struct ModelIndex {
    prompt_template_encode_start_idx: Option<usize>,
}

impl PromptTemplate {
    /// The template of a model folder: the pipeline's, with another number of dropped positions if
    /// `model_index.json` says so under `prompt_template_encode_start_idx`.
    ///
    /// # Errors
    /// `model_index.json` is missing or malformed.
    pub fn load(model: &Path) -> Result<Self> {
        let index: ModelIndex = read_json(&model.join("model_index.json"))?;
        Ok(index
            .prompt_template_encode_start_idx
            .map_or_else(Self::default, |dropped| PromptTemplate { dropped }))
    }

    /// Positions at the front of the encoder's output that are dropped.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The text that is tokenised.
    pub fn apply(&self, prompt: &str) -> String {
        format!("{BEFORE}{prompt}{AFTER}")
    }

    /// Ids of a prompt in its frame, at most [`MAX_PROMPT_TOKENS`] more than are dropped. The frame's own end
    /// is cut off with the rest of an overlong prompt.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn ids(&self, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode(&self.apply(prompt))?;
        ids.truncate(MAX_PROMPT_TOKENS + self.dropped);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_folder_may_state_how_much_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model_index.json");
        std::fs::write(&index, r#"{"_class_name": "QwenImagePipeline"}"#).unwrap();
        assert_eq!(PromptTemplate::load(folder.path()).unwrap().dropped(), 34);
        std::fs::write(&index, r#"{"prompt_template_encode_start_idx": 38}"#).unwrap();
        assert_eq!(PromptTemplate::load(folder.path()).unwrap().dropped(), 38);
        std::fs::remove_file(&index).unwrap();
        assert!(PromptTemplate::load(folder.path()).unwrap_err().to_string().contains("model_index.json"));
    }

    #[test]
    fn braces_in_a_prompt_are_text() {
        assert!(PromptTemplate::default().apply("{} {0}").contains("user\n{} {0}<|im_end|>"));
    }
}
