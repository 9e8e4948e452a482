//! Token ids of both tokenizers, exact.

use serde_json::Value;
use tenggat_models::flux::{clip, t5};

use super::folder;

#[test]
fn ids_of_both_vocabularies() {
    let reference = std::fs::read(folder().join("tokenizer_ids.json")).expect("tokenizer_ids.json");
    let reference: Value = serde_json::from_slice(&reference).expect("JSON");
    let clip = clip::Tokenizer::load(&folder().join("model/tokenizer")).expect("CLIP's tokenizer");
    let t5 = t5::Tokenizer::load(&folder().join("model/tokenizer_2")).expect("T5's tokenizer");
    let length = reference["t5"]["truncated_to"].as_u64().expect("truncated_to") as usize;
    let most = reference["clip"]["max_length"].as_u64().expect("max_length") as usize;
    let padding = reference["clip"]["pad"].as_u64().expect("pad") as u32;
    let mut cut = 0;
    let prompts = reference["prompts"].as_array().expect("prompts");
    for prompt in prompts {
        let text = prompt["text"].as_str().expect("text");
        let ids =
            |key: &str| -> Vec<u32> { serde_json::from_value(prompt[key].clone()).expect("a list of ids") };
        assert_eq!(clip.encode(text).expect("ids"), ids("clip_ids_untruncated"), "CLIP {text:?}");
        let mut expected = ids("clip_ids");
        assert_eq!(clip.cut(text).expect("ids"), expected, "CLIP, cut: {text:?}");
        expected.resize(most, padding);
        assert_eq!(clip.padded(text).expect("ids"), expected, "CLIP, padded: {text:?}");
        assert_eq!(t5.encode(text).expect("ids"), ids("t5_ids"), "T5 {text:?}");
        assert_eq!(t5.cut(text, length).expect("ids"), ids("t5_ids_truncated"), "T5, cut: {text:?}");
        assert_eq!(t5.padded(text, length).expect("ids").len(), length, "T5, padded: {text:?}");
        cut += usize::from(ids("t5_ids").len() > length);
    }
    assert!(!prompts.is_empty() && cut > 0, "{} prompts, {cut} longer than {length}", prompts.len());
}
