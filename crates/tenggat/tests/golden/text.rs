//! Text encoder and prompt embeddings.

use tenggat_models::qwen_image::text_encoder::TextEncoder;
use tenggat_models::qwen_image::{PromptEncoder, TextBatch};
use tenggat_models::transformer::Precision;
use tenggat_tensor::{DType, Device};

use crate::fixture::{Golden, assert_close, folder};

const LIMIT: f64 = 1e-4;

fn load(weights: DType) -> PromptEncoder {
    let precision = Precision { compute: DType::F32, weights };
    PromptEncoder::load(&folder().join("qwen_image"), &Device::cpu_poisoned(), precision)
        .expect("text encoder")
}

fn prompts(golden: &Golden) -> Vec<String> {
    serde_json::from_str(&golden.metadata()["prompts"]).expect("a list of prompts")
}

fn ids(golden: &Golden, name: &str) -> Vec<u32> {
    golden.i64(name).into_iter().map(|id| id as u32).collect()
}

/// The stored weights are bf16, so that both ways of keeping them must meet the same numbers.
#[test]
fn hidden_states_of_every_prompt() {
    let golden = Golden::open("text_encoder.safetensors");
    for weights in [DType::F32, DType::BF16] {
        let model = load(weights);
        for (i, prompt) in prompts(&golden).iter().enumerate() {
            let name = |what: &str| format!("prompt{i}.{what}");
            let framed = model.template.ids(&model.tokenizer, prompt).expect("ids");
            assert_eq!(framed, ids(&golden, &name("input_ids")), "{prompt:?}");
            let layers = model.encoder.config().num_hidden_layers;
            let last = model
                .encoder
                .encode_traced(&[framed], &mut |done, x| {
                    let stage = name(&format!("hidden_states.{done}"));
                    // The reference's last entry is taken after the final norm.
                    let stage = if done == layers { name("before_final_norm") } else { stage };
                    if golden.contains(&stage) {
                        let x = x.to_f32().expect("values");
                        assert_close(&format!("{weights:?} {stage}"), &x, &golden.f32(&stage), LIMIT);
                    }
                })
                .expect("hidden states")
                .to_f32()
                .expect("values");
            for stage in ["last_hidden_state".to_string(), format!("hidden_states.{layers}")] {
                if golden.contains(&name(&stage)) {
                    assert_close(
                        &format!("{weights:?} {}", name(&stage)),
                        &last,
                        &golden.f32(&name(&stage)),
                        LIMIT,
                    );
                }
            }
            let batch = model.encode(&[prompt]).expect("embeddings");
            let embeds = batch.embeds.to_f32().expect("values");
            assert_close(&name("prompt_embeds"), &embeds, &golden.f32(&name("prompt_embeds")), LIMIT);
        }
    }
}

#[test]
fn all_prompts_in_one_batch() {
    let golden = Golden::open("text_encoder.safetensors");
    let (model, prompts) = (load(DType::BF16), prompts(&golden));
    let shape = golden.shape("batch.input_ids");
    let (rows, mask) = (ids(&golden, "batch.input_ids"), golden.i64("batch.attention_mask"));
    for ((prompt, row), mask) in prompts.iter().zip(rows.chunks(shape[1])).zip(mask.chunks(shape[1])) {
        let len = mask.iter().sum::<i64>() as usize;
        assert_eq!(model.template.ids(&model.tokenizer, prompt).expect("ids"), row[..len], "{prompt:?}");
    }
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let TextBatch { embeds, lens, tokens, .. } = model.encode(&prompts).expect("embeddings");
    let shape = golden.shape("batch.prompt_embeds");
    assert_eq!([lens.len(), tokens], shape[..2]);
    let valid: Vec<usize> = golden
        .i64("batch.prompt_embeds_mask")
        .chunks(tokens)
        .map(|row| row.iter().sum::<i64>() as usize)
        .collect();
    assert_eq!(lens, valid);
    // Padding is compared too: it is zero.
    let embeds = embeds.to_f32().expect("values");
    assert_close("batch.prompt_embeds", &embeds, &golden.f32("batch.prompt_embeds"), LIMIT);
}

#[test]
fn prompts_of_the_sampling_run() {
    let golden = Golden::open("sampling.safetensors");
    let (model, metadata) = (load(DType::F32), golden.metadata());
    for (prompt, name) in [("prompt", "prompt_embeds"), ("negative", "negative_prompt_embeds")] {
        let embeds = model.encode(&[&metadata[prompt]]).expect("embeddings").embeds;
        assert_close(name, &embeds.to_f32().expect("values"), &golden.f32(name), LIMIT);
    }
}

/// Only the end of the frame is left of an empty prompt; in a batch it is padded like any other.
#[test]
fn the_empty_prompt_has_embeddings() {
    let model = load(DType::F32);
    let alone = model.encode(&[""]).expect("embeddings");
    let whole = model.template.ids(&model.tokenizer, "").expect("ids").len();
    assert_eq!(alone.lens, [whole - model.template.dropped()]);
    assert!(alone.lens[0] >= 5, "{:?}", alone.lens);
    let both = model.encode(&["a red fox", ""]).expect("embeddings");
    let own = alone.embeds.to_f32().expect("values");
    let second = both.embeds.to_f32().expect("values");
    let second = &second[both.tokens * model.encoder.config().hidden_size..];
    assert_close("empty prompt in a batch", &second[..own.len()], &own, 1e-5);
    assert!(second[own.len()..].iter().all(|&x| x == 0.0));
}

/// The same weights under the names that other versions of transformers save them by, in one file.
#[test]
fn every_key_layout_loads() {
    let published = folder().join("qwen_image/text_encoder");
    let mut shards: Vec<Vec<u8>> = Vec::new();
    for entry in std::fs::read_dir(&published).expect("text_encoder") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            shards.push(std::fs::read(&path).expect("shard"));
        }
    }
    let tensors: Vec<_> = shards
        .iter()
        .flat_map(|bytes| safetensors::SafeTensors::deserialize(bytes).expect("shard").tensors())
        .collect();
    let (device, precision) = (Device::cpu(), Precision { compute: DType::F32, weights: DType::BF16 });
    let sequence = vec![vec![7, 1, 3, 2]];
    let run = |folder: &std::path::Path| {
        let encoder = TextEncoder::load(folder, &device, precision).expect("text encoder");
        encoder.encode(&sequence).expect("hidden states").to_f32().expect("values")
    };
    let expected = run(&published);
    for prefix in ["model.language_model.", "language_model.model.", ""] {
        let renamed = tensors.iter().filter_map(|(name, view)| {
            let own = name.strip_prefix("model.").filter(|own| !own.starts_with("visual."))?;
            Some((format!("{prefix}{own}"), view))
        });
        let copy = tempfile::tempdir().expect("temporary folder");
        std::fs::copy(published.join("config.json"), copy.path().join("config.json")).expect("config.json");
        let file = copy.path().join("model.safetensors");
        safetensors::serialize_to_file(renamed, None, &file).expect("model.safetensors");
        assert!(run(copy.path()) == expected, "{prefix:?}");
    }
}
