//! All sections together, and how a key is found in them.

use super::key::{Key, Section};
use super::range::Range;
use super::{datasets, model, process, train};

/// Keys that name a file, a folder or a model.
pub(crate) const PATHS: &[&str] = &[
    "accuracy_recovery_adapter",
    "dataset_path",
    "folder_path",
    "held_out",
    "image_path",
    "log_dir",
    "mask_path",
    "name_or_path",
    "pretrained_lora_path",
    "training_folder",
];

/// Every section.
pub(crate) fn sections() -> impl Iterator<Item = &'static Section> {
    process::SECTIONS.iter().chain(datasets::SECTIONS).chain(train::SECTIONS).chain(model::SECTIONS)
}

/// The row of a key.
pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key> {
    sections().filter(|s| s.path == section).flat_map(|s| s.keys).find(|k| k.name == name)
}

/// What the numbers of a key may be, by its path: `config.process[].train.lr`, or an item of its list. `None`
/// if the key has no numbers.
pub(crate) fn number(path: &str) -> Option<Range> {
    let path = path.strip_suffix("[]").unwrap_or(path);
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    find(section, name)?.range
}
