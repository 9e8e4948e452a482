//! Small files of a model folder.

pub mod tokenizer {
    //! A file of a tokenizer, and a text through it; the first byte says which file.

    use serde_json::{Map, json};
    use tenggat_models::qwen_image::Tokenizer;

    use crate::scratch::Scratch;

    const FILES: [&str; 5] =
        ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "tokenizer.json"];

    /// See the module. The other files are those of a small tokenizer; a whole `tokenizer.json` stands alone.
    pub fn run(bytes: &[u8]) {
        let Some((&first, bytes)) = bytes.split_first() else { return };
        let scratch = Scratch::new();
        let name = FILES[usize::from(first) % FILES.len()];
        if name != "tokenizer.json" {
            for (name, text) in FILES.iter().zip(small()) {
                scratch.write(name, text.as_bytes());
            }
        }
        if name == "added_tokens.json" {
            scratch.write("tokenizer_config.json", b"{}");
        }
        scratch.write(name, bytes);
        let Ok(tokenizer) = Tokenizer::load(scratch.folder()) else { return };
        for text in ["", "hey <|end|> they're 12 \u{e9}\n\n  x\u{0}", "\u{1f98a}\u{301}"] {
            let _ = tokenizer.encode(text);
        }
        let _ = tokenizer.vocabulary_len();
    }

    /// Vocabulary, merges and added tokens in both forms.
    fn small() -> [String; 4] {
        // Bytes as GPT-2 writes them: those that print stand for themselves, the others follow from 256 on.
        let prints = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
        let others = (0..256).filter(|&b| !prints(b)).enumerate().map(|(i, _)| 256 + i as u32);
        let letters = (0..256).filter(|&b| prints(b)).chain(others).filter_map(char::from_u32);
        let mut vocab: Map<_, _> = letters.enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
        vocab.extend([("he".to_owned(), json!(256)), ("hey".to_owned(), json!(257))]);
        let added = json!({"added_tokens_decoder": {"300": {"content": "<|end|>", "special": true}}});
        [
            json!(vocab).to_string(),
            "#version: 0.2\nh e\nhe y\n".into(),
            added.to_string(),
            json!({"<|end|>": 300}).to_string(),
        ]
    }

    /// Each file of a small tokenizer, and one that is whole in itself.
    pub fn seeds() -> Vec<Vec<u8>> {
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{"id": 2, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": " ?\\p{L}+|\\s+"}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                "vocab": {"h": 0, "e": 1, "he": 3}, "merges": [["h", "e"]]},
        });
        let texts = small().into_iter().chain([whole.to_string()]);
        texts.enumerate().map(|(i, text)| [vec![i as u8], text.into_bytes()].concat()).collect()
    }
}

pub mod configs {
    //! The configuration of a part of a model, and the part as far as it can be loaded without weights; the
    //! first byte says of which part.

    use std::sync::Arc;

    use tenggat_models::model_folder::ModelIndex;
    use tenggat_models::qwen_image::Scheduler;
    use tenggat_models::qwen_image::text_encoder::TextEncoder;
    use tenggat_models::transformer::{Config, LoadOptions, Precision, Transformer};
    use tenggat_models::vae::Vae;
    use tenggat_models::weights::Random;
    use tenggat_tensor::{DType, Device};

    use crate::scratch::Scratch;

    const PRECISION: Precision = Precision { compute: DType::F32, weights: DType::F32 };

    /// See the module.
    pub fn run(bytes: &[u8]) {
        let Some((&first, bytes)) = bytes.split_first() else { return };
        let scratch = Scratch::new();
        let device = Device::cpu();
        scratch.write("model.safetensors", &super::no_weights());
        match first % 5 {
            0 => {
                scratch.write("config.json", bytes);
                if let Ok(config) = Config::read(scratch.folder()) {
                    transformer(config, &device);
                }
            }
            1 => {
                scratch.write("config.json", bytes);
                drop(Vae::load(scratch.folder(), &device, DType::F32));
            }
            2 => {
                scratch.write("config.json", bytes);
                drop(TextEncoder::load(scratch.folder(), &device, PRECISION));
            }
            3 => {
                scratch.write("scheduler_config.json", bytes);
                let Ok(scheduler) = Scheduler::load(scratch.folder()) else { return };
                drop((scheduler.timesteps(7, 4096), scheduler.train_sigmas(4096)));
            }
            _ => {
                scratch.write("model_index.json", bytes);
                drop(ModelIndex::read(scratch.folder()).map(|index| index.components().is_ok()));
            }
        }
    }

    /// Small ones are made, of random numbers; of the others the modules are counted, as a plan does.
    fn transformer(config: Config, device: &Device) {
        drop(config.lora_layers());
        let width = config.inner().max(config.joint_attention_dim).max(config.in_channels);
        if config.num_layers <= 3 && width <= 128 {
            let random =
                Random { device: device.clone(), compute: DType::F32, dense: DType::F32, format: None };
            let options = LoadOptions::default();
            drop(Transformer::from_source(config, device, PRECISION, Arc::new(random), None, options));
        }
    }

    /// One configuration of each part.
    pub fn seeds() -> Vec<Vec<u8>> {
        [
            r#"{"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 32,
            "in_channels": 64, "out_channels": 16, "patch_size": 2, "axes_dims_rope": [4, 6, 6],
            "guidance_embeds": false}"#,
            r#"{"_class_name": "AutoencoderKLQwenImage", "base_dim": 8, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1,
            "attn_scales": [], "temperal_downsample": [false, true, true], "z_dim": 2, "input_channels": 3,
            "latents_mean": [0.5, -0.5], "latents_std": [1.0, 2.0]}"#,
            r#"{"model_type": "qwen2_5_vl", "text_config": {"vocab_size": 640, "hidden_size": 96,
            "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6, "rope_theta": 5000.0, "rope_scaling": {"type": "mrope"}}}"#,
            r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0,
            "use_dynamic_shifting": true, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
            "max_image_seq_len": 8192, "shift_terminal": 0.02, "time_shift_type": "exponential"}"#,
            r#"{"_class_name": "QwenImagePipeline", "transformer": ["diffusers", "QwenImageTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKLQwenImage"], "tokenizer": ["transformers", "Qwen2Tokenizer"],
            "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}"#,
        ]
        .into_iter()
        .enumerate()
        .map(|(i, text)| [vec![i as u8], text.as_bytes().to_vec()].concat())
        .collect()
    }
}

/// A whole file of one number that no model has.
fn no_weights() -> Vec<u8> {
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).expect("a tensor");
    safetensors::serialize([("none", view)], None).expect("a file")
}
