//! Names of LoRA tensors, in every style that diffusers reads.

use tenggat_models::transformer::layer::{Family, dotted, of_original_flux};

/// Which part of a module a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// `[rank, input]`.
    A,
    /// `[output, rank]`.
    B,
    /// Small factor of a Kronecker product, `[l, q]`.
    W1,
    /// Large factor, `[output / l, input / q]`.
    W2,
    /// A number; the module's scale is alpha / rank.
    Alpha,
}

/// Prefix of one who saves adapters with peft alone.
const PEFT_PREFIX: &str = "base_model.model.";

/// Prefixes of names with underscores for dots.
const FLAT_PREFIXES: [&str; 2] = ["lora_unet_", "lycoris_"];

const SUFFIXES: [(&str, Part); 9] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_A.default.weight", Part::A),
    (".lora_B.default.weight", Part::B),
    (".lora_down.weight", Part::A),
    (".lora_up.weight", Part::B),
    (".lokr_w1", Part::W1),
    (".lokr_w2", Part::W2),
    (".alpha", Part::Alpha),
];

/// Module and part of a key; `None` if it is in no style that we know. A module of FLUX.1's original release
/// that diffusers has split keeps its flat name, as [`of_original_flux`] takes it.
pub(super) fn parse(key: &str) -> Option<(String, Part)> {
    let (stem, part) = SUFFIXES.iter().find_map(|(s, part)| Some((key.strip_suffix(s)?, *part)))?;
    if let Some(flat) = FLAT_PREFIXES.iter().find_map(|prefix| stem.strip_prefix(prefix)) {
        let fused = || of_original_flux(flat).map(|_| flat.to_owned());
        return Some((dotted(flat).or_else(fused)?, part));
    }
    let prefixes = Family::ALL.into_iter().map(Family::lora_prefix).chain([PEFT_PREFIX]);
    let module = prefixes.into_iter().find_map(|p| stem.strip_prefix(p)).unwrap_or(stem);
    Some((module.to_owned(), part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_is_understood() {
        let module = "transformer_blocks.7.attn.to_out.0";
        let known = [
            ("diffusion_model.transformer_blocks.7.attn.to_out.0.lora_A.weight", Part::A),
            ("transformer.transformer_blocks.7.attn.to_out.0.lora_B.weight", Part::B),
            ("base_model.model.transformer_blocks.7.attn.to_out.0.lora_A.default.weight", Part::A),
            ("transformer_blocks.7.attn.to_out.0.lora_B.weight", Part::B),
            ("diffusion_model.transformer_blocks.7.attn.to_out.0.lora_down.weight", Part::A),
            ("diffusion_model.transformer_blocks.7.attn.to_out.0.alpha", Part::Alpha),
            ("lora_unet_transformer_blocks_7_attn_to_out_0.lora_up.weight", Part::B),
            ("diffusion_model.transformer_blocks.7.attn.to_out.0.lokr_w1", Part::W1),
            ("lycoris_transformer_blocks_7_attn_to_out_0.lokr_w2", Part::W2),
        ];
        let fused = "double_blocks_7_img_attn_qkv";
        let key = format!("lora_unet_{fused}.lora_down.weight");
        assert_eq!(parse(&key), Some((fused.into(), Part::A)));
        for (key, part) in known {
            assert_eq!(parse(key), Some((module.into(), part)), "{key}");
        }
        for key in ["lora_unet_other_7.lora_up.weight", "a.lokr_w1_a", "a.diff", "a.lora_A", ""] {
            assert_eq!(parse(key), None, "{key}");
        }
    }
}
