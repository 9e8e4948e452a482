//! Latents and text embeddings kept on disk between runs, in ai-toolkit's places and format.
//!
//! The encoders are passed in as closures. A cache file that is missing, cut short, of another shape, not of
//! numbers, damaged, or made from another image or by other weights is made again. A folder that cannot be
//! written to costs time in the next run and is no error.
//!
//! ai-toolkit's files say neither which image nor which weights they were made from. They are read; where an
//! image is younger than such a file, the user is told.
//!
//! Upstream keeps one random sample of the VAE's posterior for each picture; we keep its mean. Files of
//! either kind are read.

mod kept;
mod latent;
mod name;
mod source;
mod text;
mod weights_name;

use std::io;
use std::path::{Path, PathBuf};

use kept::Unfit;
pub use latent::{Latent, latents};
pub use name::{latent_path, text_path};
pub use text::{Embedding, Request, texts};
pub use weights_name::weights_name;

use crate::files::tensor_file::{self, Entry};
use crate::job::SaveType;

/// How caches are kept.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Type of the values on disk. What is newly encoded is rounded alike, so that a second run is the same.
    pub dtype: SaveType,
    /// Names the weights of the encoder. Files that name other weights are made again; those of ai-toolkit
    /// name none and are taken.
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
    /// Files that were made anew because they are damaged.
    pub damaged: usize,
    /// Images that changed since their files were made.
    pub changed: Vec<PathBuf>,
    /// Pictures that are younger than their files, which do not say what they were made from.
    pub younger: Vec<PathBuf>,
    /// Images for which another program's embeddings exist but cannot be used, and why.
    pub misfits: Option<(usize, Misfit)>,
    /// The first file that could not be written; no other was tried after it.
    pub unwritten: Option<(PathBuf, io::Error)>,
}

/// Why existing embeddings are not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// They are of ai-toolkit's spelling of the same captions.
    Spaces,
    /// They are of other captions.
    Text,
}

impl Usage {
    /// Writes a file unless one has failed before.
    fn write(&mut self, path: &Path, metadata: &[(String, String)], mut entries: Vec<Entry<'_>>) {
        if self.unwritten.is_some() {
            return;
        }
        tensor_file::sort(&mut entries);
        let mut metadata = metadata.to_vec();
        metadata.push((kept::CHECKSUM.into(), kept::checksum(&entries)));
        if let Err(e) = tensor_file::write(path, &metadata, &entries) {
            self.unwritten = Some((path.into(), e));
        }
    }
}

/// Values as they come back from a file.
fn rounded(values: &mut [f32], dtype: SaveType) {
    match dtype {
        SaveType::F32 => {}
        SaveType::F16 => values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
        SaveType::Bf16 => values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
    }
}
