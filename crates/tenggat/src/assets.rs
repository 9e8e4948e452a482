//! The built-in mini model and its pictures, unpacked once into the user's cache folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The files of `assets/mini` but for the scripts that made them.
#[cfg(feature = "mini")]
#[derive(rust_embed::Embed)]
#[folder = "../../assets/mini"]
#[exclude = "recipe/*"]
struct Mini;

/// Builds that are carried to a machine to be measured there leave the model out.
#[cfg(not(feature = "mini"))]
struct Mini;

#[cfg(not(feature = "mini"))]
impl Mini {
    fn iter() -> std::iter::Empty<std::borrow::Cow<'static, str>> {
        std::iter::empty()
    }

    fn get(_name: &str) -> Option<rust_embed::EmbeddedFile> {
        None
    }
}

/// Name of the built-in model wherever a model is named.
pub const MINI: &str = "mini";

/// The unpacked assets: `model/`, `demo-dataset/train/`, `demo-dataset/test/`.
pub fn mini() -> anyhow::Result<PathBuf> {
    anyhow::ensure!(
        cfg!(feature = "mini"),
        "this build has no built-in model: it was built without the feature `mini`"
    );
    let parent = cache_folder()?;
    let folder = parent.join(format!("mini-{}", fingerprint()));
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    // Unpacked beside and renamed, so that a folder of this name is always whole.
    let unpacked =
        tempfile::tempdir_in(&parent).with_context(|| format!("cannot write to {}", parent.display()))?;
    for name in Mini::iter() {
        if let Some(file) = Mini::get(&name) {
            let path = unpacked.path().join(&*name);
            let write = || {
                fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
                fs::write(&path, &file.data)
            };
            write().with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let unpacked = unpacked.keep();
    match fs::rename(&unpacked, &folder) {
        Ok(()) => Ok(folder),
        // Another process was faster.
        Err(_) if folder.is_dir() => {
            let _ = fs::remove_dir_all(&unpacked);
            Ok(folder)
        }
        Err(e) => Err(e).with_context(|| format!("cannot create {}", folder.display())),
    }
}

/// Where tenggat keeps what it can make again: `$TENGGAT_CACHE`, else `tenggat` in the user's cache folder.
pub fn cache_folder() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TENGGAT_CACHE") {
        return Ok(folder.into());
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let base = base.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    Ok(base.context("no home folder; set TENGGAT_CACHE to a folder that can be written")?.join("tenggat"))
}

/// Changes whenever an asset does.
fn fingerprint() -> String {
    let mut names: Vec<_> = Mini::iter().collect();
    names.sort();
    // FNV-1a over the files' own hashes; a name, not a seal.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for name in names {
        let digest = Mini::get(&name).map(|f| f.metadata.sha256_hash()).unwrap_or_default();
        for byte in name.bytes().chain(digest) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}
