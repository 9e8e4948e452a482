//! Which file a latent was made from, by content: name, size and time may stay when the image does not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::kept::hex;
use crate::data::pictures;

/// Digests of files; those that cannot be read have none.
pub(super) fn digests<'a>(paths: impl Iterator<Item = &'a Path>) -> HashMap<&'a Path, String> {
    let mut paths: Vec<&Path> = paths.collect();
    paths.sort_unstable();
    paths.dedup();
    paths.into_par_iter().filter_map(|path| Some((path, digest(path)?))).collect()
}

fn digest(path: &Path) -> Option<String> {
    let mut file = pictures::open_file(path).ok()?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).ok()?;
    Some(hex(hash))
}

/// The pictures that were written after their cache files.
pub(super) fn younger(pictures: &[(&Path, PathBuf)]) -> Vec<PathBuf> {
    let time = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let is_younger = |(picture, cache): &&(&Path, PathBuf)| time(picture) > time(cache);
    pictures.iter().filter(is_younger).map(|(picture, _)| picture.to_path_buf()).collect()
}
