//! The linear layers of a block and their names: the one table that checkpoints, adapters and recovery
//! adapters share.

/// What the dotted names of all blocks' modules begin with.
pub const BLOCKS: &str = "transformer_blocks.";
/// The same in names with underscores for dots.
const FLAT_BLOCKS: &str = "transformer_blocks_";

/// Hidden width of the feed-forward layers over the inner width.
const MLP_RATIO: usize = 4;

/// The fused linear layers of a block.
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

    /// Number of this layer among those of all blocks.
    pub fn number(self, block: usize) -> usize {
        block * Self::ALL.len() + self as usize
    }

    /// Modules whose outputs stand side by side in the fused output, as diffusers names them.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Layer::ImgMod => &["img_mod.1"],
            Layer::TxtMod => &["txt_mod.1"],
            Layer::ImgQkv => &["attn.to_q", "attn.to_k", "attn.to_v"],
            Layer::TxtQkv => &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
            Layer::ImgOut => &["attn.to_out.0"],
            Layer::TxtOut => &["attn.to_add_out"],
            Layer::ImgMlpIn => &["img_mlp.net.0.proj"],
            Layer::ImgMlpOut => &["img_mlp.net.2"],
            Layer::TxtMlpIn => &["txt_mlp.net.0.proj"],
            Layer::TxtMlpOut => &["txt_mlp.net.2"],
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

    /// Whether the prediction depends on this layer of the last block, whose text output is thrown away.
    pub(super) fn feeds_the_last_image(self) -> bool {
        !matches!(self, Layer::TxtOut | Layer::TxtMlpIn | Layer::TxtMlpOut)
    }
}

/// A module of a block by its dotted name, as diffusers spells it: `transformer_blocks.7.attn.to_out.0`.
pub fn module_name(block: usize, module: &str) -> String {
    format!("{BLOCKS}{block}.{module}")
}

/// `transformer_blocks_7_attn_to_out_0` as `transformer_blocks.7.attn.to_out.0`; `None` for a module that a
/// block does not have.
pub fn dotted(flat: &str) -> Option<String> {
    let (block, module) = flat.strip_prefix(FLAT_BLOCKS)?.split_once('_')?;
    let block = block.parse().ok()?;
    let mut modules = Layer::ALL.into_iter().flat_map(|layer| layer.modules());
    let module = modules.find(|known| known.replace('.', "_") == module)?;
    Some(module_name(block, module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_names_get_their_dots_back() {
        let modules: Vec<_> = Layer::ALL.into_iter().flat_map(|layer| layer.modules()).collect();
        assert_eq!(modules.len(), 14);
        for module in modules {
            let flat = format!("transformer_blocks_12_{}", module.replace('.', "_"));
            assert_eq!(dotted(&flat), Some(module_name(12, module)));
        }
        for flat in
            ["transformer_blocks_x_attn_to_q", "transformer_blocks_7_attn_to_p", "other_7_attn_to_q", ""]
        {
            assert_eq!(dotted(flat), None, "{flat}");
        }
    }
}
