//! The parts of Qwen-Image, each as in its diffusers or transformers class.

mod denoise;
pub mod geometry;
pub mod patchify;
mod prompt;
mod prompt_encoder;
mod scheduler;
mod text_batch;
pub mod text_encoder;
mod tokenizer;

pub use denoise::{Conditioning, Guidance, OnStep, denoise};
pub use prompt::{MAX_PROMPT_TOKENS, PromptTemplate};
pub use prompt_encoder::PromptEncoder;
pub use scheduler::Scheduler;
pub use text_batch::TextBatch;
pub use tokenizer::Tokenizer;
