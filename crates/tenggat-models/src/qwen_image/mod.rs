//! The parts of Qwen-Image, each as in its diffusers or transformers class.
