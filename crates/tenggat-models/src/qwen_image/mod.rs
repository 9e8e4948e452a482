//! The parts of Qwen-Image, each as in its diffusers or transformers class.

mod scheduler;

pub use scheduler::Scheduler;

pub mod transformer;
