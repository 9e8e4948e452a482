//! The key tables: every row is tried, and every key has one.

use std::path::Path;

use super::frame::{file_with, parse, told};
use crate::keys::{self, Rule};
use crate::source::Source;
use crate::tree::Node;
use crate::{Error, de, raw};

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
    let (job, warnings) = train("optimizer: prodigy, lr: 1e-4, optimizer_params: {d_coef: 2}").unwrap();
    assert_eq!(job.train.lr, 1.0);
    assert!(warnings.iter().any(|w| w.message.contains("prodigy finds its own rate")), "{warnings:?}");
    let (_, warnings) = train("optimizer: lion, optimizer_params: {eps: 1e-8, d0: 1}").unwrap();
    let strangers = warnings.iter().filter(|w| w.message.contains("the optimiser has no such parameter"));
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
                // The last of two equal keys counts.
                if with.contains("lr: 1") {
                    text = text.replace("lr: 1e-4", "lr: 1");
                }
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
    let (_, findings) = de::read::<raw::File>(&tree, keys::number).unwrap();
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
        "type training_folder trigger_word performance_log_every log_dir training_seed sqlite_db_path \
         first_sample torch_profiler device network save logging datasets train model sample",
    ),
    (
        "config.process[].network",
        "type linear rank linear_alpha alpha conv dropout network_kwargs transformer_only lokr_full_rank \
         lokr_factor old_lokr_format pretrained_lora_path all_layers layer_offloading",
    ),
    (
        "config.process[].save",
        "save_every dtype max_step_saves_to_keep save_format push_to_hub hf_repo_id hf_private",
    ),
    ("config.process[].logging", "log_every use_wandb use_ui_logger project_name run_name verbose"),
    (
        "config.process[].datasets[]",
        "folder_path dataset_path default_caption caption_ext trigger_word resolution buckets num_repeats \
         batch_size is_reg prior_reg network_weight loss_multiplier caption_dropout_rate token_dropout_rate \
         keep_tokens shuffle_tokens flip_x flip_y random_crop random_scale square_crop scale cache_latents \
         cache_latents_to_disk cache_text_embeddings control_path control_path_1 control_path_2 \
         control_path_3 full_size_control_images mask_path alpha_mask mask_min_value invert_mask \
         replacements random_triggers num_workers prefetch_factor bucket_tolerance",
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
        "name_or_path arch quantize quantize_te qtype qtype_te accuracy_recovery_adapter low_vram \
         layer_offloading extras_name_or_path assistant_lora_path compile block_compile model_kwargs dtype",
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
