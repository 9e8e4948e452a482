//! Secrets stay out of everything that is kept or shown.

use std::path::Path;

use super::frame::TYPICAL;
use crate::{Job, Result, Warning, changes};

const TOKEN: &str = "hf_0123456789abcdef";

fn parse(text: &str) -> Result<(Job, Vec<Warning>)> {
    let variable = |name: &str| match name {
        "DATA" => Some("/data".to_owned()),
        "HF_TOKEN" => Some(TOKEN.to_owned()),
        _ => None,
    };
    Job::from_str(text, Path::new("job.yaml"), None, &variable)
}

#[test]
fn a_secret_is_used_but_neither_stored_nor_shown() {
    let text = TYPICAL.replace("version: '1.0'", "token: ${HF_TOKEN}\n  ${HF_TOKEN}: [x, '${HF_TOKEN}']");
    let text = text.replace("seed: 42", "sampel: '${HF_TOKEN}' # ${HF_TOKEN}");
    let text = text.replace("[name] --w 512", "[name] ${HF_TOKEN} --w 512");
    let (job, warnings) = parse(&text).unwrap();
    assert!(job.sample.prompts[1].text.contains(TOKEN));
    for kept in [&job.text, &job.config, &serde_json::to_string(&job.meta).unwrap()] {
        assert!(kept.contains("${HF_TOKEN}") && !kept.contains(TOKEN), "{kept}");
    }
    assert!(job.text.contains("/data/pears"));
    assert!(!warnings.is_empty() && !format!("{warnings:?}").contains(TOKEN), "{warnings:?}");
}

#[test]
fn errors_quote_the_variable_in_the_place_of_its_value() {
    for (from, to) in [
        ("lr: 1e-4", "lr: ${HF_TOKEN} # ${HF_TOKEN}"),
        ("optimizer: \"adamw8bit\"", "optimizer: ${HF_TOKEN}"),
        ("lr: 1e-4", "lr: ${HF_TOKEN}\n        steps: ${HF_TOKEN}"),
        ("sampler: \"flowmatch\"", "samples: [{prompt: x, width: '${HF_TOKEN}'}]"),
    ] {
        let error = parse(&TYPICAL.replacen(from, to, 1)).unwrap_err();
        let shown = error.to_string();
        assert!(!shown.contains(TOKEN) && !format!("{error:?}").contains(TOKEN), "{shown}");
        assert!(shown.contains("${HF_TOKEN}"), "{shown}");
    }
    let broken = parse(&TYPICAL.replacen("lr: 1e-4", "lr: [${HF_TOKEN}", 1)).unwrap_err();
    assert!(!format!("{broken:?} {broken}").contains(TOKEN));
    let shown = parse(&TYPICAL.replacen("lr: 1e-4", "lr: ${HF_TOKEN}", 1)).unwrap_err().to_string();
    assert!(shown.contains("\n35 |         lr: ${HF_TOKEN}\n   |             ^"), "{shown}");
}

#[test]
fn a_changed_secret_is_no_other_job() {
    let text = TYPICAL.replace("version: '1.0'", "'token': [${HF_TOKEN}, {a: x}]");
    let (job, _) = parse(&text).unwrap();
    assert_eq!(changes(&job.text, &job.text), []);
    let other = parse(&text.replace("lr: 1e-4", "lr: 2e-4")).unwrap().0;
    let changed: Vec<String> = changes(&job.text, &other.text).into_iter().map(|c| c.key).collect();
    assert_eq!(changed, ["train.lr"]);
}
