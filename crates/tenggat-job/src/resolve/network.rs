//! The network section.

use std::path::PathBuf;

use super::resolver::{PROCESS, Resolver};
use crate::values::NetworkKind;
use crate::{Network, raw};

/// Rank of a job that does not say.
const DEFAULT_RANK: u64 = 4;

impl Resolver<'_> {
    pub(super) fn network(&mut self, raw: Option<raw::Network>) -> Network {
        let at = |key: &str| format!("{PROCESS}.network.{key}");
        let raw = raw.unwrap_or_else(|| {
            let hint = "without it ai-toolkit trains the whole model, which tenggat does not; \
                        write `network: {type: lora, linear: 16}`";
            self.missing("config.process[0].network", hint);
            raw::Network::default()
        });
        let is_lokr = match raw.r#type.as_deref().unwrap_or("lora") {
            "lora" => false,
            "lokr" => true,
            other => {
                let why = format!("networks of the type `{other}` are not trained");
                self.refused(&at("type"), &why, "write `type: lora` or `type: lokr`");
                false
            }
        };
        if is_lokr {
            let message =
                "diffusers cannot load a LoKr of Qwen-Image, ComfyUI can; for both, write `type: lora`";
            self.warn(&at("type"), message);
        }
        if is_lokr && raw.lokr_full_rank == Some(false) {
            let why = "factors of Kronecker products are whole matrices";
            self.refused(&at("lokr_full_rank"), why, "make them smaller with `lokr_factor`");
        }
        let factor = usize::try_from(raw.lokr_factor.unwrap_or(-1)).ok().filter(|&f| f > 0);
        let rank = raw.rank.or(raw.linear).unwrap_or(DEFAULT_RANK) as usize;
        let alpha = raw.linear_alpha.or(raw.alpha);
        if let Some(alpha) = alpha.filter(|&a| a != rank as f64 && !is_lokr) {
            let message = format!(
                "alpha {alpha} has no effect: ai-toolkit sets it to the rank, {rank}, for this model"
            );
            let key = if raw.linear_alpha.is_some() { "linear_alpha" } else { "alpha" };
            self.warn(&at(key), message);
        }
        let arguments = raw.network_kwargs.unwrap_or_default();
        let dropped = [raw.dropout, arguments.rank_dropout, arguments.module_dropout];
        if is_lokr && dropped.iter().flatten().any(|&rate| rate > 0.0) {
            self.refused(&at("dropout"), "LoKr has no dropout", "leave it out, or train a LoRA");
        }
        Network {
            kind: if is_lokr { NetworkKind::Lokr { factor } } else { NetworkKind::Lora },
            rank,
            only_if_contains: arguments.only_if_contains.unwrap_or_default().0,
            ignore_if_contains: arguments.ignore_if_contains.unwrap_or_default().0,
            dropout: raw.dropout.unwrap_or(0.0),
            rank_dropout: arguments.rank_dropout.unwrap_or(0.0),
            module_dropout: arguments.module_dropout.unwrap_or(0.0),
            pretrained: raw.pretrained_lora_path.filter(|p| !p.is_empty()).map(PathBuf::from),
        }
    }
}
