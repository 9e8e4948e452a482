//! Diffusion transformers as profiles: what a forecast needs to know of a model that somebody trains.
//!
//! tenggat trains Qwen-Image; other programs train more, and their runs are planned as well.

mod blocks;
mod catalogue;
mod targets;

pub use blocks::BlockGroup;
pub(crate) use blocks::Linear;
pub use catalogue::MODELS;
pub use targets::{Streams, Targets, UnknownTargets};

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::cost::{ModelDims, SINUSOID};

/// A diffusion transformer and what stands around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelProfile {
    /// Name on the command line.
    pub name: Cow<'static, str>,
    /// Other names: `arch` in ai-toolkit's jobs, repositories of the hub (in part).
    #[serde(skip)]
    pub aliases: &'static [&'static str],
    /// Blocks of the transformer.
    pub blocks: Cow<'static, [BlockGroup]>,
    /// Outputs of the modulation matrices that blocks share, in units of a block's width.
    pub shared_modulation: u64,
    /// Channels of the text encoder's output.
    pub joint_dim: u64,
    /// Channels of a packed latent token.
    pub in_channels: u64,
    /// Pixels on the side of the square that becomes one token.
    pub pixels_per_token: u64,
    /// Text tokens per caption where every caption is padded to as many; `None` if it is as long as it is.
    pub padded_text_tokens: Option<u64>,
    /// How the text encoder sees control images; `None` if it does not.
    pub seen_controls: Option<SeenControls>,
    /// Weights of the text encoder's matrices.
    pub text_encoder_weights: f64,
    /// FLOPs per pixel of encoding an image.
    pub vae_encode_flops_per_px: f64,
    /// FLOPs per pixel of decoding one.
    pub vae_decode_flops_per_px: f64,
    /// Where the dimensions are stated.
    pub source: Cow<'static, str>,
}

/// Control images in a vision-language text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SeenControls {
    /// Pixels that become one token of the text.
    pub pixels_per_token: f64,
    /// Images are scaled to this many pixels at most.
    pub most_pixels: f64,
}

/// A model that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown model `{name}`; use one of {known}")]
pub struct UnknownModel {
    name: String,
    known: String,
}

impl ModelProfile {
    /// The profile of that name or alias; letters' case and punctuation do not matter. A repository of the
    /// hub or a path is known by its last part.
    ///
    /// # Errors
    /// [`UnknownModel`] with the names there are.
    pub fn find(name: &str) -> Result<&'static Self, UnknownModel> {
        let wanted = plain(name.trim_end_matches('/').rsplit('/').next().unwrap_or(name));
        let is_called = |model: &&Self| {
            plain(&model.name) == wanted || model.aliases.iter().any(|alias| plain(alias) == wanted)
        };
        MODELS.iter().find(is_called).ok_or_else(|| UnknownModel {
            name: name.to_owned(),
            known: MODELS.iter().map(|model| model.name.as_ref()).collect::<Vec<_>>().join(", "),
        })
    }

    /// A model of Qwen-Image's layout with other dimensions.
    pub fn qwen_image_like(dims: &ModelDims) -> Self {
        let published = &MODELS[0];
        if *dims == ModelDims::QWEN_IMAGE {
            return published.clone();
        }
        let width = dims.heads.saturating_mul(dims.head_dim);
        let blocks = vec![BlockGroup::qwen_image(dims.layers, width)];
        Self {
            name: Cow::Borrowed("a model of Qwen-Image's layout"),
            aliases: &[],
            blocks: Cow::Owned(blocks),
            joint_dim: dims.joint_dim,
            in_channels: dims.in_channels,
            pixels_per_token: dims.pixels_per_token,
            ..published.clone()
        }
    }

    /// Whether this is Qwen-Image as tenggat trains it, so that both can be planned.
    pub fn is_trained_here(&self) -> bool {
        self.name == MODELS[0].name || self.name == "a model of Qwen-Image's layout"
    }

    /// Image tokens of an image.
    pub fn image_tokens(&self, width_px: u64, height_px: u64) -> u64 {
        let side = self.pixels_per_token.max(1);
        (width_px / side).max(1).saturating_mul((height_px / side).max(1))
    }

    /// Text tokens of a caption with control images of `control_px` pixels each.
    pub fn text_tokens(&self, caption: u64, controls: u64, control_px: f64) -> u64 {
        let text = self.padded_text_tokens.unwrap_or(caption);
        let seen = self
            .seen_controls
            .map_or(0.0, |seen| controls as f64 * control_px.min(seen.most_pixels) / seen.pixels_per_token);
        text.saturating_add(seen.round() as u64)
    }

    /// Blocks in all.
    pub fn layers(&self) -> u64 {
        self.blocks.iter().fold(0, |sum, group| sum.saturating_add(group.count))
    }

    /// Weights of all blocks' matrices, modulation included.
    pub fn block_weights(&self) -> f64 {
        self.blocks.iter().map(|group| group.count as f64 * group.weights()).sum()
    }

    /// Weights of everything outside the blocks: image and text input, timestep embedding, output.
    pub fn other_weights(&self) -> f64 {
        let width = self.blocks.iter().map(|group| group.width).max().unwrap_or(0) as f64;
        let (latent, joint) = (self.in_channels as f64, self.joint_dim as f64);
        width * (2.0 * latent + joint + SINUSOID + (3.0 + self.shared_modulation as f64) * width)
    }

    /// Weights of the whole transformer.
    pub fn weights(&self) -> f64 {
        self.block_weights() + self.other_weights()
    }

    /// Trainable parameters of a LoRA.
    pub fn lora_parameters(&self, rank: u64, targets: Targets) -> f64 {
        let extents = |group: &BlockGroup| group.count as f64 * group.adapted_extents(targets);
        rank as f64 * self.blocks.iter().map(extents).sum::<f64>()
    }
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_weigh_what_is_published() {
        for (name, billions) in [
            ("qwen-image", 20.4),
            ("qwen-image-2.1", 7.0),
            ("flux1-dev", 11.9),
            ("flux2-klein-4b", 3.88),
            ("flux2-klein-9b", 9.1),
            ("krea2", 12.9),
            // 6.15 with the two blocks for the text alone.
            ("z-image", 5.8),
            ("chroma", 8.9),
        ] {
            let weights = ModelProfile::find(name).unwrap().weights() / 1e9;
            assert!((weights / billions - 1.0).abs() < 0.04, "{name}: {weights:.2} G, {billions} G expected");
        }
    }

    #[test]
    fn models_are_found_by_repository_and_by_ai_toolkits_names() {
        for (query, name) in [
            ("Qwen/Qwen-Image", "qwen-image"),
            ("qwen_image_edit_plus", "qwen-image-edit-plus"),
            ("Qwen/Qwen-Image-Edit-2509", "qwen-image-edit-plus"),
            ("black-forest-labs/FLUX.1-dev", "flux1-dev"),
            ("flux", "flux1-dev"),
            ("zimage", "z-image"),
            ("krea/Krea-2-Raw", "krea2"),
            ("flux2_klein_9b", "flux2-klein-9b"),
        ] {
            assert_eq!(ModelProfile::find(query).map(|model| model.name.as_ref()), Ok(name), "{query}");
        }
        assert!(ModelProfile::find("sdxl").unwrap_err().to_string().contains("z-image"));
    }

    /// The general profile and the planner's own dimensions of Qwen-Image say the same.
    #[test]
    fn qwen_image_is_the_same_either_way() {
        let (profile, dims) = (&MODELS[0], ModelDims::QWEN_IMAGE);
        assert_eq!(profile.block_weights(), dims.block_weights());
        assert!((profile.other_weights() / dims.other_weights() - 1.0).abs() < 1e-9);
        assert_eq!(profile.lora_parameters(16, Targets::All), dims.lora_parameters(16));
        assert_eq!(profile.image_tokens(1024, 1024), dims.image_tokens(1024, 1024));
        assert_eq!(ModelProfile::qwen_image_like(&dims), *profile);
        let small = ModelDims { layers: 6, heads: 6, head_dim: 32, ..dims };
        assert_eq!(ModelProfile::qwen_image_like(&small).block_weights(), small.block_weights());
    }

    #[test]
    fn control_images_lengthen_the_text() {
        let edit = ModelProfile::find("qwen-image-edit").unwrap();
        // 832×576 in squares of 28.
        assert_eq!(edit.text_tokens(100, 1, 832.0 * 576.0), 711);
        let plus = ModelProfile::find("qwen-image-edit-plus").unwrap();
        // Scaled to 384² first.
        assert_eq!(plus.text_tokens(100, 2, 1024.0 * 1024.0), 100 + 376);
        assert_eq!(ModelProfile::find("flux1-dev").unwrap().text_tokens(20, 0, 0.0), 512);
    }
}
