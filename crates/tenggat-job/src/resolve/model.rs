//! The model section.

use super::resolver::{PROCESS, Resolver};
use crate::values::{self, Qtype};
use crate::{Model, raw};

impl Resolver<'_> {
    pub(super) fn model(&mut self, raw: raw::Model, fp8_products: bool) -> Model {
        let at = |key: &str| format!("{PROCESS}.model.{key}");
        let name_or_path = raw.name_or_path.filter(|n| !n.trim().is_empty()).unwrap_or_else(|| {
            let hint = "name a folder, or a model such as Qwen/Qwen-Image";
            self.missing("config.process[0].model.name_or_path", hint);
            String::new()
        });
        if raw.arch.is_none() {
            self.missing("config.process[0].model.arch", "write `arch: qwen_image`");
        }
        let qtype = raw.qtype.as_deref().unwrap_or("qfloat8");
        let mut parts = qtype.split('|').map(str::trim);
        let (format, adapter) = (parts.next().unwrap_or_default(), parts.next());
        if parts.next().is_some() {
            self.wrong(&at("qtype"), "more than one `|`; expected `format` or `format|adapter`");
        }
        let quantise = raw.quantize.unwrap_or(false);
        let mut chosen = |key: &str, name: Option<&str>| {
            self.choose(&at(key), name, values::QUANTISATIONS, Qtype::QFloat8)
        };
        let quantisation = quantise.then(|| chosen("qtype", Some(format)));
        let text_quantisation =
            raw.quantize_te.unwrap_or(quantise).then(|| chosen("qtype_te", raw.qtype_te.as_deref()));
        let offloads = raw.layer_offloading.unwrap_or(false);
        // As ai-toolkit does: quanto's tensors do not move between devices.
        let quantisation = quantisation.map(|format| match format {
            Qtype::QFloat8 if offloads => Qtype::Float8,
            other => other,
        });
        let share = raw.layer_offloading_transformer_percent.unwrap_or(1.0);
        Model {
            name_or_path,
            quantisation,
            recovery_adapter: adapter
                .map(String::from)
                .or(raw.accuracy_recovery_adapter)
                .filter(|_| quantise),
            text_quantisation,
            fp8_products,
            low_vram: raw.low_vram.unwrap_or(false),
            offloaded_share: if offloads { share } else { 0.0 },
        }
    }
}
