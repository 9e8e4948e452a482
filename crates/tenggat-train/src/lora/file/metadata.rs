//! What a LoRA file says about itself. Source: ai-toolkit `toolkit/metadata.py`.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tenggat_models::transformer::layer::Family;

use super::Info;
use crate::files::python_json;
use crate::files::tensor_file::{self, Entry};
use crate::job::ARCH;

/// FLUX.1's name in ai-toolkit.
const FLUX: &str = "flux";

/// The bytes of a file that the old hash is made of.
const LEGACY_RANGE: std::ops::Range<usize> = 0x10_0000..0x11_0000;

/// Metadata in ai-toolkit's order: those of the job, ours, the hashes. Values that are no text are JSON.
pub(super) fn of(info: &Info<'_>, entries: &[Entry<'_>]) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, Value)> = info.job.meta.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut set = |key: &str, value: Value| {
        pairs.retain(|(k, _)| k != key);
        pairs.push((key.into(), value));
    };
    // A file named after step N upstream holds N + 1 updates and says N; resuming there repeats step N.
    let step = if info.job.compat.step_names { info.steps.saturating_sub(1) } else { info.steps };
    set("training_info", json!({ "step": step, "epoch": info.epoch }));
    let arch = if info.family == Family::Flux { FLUX } else { ARCH };
    set("ss_base_model_version", arch.into());
    set("ss_output_name", info.job.name.as_str().into());
    if let Some(trigger) = &info.job.trigger_word {
        let (folder, word) = (format!("1_{trigger}"), trigger.clone());
        set("ss_tag_frequency", json!({ folder: { word: 1 } }));
    }
    set(
        "software",
        json!({
            "name": "tenggat",
            "repo": env!("CARGO_PKG_REPOSITORY"),
            "version": env!("CARGO_PKG_VERSION"),
        }),
    );
    set("format", "pt".into());
    let mut texts: Vec<(String, String)> = pairs
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, python_json::dumps(&other)),
        })
        .collect();
    texts.extend(hashes(&texts, entries));
    texts
}

/// `sshs_model_hash`, SHA-256 of the tensors; `sshs_legacy_hash`, the first 8 digits of that of 64 KiB from
/// the second MiB on, of a file with the training metadata (`ss_…`) alone. Web interfaces find models by
/// them. Source: ai-toolkit `toolkit/train_tools.py`, `addnet_hash_safetensors` and `addnet_hash_legacy`.
pub(super) fn hashes(metadata: &[(String, String)], entries: &[Entry<'_>]) -> [(String, String); 2] {
    let training: Vec<_> = metadata.iter().filter(|(k, _)| k.starts_with("ss_")).cloned().collect();
    let header = tensor_file::header(&training, entries);
    let (mut model, mut legacy) = (Sha256::new(), Sha256::new());
    let mut start = 0;
    for (i, bytes) in std::iter::once(&header[..]).chain(entries.iter().map(|e| &e.bytes[..])).enumerate() {
        let inside = |at: usize| at.clamp(start, start + bytes.len()) - start;
        legacy.update(&bytes[inside(LEGACY_RANGE.start)..inside(LEGACY_RANGE.end)]);
        if i > 0 {
            model.update(bytes);
        }
        start += bytes.len();
    }
    let hex = |hash: Sha256| hash.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>();
    [("sshs_model_hash".into(), hex(model)), ("sshs_legacy_hash".into(), hex(legacy)[..8].into())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SaveType;

    /// 3 MiB of 0, 1, 2, …: the expected digits are Python's, from the file that this writes.
    #[test]
    fn the_legacy_hash_is_of_the_second_mebibyte() {
        let values: Vec<f32> = (0..786_432u32).map(|i| i as f32).collect();
        let entries = [Entry::floats("w".into(), vec![786_432], &values, SaveType::F32)];
        let metadata = [("ss_a".to_owned(), "1".to_owned()), ("other".to_owned(), "2".to_owned())];
        let [model, legacy] = hashes(&metadata, &entries);
        assert_eq!(model.1, "3068f29259c4b8f07e931cf13e1a4bfe81bd0a3942d4266f3bbdf5e265b42f95");
        assert_eq!(legacy.1, "aa552e4e");
    }
}
