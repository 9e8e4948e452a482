//! CLIP's pooled vector and the states of T5.

use tenggat_models::Interrupt;
use tenggat_models::flux::{clip, t5};
use tenggat_models::transformer::Precision;
use tenggat_tensor::{DType, Device};

use super::{folder, open};
use crate::fixture::{Golden, assert_close};

const LIMIT: f64 = 1e-4;

fn clip(weights: DType) -> clip::TextModel {
    let precision = Precision { compute: DType::F32, weights };
    let folder = folder().join("model/text_encoder");
    clip::TextModel::load(&folder, &Device::cpu_poisoned(), precision, &Interrupt::default()).expect("CLIP")
}

fn t5(weights: DType) -> t5::TextEncoder {
    let precision = Precision { compute: DType::F32, weights };
    let (folder, interrupt) = (folder().join("model/text_encoder_2"), Interrupt::default());
    let device = Device::cpu_poisoned();
    t5::TextEncoder::load(&folder, &device, precision, None, &|_, _| {}, &interrupt).expect("T5")
}

fn ids(golden: &Golden, name: &str) -> Vec<u32> {
    golden.i64(name).into_iter().map(|id| id as u32).collect()
}

/// `prompt0`, `prompt1`, … and their texts.
fn prompts(golden: &Golden) -> Vec<(String, String)> {
    let texts: Vec<String> = serde_json::from_str(&golden.metadata()["prompts"]).expect("a list of prompts");
    texts.into_iter().enumerate().map(|(i, text)| (format!("prompt{i}"), text)).collect()
}

#[test]
fn clip_states_of_every_prompt() {
    let golden = open("text_encoder.safetensors");
    let tokenizer = clip::Tokenizer::load(&folder().join("model/tokenizer")).expect("tokenizer");
    for weights in [DType::F32, DType::BF16] {
        let model = clip(weights);
        let mut all = Vec::new();
        for (prompt, text) in prompts(&golden) {
            let sequence = tokenizer.padded(&text).expect("ids");
            assert_eq!(sequence, ids(&golden, &format!("{prompt}.clip_input_ids")), "{text:?}");
            let compare = |what: &str, x: &tenggat_tensor::Tensor| {
                let name = format!("{prompt}.{what}");
                if golden.contains(&name) {
                    assert_close(&name, &x.to_f64().expect("values"), &golden.f64(&name), LIMIT);
                }
            };
            let states = model
                .encode_traced(std::slice::from_ref(&sequence), &mut |done, x| {
                    compare(&format!("clip_hidden_states.{done}"), x);
                })
                .expect("states");
            compare("clip_last_hidden_state", &states);
            compare("pooled_projections", &model.pooled(std::slice::from_ref(&sequence)).expect("pooled"));
            all.push((prompt, sequence));
        }
        assert!(golden.contains("prompt0.clip_hidden_states.1"));
        let sequences: Vec<Vec<u32>> = all.iter().map(|(_, sequence)| sequence.clone()).collect();
        let together = model.pooled(&sequences).expect("pooled").to_f64().expect("values");
        let expected: Vec<f64> =
            all.iter().flat_map(|(prompt, _)| golden.f64(&format!("{prompt}.pooled_projections"))).collect();
        assert_close("pooled together", &together, &expected, LIMIT);
    }
}

#[test]
fn t5_states_of_every_prompt() {
    let golden = open("text_encoder.safetensors");
    let tokenizer = t5::Tokenizer::load(&folder().join("model/tokenizer_2")).expect("tokenizer");
    for weights in [DType::F32, DType::BF16] {
        let model = t5(weights);
        let layers = model.config().num_layers;
        for (prompt, text) in prompts(&golden) {
            let sequence = ids(&golden, &format!("{prompt}.t5_input_ids"));
            assert_eq!(tokenizer.padded(&text, sequence.len()).expect("ids"), sequence, "{text:?}");
            let mut compare = |what: &str, x: &tenggat_tensor::Tensor| {
                let name = format!("{prompt}.t5_{what}");
                // The reference's last entry is taken after the final norm.
                if golden.contains(&name) && what != format!("hidden_states.{layers}") {
                    assert_close(&name, &x.to_f64().expect("values"), &golden.f64(&name), LIMIT);
                }
            };
            let states = model.encode_traced(&sequence, &mut compare).expect("states");
            let states = states.to_f64().expect("values");
            for name in [format!("{prompt}.t5_hidden_states.{layers}"), format!("{prompt}.prompt_embeds")] {
                if golden.contains(&name) {
                    assert_close(&name, &states, &golden.f64(&name), LIMIT);
                }
            }
        }
        assert!(golden.contains("prompt0.t5_position_bias") && golden.contains("prompt0.prompt_embeds"));
        // Distances beyond the last bucket; and another sequence before it.
        let long = ids(&golden, "long512.t5_input_ids");
        let first = ids(&golden, "prompt0.t5_input_ids");
        let together = model.encode(&[first, long]).expect("states").to_f64().expect("values");
        let mut expected = golden.f64("prompt0.prompt_embeds");
        expected.extend(golden.f64("long512.prompt_embeds"));
        assert_close("prompt0 and long512", &together, &expected, LIMIT);
    }
}
