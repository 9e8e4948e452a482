//! Whole files in, jobs, warnings and errors out.

use std::collections::BTreeMap;
use std::path::Path;

use super::keys::{self, Rule};
use tenggat_tensor::ops::quantise::Format;

use super::*;

/// A 24 GB job as ai-toolkit's users write it.
const TYPICAL: &str = r#"---
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

fn parse(text: &str) -> Result<(Job, Vec<Warning>)> {
    let variable = |name: &str| (name == "DATA").then(|| "/data".to_owned());
    Job::from_str(text, Path::new("job.yaml"), None, &variable)
}

fn job(text: &str) -> Job {
    parse(text).unwrap_or_else(|e| panic!("{e}")).0
}

/// The typical job with one piece of its text replaced.
fn with(from: &str, to: &str) -> String {
    assert!(TYPICAL.contains(from), "{from}");
    TYPICAL.replacen(from, to, 1)
}

#[test]
fn a_typical_job_is_read_without_a_warning() {
    let (job, warnings) = parse(TYPICAL).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(job.folder, Path::new("output/pears"));
    assert_eq!(job.datasets[0].path, Path::new("/data/pears"));
    assert_eq!(job.datasets[0].resolutions, [512, 768, 1024]);
    assert_eq!(job.datasets[0].caption_ext, ".txt");
    assert_eq!(job.datasets[0].trigger_word.as_deref(), Some("p3ar"));
    assert!(job.datasets[0].cache_text_to_disk && job.datasets[0].cache_latents_to_disk);
    assert_eq!((job.train.steps, job.train.lr), (Some(2000), 1e-4));
    assert_eq!(job.train.optimiser.kind, Optimiser::AdamW8bit);
    assert_eq!((job.train.timestep_type, job.train.lr_scheduler), (TimestepType::Sigmoid, None));
    assert_eq!(job.train.denoising_steps, (0, 999));
    assert_eq!(
        job.save,
        Save { every: 250, keep: 4, best: false, deliver: Deliver::Newest, dtype: SaveType::F16 }
    );
    assert_eq!(job.model.quantisation, Some(Format::Uint(3)));
    assert_eq!(job.model.recovery_adapter.as_deref(), Some("ostris/adapters/qwen_image_uint3.safetensors"));
    assert_eq!(job.meta["name"], "pears");
    let [first, second] = &job.sample.prompts[..] else { panic!("not two prompts") };
    assert_eq!((first.text.as_str(), first.width, first.height), ("a p3ar on a table", 1024, 992));
    assert_eq!((first.seed, first.negative.as_deref(), first.steps), (Some(42), Some(""), 25));
    assert_eq!((second.text.as_str(), second.width, second.height), ("pears", 512, 640));
    assert_eq!((second.seed, second.steps, second.guidance_scale), (Some(7), 9, 2.5));
    assert_eq!((second.negative.as_deref(), second.strength), (Some("dark"), 0.5));
    assert!(job.sample.enabled && job.sample.first == FirstRound::AtStart);
}

/// What ai-toolkit's web page saves when only paths, the model and a prompt are filled in.
const FROM_THE_PAGE: &str = r#"{"job": "extension", "config": {"name": "first", "process": [{
    "type": "diffusion_trainer", "training_folder": "output", "sqlite_db_path": "./aitk_db.db", "device": "cuda",
    "trigger_word": null, "performance_log_every": 10,
    "network": {"type": "lora", "linear": 32, "linear_alpha": 32, "conv": 16, "conv_alpha": 16,
        "lokr_full_rank": true, "lokr_factor": -1, "network_kwargs": {"ignore_if_contains": []}},
    "save": {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4, "save_format": "diffusers",
        "push_to_hub": false},
    "datasets": [{"folder_path": "/p", "mask_path": null, "mask_min_value": 0.1, "default_caption": "",
        "caption_ext": "txt", "caption_dropout_rate": 0.05, "cache_latents_to_disk": false, "is_reg": false,
        "network_weight": 1, "resolution": [512, 768, 1024], "controls": [], "shrink_video_to_frames": true,
        "num_frames": 1, "flip_x": false, "flip_y": false, "num_repeats": 1, "do_i2v": true, "fps": 24}],
    "train": {"batch_size": 1, "bypass_guidance_embedding": true, "steps": 3000, "gradient_accumulation": 1,
        "train_unet": true, "train_text_encoder": false, "gradient_checkpointing": true,
        "noise_scheduler": "flowmatch", "optimizer": "adamw8bit", "timestep_type": "weighted",
        "content_or_style": "balanced", "optimizer_params": {"weight_decay": 0.0001}, "unload_text_encoder": false,
        "cache_text_embeddings": false, "lr": 0.0001, "ema_config": {"use_ema": false, "ema_decay": 0.99},
        "skip_first_sample": false, "force_first_sample": false, "disable_sampling": false, "dtype": "bf16",
        "diff_output_preservation": false, "diff_output_preservation_multiplier": 1.0,
        "diff_output_preservation_class": "person", "switch_boundary_every": 1, "loss_type": "mse"},
    "logging": {"log_every": 1, "use_ui_logger": true},
    "model": {"name_or_path": "Qwen/Qwen-Image-2512", "quantize": true, "qtype": "qfloat8", "quantize_te": true,
        "qtype_te": "qfloat8", "arch": "qwen_image:2512", "low_vram": true, "model_kwargs": {}, "compile": false,
        "layer_offloading": false},
    "sample": {"sampler": "flowmatch", "sample_every": 250, "width": 1024, "height": 1024,
        "samples": [{"prompt": "a pear"}], "neg": "", "seed": 42, "walk_seed": true, "guidance_scale": 4,
        "sample_steps": 25, "num_frames": 1, "fps": 1}
    }]}, "meta": {"name": "[name]", "version": "1.0"}}"#;

#[test]
fn a_job_of_the_web_page_is_read_without_a_warning() {
    let (job, warnings) = parse(FROM_THE_PAGE).unwrap();
    assert_eq!(warnings, []);
    assert_eq!((job.train.timestep_type, job.network.rank), (TimestepType::Weighted, 32));
    assert_eq!(job.train.optimiser.params.weight_decay, Some(1e-4));
}

/// Files cut short, or with a line or a value spoilt, are errors or jobs; nothing else.
#[test]
fn spoilt_files_never_panic() {
    let lines: Vec<&str> = TYPICAL.lines().collect();
    for i in 0..lines.len() {
        let _ = parse(&lines[..i].join("\n"));
        let without: Vec<&str> = [&lines[..i], &lines[i + 1..]].concat();
        let _ = parse(&without.join("\n"));
        let (key, _) = lines[i].split_once(':').unwrap_or((lines[i], ""));
        for value in [
            "",
            "[]",
            "{}",
            "~",
            "-1",
            "1e400",
            ".nan",
            "99999999999999999999999",
            "'é\\0'",
            "*a",
            "{a: [",
            "${",
        ] {
            let mut spoilt = lines.clone();
            let line = format!("{key}: {value}");
            spoilt[i] = &line;
            if let Err(error) = parse(&spoilt.join("\n")) {
                assert!(!error.to_string().is_empty());
            }
        }
    }
    for (start, _) in TYPICAL.char_indices().step_by(7) {
        let _ = parse(&TYPICAL[start..]);
    }
    for deep in ["[", "{a: ", "- ", "a:\n "] {
        let error = parse(&deep.repeat(20_000)).unwrap_err();
        assert!(!error.to_string().is_empty());
    }
    let nested = |levels: usize| format!("job: {}{}", "[".repeat(levels), "]".repeat(levels));
    let deep = |levels| Node::parse(&Source::new(Path::new("a"), ""), &nested(levels));
    assert!(deep(16).is_ok() && deep(64).is_err());
}

#[test]
fn the_same_job_as_json_is_the_same_job() {
    let yaml = job(TYPICAL);
    let source = Source::new(Path::new("a"), TYPICAL);
    let json = Node::parse(&source, TYPICAL).unwrap().to_json();
    let read = job(&serde_json::to_string_pretty(&json).unwrap());
    assert_eq!(Job { text: String::new(), ..read }, Job { text: String::new(), ..yaml });
}

#[test]
fn what_is_not_written_has_upstreams_default() {
    let small = "job: extension\nconfig:\n  name: n\n  process:\n    - type: sd_trainer\n      \
                 datasets: [{folder_path: p}]\n      model: {name_or_path: m, arch: qwen_image}\n      train:\n";
    let job = job(small);
    assert_eq!((job.network.rank, job.save.every, job.save.keep), (4, 1000, 5));
    assert_eq!((job.train.lr, job.train.max_grad_norm, job.train.batch_size), (1e-6, 1.0, 1));
    assert_eq!(job.datasets[0].resolutions, [512]);
    assert_eq!((job.train.steps, job.sample.enabled, job.compat), (None, false, Compat::default()));
    assert_eq!(job.model.quantisation, None);
}

#[test]
fn the_name_given_outside_wins_everywhere() {
    let (job, _) = Job::from_str(TYPICAL, Path::new("j"), Some("other"), &|_| Some("x".into())).unwrap();
    assert_eq!((job.name.as_str(), &job.meta["name"]), ("other", &"other".into()));
    assert_eq!(job.sample.prompts[1].text, "other");
}

#[test]
fn wrong_types_show_the_place() {
    let error = parse(&with("lr: 1e-4", "lr: fast")).unwrap_err().to_string();
    let expected = "job.yaml:35:13: `config.process[].train.lr`: expected a number, got the text \"fast\"\n   |\n\
                    35 |         lr: fast\n   |             ^^^^";
    assert_eq!(error, expected);
}

#[test]
fn unknown_keys_are_warned_about_with_a_suggestion() {
    let (_, warnings) = parse(&with("steps: 2000", "stpes: 2000")).unwrap();
    let shown: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["job.yaml:28:9: `stpes` is not a known key and has no effect; did you mean `steps`?"]);
}

#[test]
fn repeated_keys_are_warned_about_and_the_last_counts() {
    let (job, warnings) = parse(&with("steps: 2000", "steps: 2000\n        steps: 30")).unwrap();
    assert_eq!(job.train.steps, Some(30));
    assert_eq!(warnings[0].place.mark, Mark { line: 29, column: 9 });
    assert!(warnings[0].message.contains("line 28"), "{}", warnings[0].message);
}

#[test]
fn our_own_keys_and_compat_are_read() {
    let own = "      tenggat: {budget: 1h30m, deadline: '2030-01-02T03:04:05Z', fill: true, margin: 2s, memory_limit: 22GB, seed: 7, threads: 2, fp8_products: true}\n      network:";
    assert!(!job(&with("", "")).model.fp8_products);
    let job = job(&with("      network:", own).replace("---\n", "---\ncompat: [step-names, linear-ramp]\n"));
    assert_eq!((job.limits.budget_s, job.limits.margin_s, job.seed), (Some(5400.0), Some(2.0), 7));
    assert_eq!(job.limits.deadline.unwrap().to_string(), "2030-01-02T03:04:05Z");
    assert!(job.limits.fill && job.limits.threads == Some(2) && job.model.fp8_products);
    assert_eq!(job.limits.memory_bytes, Some(22e9));
    let wrong = with("      network:", "      tenggat: {memory_limit: much}\n      network:");
    assert!(parse(&wrong).unwrap_err().to_string().contains("24GB"));
    assert!(job.compat.step_names && job.compat.linear_ramp && !job.compat.caption_spaces);
}

#[test]
fn upstreams_false_negative_prompt_needs_compat() {
    let without = with("        neg: \"\"\n", "");
    assert_eq!(job(&without).sample.prompts[0].negative, None);
    let old = without.replace("---\n", "---\ncompat: ai-toolkit\n");
    assert_eq!(job(&old).sample.prompts[0].negative.as_deref(), Some("False"));
}

#[test]
fn values_that_make_no_sense_are_named() {
    let cases = [
        ("optimizer: \"adamw8bit\"", "optimizer: adamwbit", "did you mean `adamw8bit`?"),
        ("optimizer: \"adamw8bit\"", "optimizer: automagic", "use adamw"),
        ("steps: 2000", "steps: 0", "expected 1 or more"),
        ("caption_dropout_rate: 0.05", "caption_dropout_rate: 5", "expected 0 to 1"),
        ("resolution: [ 512, 768, 1024 ]", "resolution: 16", "expected 32 to 8192"),
        ("name: \"pears\"", "name: ../pears", "no slash"),
        ("save_every: 250", "save_every: 250\n        push_to_hub: true", "expected account/name"),
        ("type: \"lora\"", "type: dora", "`config.process[0].network.type` is not supported"),
        ("type: \"lora\"", "type: lokr\n        lokr_full_rank: false", "`lokr_factor`"),
        ("type: \"lora\"", "type: lokr\n        dropout: 0.1", "LoKr has no dropout"),
        ("arch: \"qwen_image:2512\"", "arch: flux", "train `arch: qwen_image`"),
        ("arch: \"qwen_image:2512\"", "is_flux: true\n        arch: flux", "train `arch: qwen_image`"),
        (
            "      network:",
            "      tenggat: {budget: soon}\n      network:",
            "`config.process[0].tenggat.budget`",
        ),
        ("qtype: \"uint3|", "qtype: \"uint3|a|", "more than one `|`"),
        ("job: extension", "job: train", "write `job: extension`"),
        ("        - folder_path: \"${DATA}/pears\"\n", "        - num_repeats: 2\n", "no `folder_path`"),
        (
            "name_or_path: \"Qwen/Qwen-Image\"",
            "low_vram: true",
            "`config.process[0].model.name_or_path` is missing",
        ),
        ("batch_size: 1", "min_denoising_steps: 999", "no range"),
        ("- \"a [trigger] on a table\"", "- \"a --w x\"", "`--w x`: expected a whole number"),
        ("type: 'sd_trainer'", "type: train_vae", "write `type: sd_trainer`"),
    ];
    for (from, to, part) in cases {
        let error = parse(&with(from, to)).unwrap_err().to_string();
        assert!(error.contains(part), "{to}: {error}");
    }
}

#[test]
fn alpha_is_said_to_have_no_effect() {
    let (_, warnings) = parse(&with("linear_alpha: 16", "linear_alpha: 8")).unwrap();
    assert!(warnings[0].message.contains("alpha 8 has no effect"), "{}", warnings[0]);
}

#[test]
fn modules_are_chosen_by_name() {
    let mut network = job(TYPICAL).network;
    assert!(network.trains("transformer_blocks.0.attn.to_q"));
    network.only_if_contains = vec!["transformer_blocks$$1$$".into(), "blocks.0.attn".into()];
    network.ignore_if_contains = vec!["to_out".into()];
    let trained = ["transformer_blocks.1.img_mod.1", "transformer_blocks.0.attn.to_q"];
    let not = [
        "transformer_blocks.2.attn.to_q",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.img_mod.1",
    ];
    assert!(trained.iter().all(|m| network.trains(m)) && !not.iter().any(|m| network.trains(m)));
}

/// A job with one section filled by hand.
fn file_with(section: &str, body: &str) -> String {
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
        ("train", ""),
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
fn told(text: &str) -> Result<Vec<String>> {
    let (_, warnings) = parse(text)?;
    Ok(warnings.into_iter().map(|w| w.message).filter(|m| !m.contains("written twice")).collect())
}

/// Keys whose example cannot stand in the frame, tried by other tests.
const STRUCTURAL: [&str; 4] = ["config", "process", "alpha", "validation_config"];

/// An optimiser that has this number.
fn optimiser_with(key: &str) -> &'static str {
    match key {
        "min_8bit_size" => "optimizer: adamw8bit",
        "decoupled_weight_decay" => "optimizer: lion",
        "beta3"
        | "decouple"
        | "use_bias_correction"
        | "safeguard_warmup"
        | "d0"
        | "d_coef"
        | "growth_rate" => "optimizer: prodigy, lr: 1",
        "beta1" | "clip_threshold" | "decay_rate" | "scale_parameter" => "optimizer: adafactor",
        _ => "optimizer: adamw",
    }
}

#[test]
fn optimisers_have_their_own_numbers() {
    let train = |text: &str| parse(&file_with("config.process[].train", text));
    let method = |text: &str| {
        let (job, _) = train(text).unwrap();
        crate::optimiser::Method::of(&job.train.optimiser, job.train.lr)
    };
    use crate::optimiser::{AdafactorConfig, AdamWConfig, LionConfig, Method, ProdigyConfig};
    let adam = AdamWConfig { weight_decay: 0.0, coupled: true, ..AdamWConfig::default() };
    assert_eq!(method("optimizer: adam"), Method::AdamW(adam));
    let lion = LionConfig { beta1: 0.8, beta2: 0.9, weight_decay: 5.0 };
    let text = "optimizer: lion, lr: 0.01, optimizer_params: {betas: [0.8, 0.9], weight_decay: 0.05, decoupled_weight_decay: true}";
    assert_eq!(method(text), Method::Lion(lion));
    let adafactor = AdafactorConfig { eps: 1e-20, scale_floor: Some(0.01), ..AdafactorConfig::default() };
    let text = "optimizer: adafactor, optimizer_params: {eps: [1e-20, 0.01], scale_parameter: true}";
    assert_eq!(method(text), Method::Adafactor(adafactor));
    let (job, warnings) = train("optimizer: prodigy, lr: 1e-4, optimizer_params: {d_coef: 2}").unwrap();
    assert_eq!(job.train.lr, 1.0);
    assert!(warnings.iter().any(|w| w.message.contains("no rate for prodigy")), "{warnings:?}");
    let prodigy = ProdigyConfig { d_coef: 2.0, ..ProdigyConfig::default() };
    assert_eq!(crate::optimiser::Method::of(&job.train.optimiser, 1.0), Method::Prodigy(prodigy));
    let (_, warnings) = train("optimizer: lion, optimizer_params: {eps: 1e-8, d0: 1}").unwrap();
    let strangers = warnings.iter().filter(|w| w.message.contains("the optimiser has no such number"));
    assert_eq!(strangers.count(), 2, "{warnings:?}");
    for wrong in
        ["eps: [1e-8, 1e-3]", "d0: 0", "beta1: 1", "growth_rate: -1", "betas: [0.9]", "decay_rate: 1"]
    {
        assert!(train(&format!("optimizer: adamw, optimizer_params: {{{wrong}}}")).is_err(), "{wrong}");
    }
}

#[test]
fn every_key_does_what_its_row_says() {
    for section in keys::sections() {
        for key in section.keys.iter().filter(|k| !STRUCTURAL.contains(&k.name)) {
            let mut text = file_with(section.path, &format!("{}: {}, ", key.name, key.example));
            if section.path.ends_with("optimizer_params") {
                let with = format!("train: {{{}, optimizer_params", optimiser_with(key.name));
                text = text.replace("train: {optimizer_params", &with);
            }
            let row = format!("{}.{}", section.path, key.name);
            match (key.rule, told(&text)) {
                (Rule::Supported, Ok(warnings)) => {
                    let own = |w: &&String| !w.starts_with("alpha ");
                    assert!(warnings.iter().filter(own).count() == 0, "{row}: {warnings:?}");
                }
                (Rule::NoEffect(why), Ok(warnings)) => {
                    assert_eq!(warnings, [format!("`{}` has no effect: {why}", key.name)], "{row}");
                }
                (Rule::Refused(why, instead), Err(Error::Refused { why: w, instead: i, .. })) => {
                    assert_eq!((why, instead), (w.as_str(), i.as_str()), "{row}");
                }
                (rule, got) => panic!("{row}: {rule:?} but {got:?}"),
            }
            for harmless in key.harmless.iter().copied().chain(["null"]) {
                let text = file_with(section.path, &format!("{}: {harmless}, ", key.name));
                if key.rule != Rule::Supported {
                    assert_eq!(
                        told(&text).unwrap_or_else(|e| panic!("{row}: {e}")),
                        [""; 0],
                        "{row}: {harmless}"
                    );
                }
            }
        }
    }
}

#[test]
fn tables_and_structs_name_the_same_keys() {
    let text = file_with("", "meta: {a: 1}");
    let source = Source::new(Path::new("a"), &text);
    let tree = Node::parse(&source, &text).unwrap();
    let (_, findings) = de::read::<raw::File>(&tree).unwrap();
    for (path, fields) in &findings.sections {
        let supported: Vec<_> = keys::sections()
            .filter(|s| s.path == path)
            .flat_map(|s| s.keys)
            .filter(|k| k.rule == Rule::Supported)
            .map(|k| k.name)
            .collect();
        for field in *fields {
            assert!(supported.contains(field), "{path}.{field} has no row");
        }
        for name in supported {
            assert!(fields.contains(&name), "{path}.{name} is called supported and has no field");
        }
    }
    let sections: Vec<_> = findings.sections.iter().map(|(path, _)| path.as_str()).collect();
    for section in keys::sections() {
        assert!(sections.contains(&section.path), "{} is in no struct", section.path);
        for (i, key) in section.keys.iter().enumerate() {
            assert!(section.keys[..i].iter().all(|k| k.name != key.name), "{} twice", key.name);
        }
    }
}

/// The keys that ai-toolkit's documentation and examples name, by section; the tables may have more.
const DOCUMENTED: [(&str, &str); 9] = [
    ("", "job config meta"),
    ("config", "name process"),
    (
        "config.process[]",
        "type training_folder trigger_word performance_log_every log_dir training_seed sqlite_db_path first_sample \
         torch_profiler device network save logging datasets train model sample",
    ),
    (
        "config.process[].network",
        "type linear rank linear_alpha alpha conv dropout network_kwargs transformer_only lokr_full_rank lokr_factor \
         old_lokr_format pretrained_lora_path all_layers layer_offloading",
    ),
    (
        "config.process[].save",
        "save_every dtype max_step_saves_to_keep save_format push_to_hub hf_repo_id hf_private",
    ),
    ("config.process[].logging", "log_every use_wandb use_ui_logger project_name run_name verbose"),
    (
        "config.process[].datasets[]",
        "folder_path dataset_path default_caption caption_ext trigger_word resolution buckets num_repeats batch_size \
         is_reg prior_reg network_weight loss_multiplier caption_dropout_rate token_dropout_rate keep_tokens \
         shuffle_tokens flip_x flip_y random_crop random_scale square_crop scale cache_latents cache_latents_to_disk \
         cache_text_embeddings control_path control_path_1 control_path_2 control_path_3 full_size_control_images \
         mask_path alpha_mask mask_min_value invert_mask replacements random_triggers num_workers prefetch_factor \
         bucket_tolerance",
    ),
    (
        "config.process[].train",
        "steps batch_size lr optimizer optimizer_params lr_scheduler dtype noise_scheduler timestep_type \
         content_or_style content_or_style_reg loss_type min_denoising_steps max_denoising_steps num_train_timesteps \
         gradient_accumulation gradient_accumulation_steps max_grad_norm gradient_checkpointing noise_offset cfg_scale \
         reg_weight ema_config cache_text_embeddings unload_text_encoder skip_first_sample force_first_sample \
         disable_sampling start_step attention_backend max_loss validation_config do_differential_guidance \
         do_guidance_loss diff_output_preservation blank_prompt_preservation optimal_noise_pairing_samples \
         force_consistent_noise merge_network_on_save unet_lr text_encoder_lr lr_scheduler_params t0_loss_target \
         do_fft_loss",
    ),
    (
        "config.process[].model",
        "name_or_path arch quantize quantize_te qtype qtype_te accuracy_recovery_adapter low_vram layer_offloading \
         extras_name_or_path assistant_lora_path compile block_compile model_kwargs dtype",
    ),
];

#[test]
fn every_documented_key_has_a_row() {
    for (section, names) in DOCUMENTED {
        for name in names.split_whitespace() {
            assert!(keys::find(section, name).is_some(), "{section}.{name}");
        }
    }
    let samples = "sampler sample_every sample_start_step width height prompts samples neg seed walk_seed \
                   guidance_scale sample_steps format";
    let each =
        "prompt width height neg seed guidance_scale sample_steps ctrl_img ctrl_img_1 network_multiplier";
    for (section, names) in [("sample", samples), ("sample.samples[]", each)] {
        for name in names.split_whitespace() {
            assert!(keys::find(&format!("config.process[].{section}"), name).is_some(), "{section}.{name}");
        }
    }
}

#[test]
fn checkpointing_is_for_what_does_not_fit_unless_compat_wants_all() {
    let read = |text: &str| parse(text).unwrap().0.train.checkpointing;
    let with_value =
        |value: &str| with("gradient_checkpointing: true", &format!("gradient_checkpointing: {value}"));
    assert_eq!(read(&with_value("true")), Checkpointing::Auto);
    assert_eq!(read(&with_value("auto")), Checkpointing::Auto);
    assert_eq!(read(&with_value("false")), Checkpointing::Never);
    assert_eq!(read(&with("gradient_checkpointing: true", "")), Checkpointing::Auto);
    let compat = |text: &str| text.replace("job: extension", "job: extension\ncompat: checkpoint-all");
    assert_eq!(read(&compat(&with_value("true"))), Checkpointing::Always);
    assert_eq!(read(&compat(&with_value("auto"))), Checkpointing::Auto);
    let error = parse(&with_value("some")).unwrap_err().to_string();
    assert!(error.contains("expected true, false or auto"), "{error}");
}

#[test]
fn offloading_takes_a_share_of_the_blocks_and_torchaos_float8() {
    let model = |keys: &str| parse(&with("low_vram: true", keys)).map(|(job, _)| job.model);
    assert_eq!(model("low_vram: false").unwrap().offloaded_share, 0.0);
    assert_eq!(model("layer_offloading: true").unwrap().offloaded_share, 1.0);
    let half = "layer_offloading: true\n        layer_offloading_transformer_percent: 0.5";
    assert_eq!(model(half).unwrap().offloaded_share, 0.5);
    let error = model(&half.replace("0.5", "50")).unwrap_err().to_string();
    assert!(error.contains("from 0 to 1"), "{error}");
    let qfloat8 = with("qtype: \"uint3|", "qtype: \"qfloat8|");
    let format = |text: &str| parse(text).unwrap().0.model.quantisation;
    assert_eq!(format(&qfloat8), Some(Format::QFloat8));
    assert_eq!(format(&qfloat8.replace("low_vram: true", "layer_offloading: true")), Some(Format::Float8));
}
