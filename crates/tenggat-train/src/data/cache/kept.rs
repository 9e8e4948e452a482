//! What a cache file says of itself, and whether it is to be believed.

use std::io::Read;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

use crate::data::pictures;
use crate::files::tensor_file::{self, Entry};

/// Key of the encoder's name in the metadata.
pub(super) const ENCODER: &str = "tenggat_encoder";
/// Key of the digest of the file that was encoded.
pub(super) const SOURCE: &str = "tenggat_source";
/// Key of the digest of the tensors.
pub(super) const CHECKSUM: &str = "tenggat_checksum";

/// Why a cache file is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// There is none, or one of something else.
    Missing,
    /// It was made from another file.
    Changed,
    /// Its bytes are not those that were written.
    Damaged,
}

/// A cache file that fits.
pub(super) struct Kept {
    pub bytes: Vec<u8>,
    /// Whether tenggat wrote it, and so names what it was made from.
    pub is_ours: bool,
}

/// Reads a cache file that is whole, of these weights and, where it names a source, of this one.
///
/// # Errors
/// The file is to be made again.
pub(super) fn read(path: &Path, encoder: &str, source: Option<&str>) -> Result<Kept, Unfit> {
    let mut bytes = Vec::new();
    pictures::open_file(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|_| Unfit::Missing)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|_| Unfit::Damaged)?;
    let said = |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key));
    let is_ours = said(ENCODER).is_some();
    if said(ENCODER).is_some_and(|name| name != encoder) {
        return Err(Unfit::Missing);
    }
    if let Some(checksum) = said(CHECKSUM) {
        let tensors = SafeTensors::deserialize(&bytes).map_err(|_| Unfit::Damaged)?;
        if *checksum != checksum_of(&tensors) {
            return Err(Unfit::Damaged);
        }
    }
    match (said(SOURCE), source) {
        (Some(said), Some(source)) if said != source => Err(Unfit::Changed),
        // Of a version that did not name it.
        (None, Some(_)) if is_ours => Err(Unfit::Missing),
        _ => Ok(Kept { bytes, is_ours }),
    }
}

/// Values of a tensor in a cache file, and its shape; all of them numbers.
pub(super) fn values(tensors: &SafeTensors<'_>, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
    let view = tensors.tensor(name).ok()?;
    let values = tensor_file::floats(&view).ok()?;
    values.iter().all(|v| v.is_finite()).then(|| (view.shape().to_vec(), values))
}

/// Digest of tensors that are about to be written, in the order of the file.
pub(super) fn checksum(entries: &[Entry<'_>]) -> String {
    let mut hash = Sha256::new();
    for entry in entries {
        add(&mut hash, &entry.name, &format!("{} {:?}", entry.dtype, entry.shape), &entry.bytes);
    }
    hex(hash)
}

/// The same of tensors that were read.
fn checksum_of(tensors: &SafeTensors<'_>) -> String {
    let mut all: Vec<(String, TensorView<'_>)> = tensors.tensors();
    all.sort_by(|(a, x), (b, y)| y.dtype().cmp(&x.dtype()).then_with(|| a.cmp(b)));
    let mut hash = Sha256::new();
    for (name, view) in &all {
        add(&mut hash, name, &format!("{} {:?}", view.dtype(), view.shape()), view.data());
    }
    hex(hash)
}

fn add(hash: &mut Sha256, name: &str, kind: &str, bytes: &[u8]) {
    hash.update(format!("{name}\n{kind}\n"));
    hash.update(bytes);
}

/// The first 16 bytes of a digest in hexadecimal digits.
pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
