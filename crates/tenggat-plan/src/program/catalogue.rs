//! The programs there are profiles of.

use super::Program;
use super::profile::{Adapters, Compiles, Expansion, ProgramProfile, Swap};
use crate::model::Targets;

/// Blocks go both ways, by way of memory that is not pinned.
const BOTH_WAYS: Swap = Swap { directions: 2.0, link_share: 0.5 };
/// Blocks are fetched into buffers of pinned memory and never written back.
const FETCHED: Swap = Swap { directions: 1.0, link_share: 0.8 };

/// A program on PyTorch that runs its kernels one by one, with adapters under autocast.
const EAGER: ProgramProfile = ProgramProfile {
    program: Program::Diffusers,
    name: "diffusers",
    aliases: &["diffusers-script", "dreambooth"],
    versions: "0.40, 58eb52c0 (2026-08-23)",
    adapters: Adapters::Bf16,
    targets: Targets::ImageAttention,
    expansion: Expansion::Fused,
    elementwise: 1.0,
    compiles: Compiles::Never,
    checkpoints: true,
    swap: BOTH_WAYS,
    text_encoder_bytes: 0.0,
    source: "examples/dreambooth/train_dreambooth_lora_qwen_image.py",
};

const AI_TOOLKIT: ProgramProfile = ProgramProfile {
    program: Program::AiToolkit,
    name: "ai-toolkit",
    aliases: &["ostris"],
    versions: "0.12.26 and later, since b677cdb0 (2026-07-27)",
    adapters: Adapters::F32,
    targets: Targets::All,
    expansion: Expansion::Bytes,
    swap: Swap { directions: 1.0, link_share: 0.4 },
    text_encoder_bytes: 1.0,
    source: "toolkit/network_mixins.py, toolkit/util/ of ostris/ai-toolkit 27a03a91 (2026-08-21)",
    ..EAGER
};

/// The programs there are profiles of.
pub(super) static PROGRAMS: &[ProgramProfile] = &[
    AI_TOOLKIT,
    ProgramProfile {
        program: Program::AiToolkit2025,
        name: "ai-toolkit-2025",
        aliases: &[],
        versions: "before b677cdb0 (2026-07-27), with torchao",
        expansion: Expansion::Integers,
        source: "toolkit/util/quantize.py of ostris/ai-toolkit before b677cdb0",
        ..AI_TOOLKIT
    },
    ProgramProfile {
        program: Program::Musubi,
        name: "musubi-tuner",
        aliases: &["musubi", "kohya-musubi"],
        versions: "0.3.4, 30c658c4 (2026-06-24)",
        targets: Targets::AttentionAndMlp,
        expansion: Expansion::Bytes,
        compiles: Compiles::IfAsked,
        source: "src/musubi_tuner/networks/lora_qwen_image.py, modules/fp8_optimization_utils.py, docs/block_swap.md",
        ..EAGER
    },
    ProgramProfile {
        program: Program::OneTrainer,
        name: "onetrainer",
        aliases: &["one-trainer"],
        versions: "23df3832 (2026-08-19)",
        targets: Targets::AttentionAndMlp,
        compiles: Compiles::ByDefault,
        swap: FETCHED,
        source: "training_presets/ and modules/module/ of Nerogar/OneTrainer",
        ..EAGER
    },
    ProgramProfile {
        program: Program::SimpleTuner,
        name: "simpletuner",
        aliases: &["simple-tuner"],
        versions: "4.8.0, bc8e6ab7 (2026-08-22)",
        targets: Targets::Attention,
        compiles: Compiles::IfAsked,
        source: "documentation/quickstart/ of bghira/SimpleTuner",
        ..EAGER
    },
    EAGER,
    ProgramProfile {
        program: Program::DiffSynth,
        name: "diffsynth",
        aliases: &["diffsynth-studio"],
        versions: "2.1.2, fed7b18f (2026-08-20)",
        targets: Targets::AttentionAndMlp,
        text_encoder_bytes: 2.0,
        source: "examples/qwen_image/model_training/ of modelscope/DiffSynth-Studio",
        ..EAGER
    },
    ProgramProfile {
        program: Program::Qflux,
        name: "qflux",
        aliases: &["qwen-image-finetune"],
        versions: "1.x to 3.x (2025)",
        source: "README and configs of tsiendragon/qwen-image-finetune",
        ..EAGER
    },
    ProgramProfile {
        program: Program::SdScripts,
        name: "sd-scripts",
        aliases: &["kohya-sd-scripts"],
        versions: "sd3 branch of August 2024 to 0.10.1 (2026-02-16)",
        targets: Targets::AttentionAndMlp,
        expansion: Expansion::Bytes,
        text_encoder_bytes: 2.0,
        source: "networks/lora_flux.py, library/flux_models.py of kohya-ss/sd-scripts",
        ..EAGER
    },
    ProgramProfile {
        program: Program::Unsloth,
        name: "unsloth",
        aliases: &[],
        versions: "pull request 6839 (2026-07-03)",
        targets: Targets::Attention,
        compiles: Compiles::ByDefault,
        source: "pull request 6839 of unslothai/unsloth",
        ..EAGER
    },
    ProgramProfile {
        program: Program::Fizgig,
        name: "fizgig",
        aliases: &[],
        versions: "7.1 (2026-08)",
        targets: Targets::AttentionAndMlp,
        compiles: Compiles::IfAsked,
        swap: FETCHED,
        source: "issues 97 and 99 of shootthesound/Fizgig",
        ..EAGER
    },
];
