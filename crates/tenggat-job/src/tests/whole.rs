//! Whole jobs: what is read, and what is said of those that make no sense.

use std::path::Path;

use super::frame::{TYPICAL, job, parse, with};
use crate::source::Source;
use crate::tree::Node;
use crate::*;

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
    assert_eq!(job.model.quantisation, Some(Qtype::Uint(3)));
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
pub(super) const FROM_THE_PAGE: &str = r#"{"job": "extension", "config": {"name": "first", "process": [{
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
    let without = |job| Job { text: String::new(), config: String::new(), ..job };
    assert_eq!(without(read), without(yaml));
}

#[test]
fn what_is_not_written_has_upstreams_default() {
    let small = "job: extension\nconfig:\n  name: n\n  process:\n    - type: sd_trainer\n      \
                 datasets: [{folder_path: p}]\n      model: {name_or_path: m, arch: qwen_image}\n      \
                 network: {}\n      train:\n";
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
        ("batch_size: 1", "min_denoising_steps: 999", "not a range"),
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

#[test]
fn checkpointing_is_for_what_does_not_fit_unless_compat_wants_all() {
    let read = |text: &str| parse(text).unwrap().0.train.recompute;
    let with_value =
        |value: &str| with("gradient_checkpointing: true", &format!("gradient_checkpointing: {value}"));
    assert_eq!(read(&with_value("true")), Recompute::Auto);
    assert_eq!(read(&with_value("auto")), Recompute::Auto);
    assert_eq!(read(&with_value("false")), Recompute::Never);
    assert_eq!(read(&with("gradient_checkpointing: true", "")), Recompute::Auto);
    let compat = |text: &str| text.replace("job: extension", "job: extension\ncompat: checkpoint-all");
    assert_eq!(read(&compat(&with_value("true"))), Recompute::Always);
    assert_eq!(read(&compat(&with_value("auto"))), Recompute::Auto);
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
    assert!(error.contains("50 is out of range; expected 0 to 1"), "{error}");
    let qfloat8 = with("qtype: \"uint3|", "qtype: \"qfloat8|");
    let format = |text: &str| parse(text).unwrap().0.model.quantisation;
    assert_eq!(format(&qfloat8), Some(Qtype::QFloat8));
    assert_eq!(format(&qfloat8.replace("low_vram: true", "layer_offloading: true")), Some(Qtype::Float8));
}
