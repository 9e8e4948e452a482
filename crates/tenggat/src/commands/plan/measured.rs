//! Speeds that the user's own logs show, kept in the cache folder in the form of the table of reports.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use tenggat_plan::Report;
use tenggat_train::files::atomic;

use crate::assets;

/// File of the measured speeds.
fn file() -> anyhow::Result<PathBuf> {
    Ok(assets::cache_folder()?.join("measured-speeds.csv"))
}

/// The measured speeds; none if there are none. A file that cannot be read is warned of and left alone.
pub fn known() -> Vec<Report> {
    let Ok(path) = file() else { return Vec::new() };
    let Ok(text) = fs::read_to_string(&path) else { return Vec::new() };
    Report::read_all(&text).unwrap_or_else(|e| {
        tracing::warn!("{}: {e}; measured speeds are not used", path.display());
        Vec::new()
    })
}

/// Keeps measured speeds, in place of those of the same name, and returns the file.
///
/// # Errors
/// The file cannot be written, or an existing one cannot be read.
pub fn keep(new: &[Report]) -> anyhow::Result<PathBuf> {
    let path = file()?;
    let old = match fs::read_to_string(&path) {
        Ok(text) => Report::read_all(&text)
            .with_context(|| format!("cannot parse {}; fix or remove it", path.display()))?,
        Err(_) => Vec::new(),
    };
    let is_new = |report: &Report| new.iter().any(|other| other.row.id == report.row.id);
    let all: Vec<Report> =
        old.into_iter().filter(|report| !is_new(report)).chain(new.iter().cloned()).collect();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    atomic::write(&path, Report::write_all(&all).as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
