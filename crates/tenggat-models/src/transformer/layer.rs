//! The linear layers of a block and their names: the one table that checkpoints, adapters and recovery
//! adapters share.

/// The models that are built of these blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Qwen-Image: double blocks alone.
    QwenImage,
    /// FLUX.1: double blocks, then single ones.
    Flux,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 2] = [Family::QwenImage, Family::Flux];

    /// Class of the transformer in diffusers.
    pub fn class(self) -> &'static str {
        match self {
            Family::QwenImage => "QwenImageTransformer2DModel",
            Family::Flux => "FluxTransformer2DModel",
        }
    }

    /// What ai-toolkit and ComfyUI put before the names of modules in LoRA files.
    pub fn lora_prefix(self) -> &'static str {
        match self {
            Family::QwenImage => "diffusion_model.",
            Family::Flux => "transformer.",
        }
    }
}

/// What the dotted names of all double blocks' modules begin with.
pub const BLOCKS: &str = "transformer_blocks.";
/// The same of single blocks.
pub const SINGLE_BLOCKS: &str = "single_transformer_blocks.";

/// Hidden width of the feed-forward layers over the inner width.
const MLP_RATIO: usize = 4;

/// The fused linear layers of a double block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Modulation of the image stream.
    ImgMod,
    /// Modulation of the text stream.
    TxtMod,
    /// Queries, keys and values of the image stream.
    ImgQkv,
    /// Queries, keys and values of the text stream.
    TxtQkv,
    /// Output projection of the image stream.
    ImgOut,
    /// Output projection of the text stream.
    TxtOut,
    /// First feed-forward layer of the image stream.
    ImgMlpIn,
    /// Second feed-forward layer of the image stream.
    ImgMlpOut,
    /// First feed-forward layer of the text stream.
    TxtMlpIn,
    /// Second feed-forward layer of the text stream.
    TxtMlpOut,
}

impl Layer {
    /// All of them, in the order of their numbers.
    pub const ALL: [Layer; 10] = [
        Layer::ImgMod,
        Layer::TxtMod,
        Layer::ImgQkv,
        Layer::TxtQkv,
        Layer::ImgOut,
        Layer::TxtOut,
        Layer::ImgMlpIn,
        Layer::ImgMlpOut,
        Layer::TxtMlpIn,
        Layer::TxtMlpOut,
    ];

    /// Modules whose outputs stand side by side in the fused output, as diffusers names them.
    pub fn modules(self, family: Family) -> &'static [&'static str] {
        match (self, family) {
            (Layer::ImgQkv, _) => &["attn.to_q", "attn.to_k", "attn.to_v"],
            (Layer::TxtQkv, _) => &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
            (Layer::ImgOut, _) => &["attn.to_out.0"],
            (Layer::TxtOut, _) => &["attn.to_add_out"],
            (Layer::ImgMod, Family::QwenImage) => &["img_mod.1"],
            (Layer::TxtMod, Family::QwenImage) => &["txt_mod.1"],
            (Layer::ImgMlpIn, Family::QwenImage) => &["img_mlp.net.0.proj"],
            (Layer::ImgMlpOut, Family::QwenImage) => &["img_mlp.net.2"],
            (Layer::TxtMlpIn, Family::QwenImage) => &["txt_mlp.net.0.proj"],
            (Layer::TxtMlpOut, Family::QwenImage) => &["txt_mlp.net.2"],
            (Layer::ImgMod, Family::Flux) => &["norm1.linear"],
            (Layer::TxtMod, Family::Flux) => &["norm1_context.linear"],
            (Layer::ImgMlpIn, Family::Flux) => &["ff.net.0.proj"],
            (Layer::ImgMlpOut, Family::Flux) => &["ff.net.2"],
            (Layer::TxtMlpIn, Family::Flux) => &["ff_context.net.0.proj"],
            (Layer::TxtMlpOut, Family::Flux) => &["ff_context.net.2"],
        }
    }

    /// Input and fused output width.
    pub fn dims(self, inner: usize) -> (usize, usize) {
        match self {
            Layer::ImgMod | Layer::TxtMod => (inner, 6 * inner),
            Layer::ImgQkv | Layer::TxtQkv => (inner, 3 * inner),
            Layer::ImgOut | Layer::TxtOut => (inner, inner),
            Layer::ImgMlpIn | Layer::TxtMlpIn => (inner, MLP_RATIO * inner),
            Layer::ImgMlpOut | Layer::TxtMlpOut => (MLP_RATIO * inner, inner),
        }
    }

    /// Whether the prediction depends on this layer of the last block, where its text output is thrown away.
    pub(super) fn feeds_the_last_image(self) -> bool {
        !matches!(self, Layer::TxtOut | Layer::TxtMlpIn | Layer::TxtMlpOut)
    }
}

/// The fused linear layers of a single block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SingleLayer {
    /// Modulation.
    Mod,
    /// Queries, keys, values, and the first feed-forward layer.
    QkvMlp,
    /// Output of attention and second feed-forward layer in one.
    Out,
}

impl SingleLayer {
    /// All of them, in the order of their numbers.
    pub const ALL: [SingleLayer; 3] = [SingleLayer::Mod, SingleLayer::QkvMlp, SingleLayer::Out];

    /// Modules whose outputs stand side by side in the fused output, as diffusers names them, with the output
    /// width of each over the inner width.
    pub fn modules(self) -> &'static [(&'static str, usize)] {
        match self {
            SingleLayer::Mod => &[("norm.linear", 3)],
            SingleLayer::QkvMlp => {
                &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1), ("proj_mlp", MLP_RATIO)]
            }
            SingleLayer::Out => &[("proj_out", 1)],
        }
    }

    /// Input width.
    pub(super) fn input(self, inner: usize) -> usize {
        match self {
            SingleLayer::Mod | SingleLayer::QkvMlp => inner,
            SingleLayer::Out => (1 + MLP_RATIO) * inner,
        }
    }
}

/// A module of a double block by its dotted name, as diffusers spells it:
/// `transformer_blocks.7.attn.to_out.0`.
pub fn module_name(block: usize, module: &str) -> String {
    format!("{BLOCKS}{block}.{module}")
}

/// A module of a single block, counted from the first of them.
pub fn single_module_name(block: usize, module: &str) -> String {
    format!("{SINGLE_BLOCKS}{block}.{module}")
}

/// The modules of FLUX.1 that one of its original release was split into, with their shares of its rows, from
/// the name of that one with underscores for dots: `double_blocks_7_img_attn_qkv`. `None` if there is no such
/// module.
///
/// Source: diffusers `convert_flux_to_diffusers.py`.
pub fn of_original_flux(flat: &str) -> Option<Vec<(String, usize)>> {
    if let Some((block, module)) = flat.strip_prefix("double_blocks_").and_then(|rest| rest.split_once('_')) {
        let block = block.parse().ok()?;
        let layer = match module {
            "img_mod_lin" => Layer::ImgMod,
            "txt_mod_lin" => Layer::TxtMod,
            "img_attn_qkv" => Layer::ImgQkv,
            "txt_attn_qkv" => Layer::TxtQkv,
            "img_attn_proj" => Layer::ImgOut,
            "txt_attn_proj" => Layer::TxtOut,
            "img_mlp_0" => Layer::ImgMlpIn,
            "img_mlp_2" => Layer::ImgMlpOut,
            "txt_mlp_0" => Layer::TxtMlpIn,
            "txt_mlp_2" => Layer::TxtMlpOut,
            _ => return None,
        };
        let modules = layer.modules(Family::Flux).iter();
        return Some(modules.map(|module| (module_name(block, module), 1)).collect());
    }
    let (block, module) = flat.strip_prefix("single_blocks_")?.split_once('_')?;
    let block = block.parse().ok()?;
    let layer = match module {
        "modulation_lin" => SingleLayer::Mod,
        "linear1" => SingleLayer::QkvMlp,
        "linear2" => SingleLayer::Out,
        _ => return None,
    };
    let modules = layer.modules().iter();
    Some(modules.map(|&(module, share)| (single_module_name(block, module), share)).collect())
}

/// `transformer_blocks_7_attn_to_out_0` as `transformer_blocks.7.attn.to_out.0`; `None` for a module that no
/// block has.
pub fn dotted(flat: &str) -> Option<String> {
    let (blocks, rest) = [SINGLE_BLOCKS, BLOCKS].into_iter().find_map(|blocks| {
        Some((blocks, flat.strip_prefix(blocks.trim_end_matches('.'))?.strip_prefix('_')?))
    })?;
    let (block, module) = rest.split_once('_')?;
    let block: usize = block.parse().ok()?;
    let is_it = |known: &&str| known.replace('.', "_") == module;
    if blocks == SINGLE_BLOCKS {
        let mut modules = SingleLayer::ALL.into_iter().flat_map(|l| l.modules()).map(|(name, _)| *name);
        return Some(single_module_name(block, modules.find(is_it)?));
    }
    let layers = Family::ALL.into_iter().flat_map(|family| Layer::ALL.map(|layer| layer.modules(family)));
    let known = layers.flatten().copied().find(is_it)?;
    Some(module_name(block, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_names_get_their_dots_back() {
        for family in Family::ALL {
            let modules: Vec<_> = Layer::ALL.into_iter().flat_map(|layer| layer.modules(family)).collect();
            assert_eq!(modules.len(), 14);
            for module in modules {
                let flat = format!("transformer_blocks_12_{}", module.replace('.', "_"));
                assert_eq!(dotted(&flat), Some(module_name(12, module)));
            }
        }
        let modules: Vec<_> = SingleLayer::ALL.into_iter().flat_map(|layer| layer.modules()).collect();
        assert_eq!(modules.len(), 6);
        for (module, _) in modules {
            let flat = format!("single_transformer_blocks_3_{}", module.replace('.', "_"));
            assert_eq!(dotted(&flat), Some(single_module_name(3, module)));
        }
        let names =
            |flat| of_original_flux(flat).map(|list| list.into_iter().map(|(n, _)| n).collect::<Vec<_>>());
        let proj = "single_transformer_blocks.3.proj_out".to_string();
        assert_eq!(names("single_blocks_3_linear2"), Some(vec![proj]));
        assert_eq!(names("double_blocks_0_txt_attn_qkv").map(|list| list.len()), Some(3));
        for flat in ["double_blocks_x_img_mod_lin", "double_blocks_1_linear1", "single_blocks_1", ""] {
            assert_eq!(of_original_flux(flat), None, "{flat}");
        }
        for flat in [
            "transformer_blocks_x_attn_to_q",
            "transformer_blocks_7_attn_to_p",
            "transformer_blocks_7_proj_mlp",
            "single_transformer_blocks_7_ff_net_2",
            "other_7_attn_to_q",
            "",
        ] {
            assert_eq!(dotted(flat), None, "{flat}");
        }
    }
}
