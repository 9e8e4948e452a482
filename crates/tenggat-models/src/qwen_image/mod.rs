//! The parts of Qwen-Image, each as in its diffusers or transformers class.

mod denoise;
mod prompt;
mod scheduler;
mod text_batch;
mod tokenizer;
pub mod transformer;

pub use denoise::{Conditioning, OnStep, denoise};
pub use prompt::{MAX_PROMPT_TOKENS, PromptTemplate};
pub use scheduler::Scheduler;
pub use text_batch::TextBatch;
pub use tokenizer::Tokenizer;
