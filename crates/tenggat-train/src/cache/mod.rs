//! Latents and text embeddings kept on disk between runs, in ai-toolkit's places and format.
//!
//! The encoders are passed in as closures. A cache file that is missing, cut short, of another shape, not of numbers, or made by
//! other weights is made again. A folder that cannot be written to costs time in the next run and is no error.
//!
//! Upstream keeps one random sample of the VAE's posterior for each picture; we keep its mean. Files of either kind
//! are read.

mod latent;
mod name;
mod text;
mod weights_name;

use std::io;
use std::path::{Path, PathBuf};

pub use latent::{Latent, latents};
pub use name::{latent_path, text_path};
pub use text::{Embedding, Request, texts};
pub use weights_name::weights_name;

use crate::job::SaveType;
use crate::tensor_file::{self, Entry};

/// How caches are kept.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Type of the values on disk. What is newly encoded is rounded alike, so that a second run is the same.
    pub dtype: SaveType,
    /// Names the weights of the encoder. Files that name other weights are made again; those of ai-toolkit name none
    /// and are taken.
    pub encoder: &'a str,
    /// Most things encoded in one call.
    pub at_once: usize,
}

/// What became of the caches.
#[derive(Debug, Default)]
pub struct Usage {
    /// Taken from files.
    pub read: usize,
    /// Encoded.
    pub encoded: usize,
    /// The first file that could not be written; no other was tried after it.
    pub unwritten: Option<(PathBuf, io::Error)>,
}

/// Key of the encoder's name in the metadata.
const ENCODER: &str = "tenggat_encoder";

impl Usage {
    /// Writes a file unless one has failed before.
    fn write(&mut self, path: &Path, metadata: &[(String, String)], mut entries: Vec<Entry<'_>>) {
        if self.unwritten.is_some() {
            return;
        }
        tensor_file::sort(&mut entries);
        if let Err(e) = tensor_file::write(path, metadata, &entries) {
            self.unwritten = Some((path.into(), e));
        }
    }
}

/// Bytes of a cache file that is whole and not of other weights.
fn read(path: &Path, encoder: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).ok()?;
    let named = header.metadata().as_ref().and_then(|m| m.get(ENCODER));
    named.is_none_or(|name| name == encoder).then_some(bytes)
}

/// Values of a tensor in a cache file, and its shape; all of them numbers.
fn values(tensors: &safetensors::SafeTensors<'_>, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
    let view = tensors.tensor(name).ok()?;
    let values = tensor_file::floats(&view).ok()?;
    values.iter().all(|v| v.is_finite()).then(|| (view.shape().to_vec(), values))
}

/// Values as they come back from a file.
fn rounded(values: &mut [f32], dtype: SaveType) {
    match dtype {
        SaveType::F32 => {}
        SaveType::F16 => values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
        SaveType::Bf16 => values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
    }
}
