//! Token ids, exact.

use std::path::Path;

use serde_json::Value;
use tenggat_models::qwen_image::{PromptTemplate, Tokenizer};

use crate::fixture::{folder, skip};

fn expect_ids(reference: &str, tokenizer: &Path) {
    let path = folder().join(reference);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let reference: Value = serde_json::from_str(&text).expect("JSON");
    let tokenizer = Tokenizer::load(tokenizer).expect("tokenizer");
    let template = PromptTemplate::default();
    let framed = reference["template"].as_str().expect("template").replace("{}", "a cat");
    assert_eq!(template.apply("a cat"), framed);
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).expect("ids") };
    let prompts = reference["prompts"].as_array().expect("prompts");
    for prompt in prompts {
        let text = prompt["text"].as_str().expect("text");
        assert_eq!(tokenizer.encode(text).expect("ids"), ids(&prompt["ids"]), "{text:?}");
        let framed = template.ids(&tokenizer, text).expect("ids");
        assert_eq!(framed, ids(&prompt["template_ids"]), "{text:?} in the template");
    }
    println!("{} prompts, {} ids in the vocabulary", prompts.len(), tokenizer.vocabulary_len());
    assert!(!prompts.is_empty());
}

#[test]
fn ids_of_the_tiny_vocabulary() {
    expect_ids("tokenizer_ids.json", &folder().join("qwen_image/tokenizer"));
}

/// The reference's whole-file form of the same tokenizer reads alike.
#[test]
fn ids_of_the_tiny_vocabulary_in_one_file() {
    let single = tempfile::tempdir().expect("temporary folder");
    let copy = std::fs::copy(folder().join("tokenizer_reference.json"), single.path().join("tokenizer.json"));
    copy.expect("tokenizer_reference.json");
    expect_ids("tokenizer_ids.json", single.path());
}

#[test]
fn ids_of_the_published_vocabulary() {
    const REFERENCE: &str = "tokenizer_real_ids.json";
    match std::env::var_os("TENGGAT_QWEN_TOKENIZER") {
        None => skip("TENGGAT_QWEN_TOKENIZER names no tokenizer folder"),
        Some(_) if !folder().join(REFERENCE).is_file() => skip("the set has no tokenizer_real_ids.json"),
        Some(published) => expect_ids(REFERENCE, Path::new(&published)),
    }
}

#[test]
fn an_overlong_prompt_is_cut_off() {
    let tokenizer = Tokenizer::load(&folder().join("qwen_image/tokenizer")).expect("tokenizer");
    let template = PromptTemplate::default();
    let ids = template.ids(&tokenizer, &"x y ".repeat(2000)).expect("ids");
    assert_eq!(ids.len(), 1024 + 34);
}
