//! Jobs for the tests: a typical one, and one with a section filled by hand.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{Job, Result, Warning};

/// A 24 GB job as ai-toolkit's users write it.
pub(super) const TYPICAL: &str = r#"---
job: extension
config:
  name: "pears"
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      device: cuda:0
      trigger_word: "p3ar"
      network:
        type: "lora"
        linear: 16
        linear_alpha: 16
      save:
        dtype: float16
        save_every: 250
        max_step_saves_to_keep: 4
      datasets:
        - folder_path: "${DATA}/pears"
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [ 512, 768, 1024 ]
      train:
        batch_size: 1
        cache_text_embeddings: true
        steps: 2000
        gradient_accumulation: 1
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: "flowmatch"
        optimizer: "adamw8bit"
        lr: 1e-4
        dtype: bf16
      model:
        name_or_path: "Qwen/Qwen-Image"
        arch: "qwen_image:2512"
        quantize: true
        qtype: "uint3|ostris/adapters/qwen_image_uint3.safetensors"
        quantize_te: true
        qtype_te: "qfloat8"
        low_vram: true
      sample:
        sampler: "flowmatch"
        sample_every: 250
        width: 1024
        height: 1000
        prompts:
          - "a [trigger] on a table"
          - "[name] --w 512 --h 640 --d 7 --s 9 --l 2.5 --n dark --m 0.5"
        neg: ""
        seed: 42
        walk_seed: true
        guidance_scale: 3
        sample_steps: 25
meta:
  name: "[name]"
  version: '1.0'
"#;

pub(super) fn parse(text: &str) -> Result<(Job, Vec<Warning>)> {
    let variable = |name: &str| (name == "DATA").then(|| "/data".to_owned());
    Job::from_str(text, Path::new("job.yaml"), None, &variable)
}

pub(super) fn job(text: &str) -> Job {
    parse(text).unwrap_or_else(|e| panic!("{e}")).0
}

/// The typical job with one piece of its text replaced.
pub(super) fn with(from: &str, to: &str) -> String {
    assert!(TYPICAL.contains(from), "{from}");
    TYPICAL.replacen(from, to, 1)
}

/// A job with one section filled by hand.
pub(super) fn file_with(section: &str, body: &str) -> String {
    let mut parts: BTreeMap<&str, String> = [("", ""), ("config", ""), ("config.process[]", "")]
        .into_iter()
        .map(|(k, v)| (k, v.to_owned()))
        .collect();
    let at = |inner: &str| format!("config.process[].{inner}");
    let required = [
        ("datasets[]", "folder_path: p, "),
        ("model", "name_or_path: m, arch: qwen_image, "),
        ("network.network_kwargs", ""),
        ("network", ""),
        ("save", ""),
        ("logging", ""),
        ("sample.samples[]", "prompt: p, "),
        ("sample", ""),
        ("tenggat", ""),
        ("train.optimizer_params", ""),
        ("train.lr_scheduler_params", ""),
        ("train.ema_config", ""),
        ("train.validation_config.validation_items[]", "image_path: p, "),
        ("train.validation_config", ""),
        ("train", "lr: 1e-4, "),
    ];
    let paths: Vec<(String, &str)> = required.iter().map(|(k, v)| (at(k), *v)).collect();
    for (path, base) in &paths {
        parts.insert(path, (*base).to_owned());
    }
    parts.get_mut(section).unwrap_or_else(|| panic!("no section {section}")).push_str(body);
    let own = |name: &str| parts[at(name).as_str()].clone();
    let (root, config, process) = (&parts[""], &parts["config"], &parts["config.process[]"]);
    format!(
        "{{job: extension, config: {{name: n, process: [{{type: sd_trainer, datasets: [{{{}}}, {{folder_path: q}}], model: {{{}}}, \
         network: {{network_kwargs: {{{}}}, {}}}, save: {{{}}}, logging: {{{}}}, sample: {{samples: [{{{}}}], {}}}, \
         tenggat: {{{}}}, train: {{optimizer_params: {{{}}}, lr_scheduler_params: {{{}}}, ema_config: {{{}}}, \
         validation_config: {{validation_items: [{{{}}}], {}}}, cache_text_embeddings: true, {}}}, {process}}}], {config}}}, {root}}}",
        own("datasets[]"),
        own("model"),
        own("network.network_kwargs"),
        own("network"),
        own("save"),
        own("logging"),
        own("sample.samples[]"),
        own("sample"),
        own("tenggat"),
        own("train.optimizer_params"),
        own("train.lr_scheduler_params"),
        own("train.ema_config"),
        own("train.validation_config.validation_items[]"),
        own("train.validation_config"),
        own("train"),
    )
}

/// Warnings that are the point of the test, without those about a key that the frame also has.
pub(super) fn told(text: &str) -> Result<Vec<String>> {
    let (_, warnings) = parse(text)?;
    Ok(warnings.into_iter().map(|w| w.message).filter(|m| !m.contains("written twice")).collect())
}
