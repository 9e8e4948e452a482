//! Where a model argument lies on disk, and LoRA files for it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Context;
use tenggat_models::lora::Lora;
use tenggat_models::transformer::Transformer;
use tenggat_models::{Interrupt, hub, model_folder};
use tenggat_train::lora::file as lora_file;

use crate::assets;
use crate::output::Bar;

/// The folder of a model: `mini`, a local folder, or a hub repository, fetched with a progress bar. Its files
/// are checked before any is loaded.
pub fn locate(name_or_path: &str) -> anyhow::Result<PathBuf> {
    locate_unless(name_or_path, &Interrupt::default())
}

/// The same; a download ends once that is asked for.
pub fn locate_unless(name_or_path: &str, interrupt: &Interrupt) -> anyhow::Result<PathBuf> {
    if name_or_path == assets::MINI {
        return Ok(assets::mini()?.join("model"));
    }
    let folder = with_bar(|show| hub::locate(name_or_path, &options(interrupt), show))?;
    model_folder::check(&folder)?;
    Ok(folder)
}

/// A file given by its path, or as `org/name/file` of the hub, fetched with a progress bar; a download ends
/// once that is asked for.
pub fn locate_file(name: &str, interrupt: &Interrupt) -> anyhow::Result<PathBuf> {
    Ok(with_bar(|show| hub::locate_file(name, &options(interrupt), show))?)
}

fn options(interrupt: &Interrupt) -> hub::Options {
    hub::Options { interrupt: interrupt.clone(), ..hub::Options::from_env() }
}

fn with_bar<T>(
    fetch: impl FnOnce(hub::OnProgress<'_>) -> tenggat_models::Result<T>,
) -> tenggat_models::Result<T> {
    let bar: OnceLock<Bar> = OnceLock::new();
    let show = |progress: hub::Progress<'_>| {
        let bar = bar.get_or_init(|| Bar::new(0, "{bar:28} {bytes}/{total_bytes} {bytes_per_sec}  {msg}"));
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        bar.set_message(progress.file);
    };
    fetch(&show)
}

/// A LoRA file as an adapter of this model.
pub fn load_lora(path: &Path, model: &Transformer, strength: f64) -> anyhow::Result<Lora> {
    let file = lora_file::load(path)?;
    let mut lora = lora_file::into_lora(&file, model).with_context(|| path.display().to_string())?;
    lora.scale = strength;
    Ok(lora)
}
