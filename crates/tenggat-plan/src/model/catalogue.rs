//! The models there are profiles of, with the file that states their dimensions.

use std::borrow::Cow;

use super::{BlockGroup, ModelProfile, SeenControls, Streams};

/// Qwen2.5-VL cuts images into squares of 28 pixels.
const QWEN_VL_PIXELS_PER_TOKEN: f64 = 28.0 * 28.0;
/// Qwen-Image-Edit shows the encoder the control image at up to a megapixel.
const EDIT_CONTROLS: SeenControls =
    SeenControls { pixels_per_token: QWEN_VL_PIXELS_PER_TOKEN, most_pixels: 1024.0 * 1024.0 };
/// Qwen-Image-Edit-2509 and later show it at 384².
const EDIT_PLUS_CONTROLS: SeenControls =
    SeenControls { pixels_per_token: QWEN_VL_PIXELS_PER_TOKEN, most_pixels: 384.0 * 384.0 };

/// FLOPs per pixel of Qwen-Image's VAE, from its channel widths (96, 192, 384, 384), one frame.
const QWEN_VAE: [f64; 2] = [5e6, 1e7];
/// The same of the VAE of FLUX (128, 256, 512, 512).
const FLUX_VAE: [f64; 2] = [6e6, 1.2e7];

/// Blocks with one stream: width, width of the keys, whether the attention is gated, width inside a gated
/// MLP.
const fn one_stream(
    count: u64,
    width: u64,
    key_width: u64,
    gated_attention: bool,
    mlp_width: u64,
) -> BlockGroup {
    BlockGroup {
        count,
        streams: Streams::One,
        width,
        key_width,
        gated_attention,
        mlp_width,
        gated_mlp: true,
        modulation: [0, 0],
    }
}

/// Qwen-Image.
const QWEN_IMAGE: [BlockGroup; 1] = [BlockGroup::qwen_image(60, 3072)];
/// FLUX.1: 19 blocks of two streams, 38 of one with attention and MLP side by side.
const FLUX1: [BlockGroup; 2] = [
    BlockGroup::qwen_image(19, 3072),
    BlockGroup {
        gated_mlp: false,
        modulation: [3072, 3 * 3072],
        ..one_stream(38, 3072, 3072, false, 4 * 3072)
    },
];
/// Chroma: FLUX.1's blocks, modulated by one small network for all.
const CHROMA: [BlockGroup; 2] = [
    BlockGroup { modulation: [0, 0], ..BlockGroup::qwen_image(19, 3072) },
    BlockGroup { gated_mlp: false, ..one_stream(38, 3072, 3072, false, 4 * 3072) },
];
/// FLUX.2: modulation shared by all blocks, gated MLPs of three widths.
const fn flux2(two: u64, one: u64, width: u64) -> [BlockGroup; 2] {
    let single = one_stream(one, width, width, false, 3 * width);
    [BlockGroup { count: two, streams: Streams::Two, ..single }, single]
}

/// What a profile adds to its blocks.
struct Rest {
    names: &'static [&'static str],
    blocks: &'static [BlockGroup],
    shared_modulation: u64,
    /// Channels of the text, channels of a latent token.
    channels: [u64; 2],
    padded_text_tokens: Option<u64>,
    seen_controls: Option<SeenControls>,
    text_encoder_weights: f64,
    vae: [f64; 2],
    source: &'static str,
}

const fn profile(name: &'static str, rest: Rest) -> ModelProfile {
    ModelProfile {
        name: Cow::Borrowed(name),
        aliases: rest.names,
        blocks: Cow::Borrowed(rest.blocks),
        shared_modulation: rest.shared_modulation,
        joint_dim: rest.channels[0],
        in_channels: rest.channels[1],
        pixels_per_token: 16,
        padded_text_tokens: rest.padded_text_tokens,
        seen_controls: rest.seen_controls,
        text_encoder_weights: rest.text_encoder_weights,
        vae_encode_flops_per_px: rest.vae[0],
        vae_decode_flops_per_px: rest.vae[1],
        source: Cow::Borrowed(rest.source),
    }
}

const fn qwen_image(
    name: &'static str,
    names: &'static [&'static str],
    seen_controls: Option<SeenControls>,
) -> ModelProfile {
    let rest = Rest {
        names,
        blocks: &QWEN_IMAGE,
        shared_modulation: 0,
        channels: [3584, 64],
        padded_text_tokens: None,
        seen_controls,
        text_encoder_weights: 7.6e9,
        vae: QWEN_VAE,
        source: "transformer/config.json of Qwen/Qwen-Image",
    };
    profile(name, rest)
}

const fn flux1(
    name: &'static str,
    names: &'static [&'static str],
    blocks: &'static [BlockGroup],
    source: &'static str,
) -> ModelProfile {
    let rest = Rest {
        names,
        blocks,
        shared_modulation: 0,
        channels: [4096, 64],
        padded_text_tokens: Some(512),
        seen_controls: None,
        text_encoder_weights: 4.7e9,
        vae: FLUX_VAE,
        source,
    };
    profile(name, rest)
}

const fn klein(
    name: &'static str,
    names: &'static [&'static str],
    blocks: &'static [BlockGroup],
    [text_channels, text_millions]: [u64; 2],
) -> ModelProfile {
    let rest = Rest {
        names,
        blocks,
        // Six for either stream of the first blocks, three for the others.
        shared_modulation: 15,
        channels: [text_channels, 128],
        padded_text_tokens: Some(512),
        seen_controls: None,
        text_encoder_weights: text_millions as f64 * 1e6,
        vae: FLUX_VAE,
        source: "Klein9BParams and Klein4BParams in src/flux2/model.py of black-forest-labs/flux2",
    };
    profile(name, rest)
}

/// The models there are profiles of; Qwen-Image first.
pub static MODELS: &[ModelProfile] = &[
    qwen_image("qwen-image", &["qwen_image", "Qwen-Image-2512"], None),
    qwen_image("qwen-image-edit", &["qwen_image_edit"], Some(EDIT_CONTROLS)),
    qwen_image(
        "qwen-image-edit-plus",
        &["qwen_image_edit_plus", "Qwen-Image-Edit-2509", "Qwen-Image-Edit-2511"],
        Some(EDIT_PLUS_CONTROLS),
    ),
    profile(
        "qwen-image-2.1",
        Rest {
            names: &["qwen_image_21"],
            blocks: &[one_stream(32, 4096, 4096, false, 3 * 4096)],
            shared_modulation: 4,
            channels: [4096, 64],
            padded_text_tokens: None,
            seen_controls: None,
            text_encoder_weights: 7.6e9,
            vae: QWEN_VAE,
            source: "transformer/config.json of Qwen/Qwen-Image-2.1, as read by diffusers' QwenImage21Transformer2DModel",
        },
    ),
    flux1(
        "flux1-dev",
        &["flux", "FLUX.1-dev", "FLUX.1-Krea-dev", "FLUX.1"],
        &FLUX1,
        "transformer/config.json of black-forest-labs/FLUX.1-dev",
    ),
    flux1(
        "flux1-kontext",
        &["flux_kontext", "FLUX.1-Kontext-dev", "FLUX.1-Kontext"],
        &FLUX1,
        "transformer/config.json of black-forest-labs/FLUX.1-Kontext-dev",
    ),
    flux1(
        "chroma",
        &["Chroma1-HD", "Chroma1-Base"],
        &CHROMA,
        "transformer/config.json of lodestones/Chroma1-HD",
    ),
    klein(
        "flux2-klein-4b",
        &["flux2_klein_4b", "FLUX.2-klein-base-4B", "FLUX.2-klein-4B"],
        &const { flux2(5, 20, 3072) },
        [7680, 3600],
    ),
    klein(
        "flux2-klein-9b",
        &["flux2_klein_9b", "FLUX.2-klein-base-9B", "FLUX.2-klein-9B", "klein"],
        &const { flux2(8, 24, 4096) },
        [12288, 7600],
    ),
    profile(
        "krea2",
        Rest {
            names: &["Krea-2-Raw", "Krea 2", "Krea-2-Turbo"],
            blocks: &[one_stream(28, 6144, 1536, true, 16_384)],
            shared_modulation: 6,
            channels: [2560, 64],
            padded_text_tokens: None,
            seen_controls: None,
            text_encoder_weights: 3.6e9,
            vae: QWEN_VAE,
            source: "KREA2_MMDIT_CONFIG in extensions_built_in/diffusion_models/krea2/krea2.py of ostris/ai-toolkit 27a03a91",
        },
    ),
    profile(
        "z-image",
        Rest {
            names: &["zimage", "Z-Image-Turbo", "Z-Image-Base"],
            // 30 blocks and 2 that refine the image; 2 more for the text alone are left out.
            blocks: &[BlockGroup {
                modulation: [256, 4 * 3840],
                ..one_stream(32, 3840, 3840, false, 10_240)
            }],
            shared_modulation: 0,
            channels: [2560, 64],
            padded_text_tokens: None,
            seen_controls: None,
            text_encoder_weights: 3.6e9,
            vae: FLUX_VAE,
            source: "defaults of ZImageTransformer2DModel in diffusers, transformer/config.json of Tongyi-MAI/Z-Image",
        },
    ),
];
