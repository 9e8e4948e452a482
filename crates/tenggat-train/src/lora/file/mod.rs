//! LoRA files: ai-toolkit's keys and metadata out; in, every style that diffusers reads.
//!
//! A file is replaced as a whole or not at all. The same weights, job and step give the same bytes.

mod adapter;
mod header;
mod keys;
mod metadata;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::SafeTensors;
use tenggat_models::transformer::layer::{self, Family};

pub use adapter::{into_lora, start_from};
pub use header::Header;

use crate::files::tensor_file::{self, Entry};
use crate::job::Job;
use keys::Part;

/// Result of reading or writing a LoRA file.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A LoRA file that could not be written or makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("cannot {action} the LoRA {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The contents are not those of a LoRA, or not of this model.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A weight is infinite or not a number in the type that it is stored in.
    #[error("{} is not written: `{key}` is not finite as {dtype}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        key: String,
        /// Type in the file.
        dtype: safetensors::Dtype,
    },
    /// The weights could not be put on the device.
    #[error(transparent)]
    Tensor(#[from] tenggat_tensor::Error),
}

/// The matrices of one module: `y += B·(A·x)`, or `y += (W₁ ⊗ W₂)·x` with W₁ as `a` and W₂ as `b`.
#[derive(Debug, Clone, Copy)]
pub struct Module<'a> {
    /// Dotted name inside the transformer, `transformer_blocks.0.attn.to_q`.
    pub name: &'a str,
    /// Rank; 0 for Kronecker products.
    pub rank: usize,
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// `[l, q]` of a Kronecker product: W₁'s shape; W₂ is `[output / l, input / q]`.
    pub split: Option<[usize; 2]>,
    /// `[rank, input]`.
    pub a: &'a [f32],
    /// `[output, rank]`.
    pub b: &'a [f32],
}

/// What is written besides the weights.
#[derive(Debug, Clone, Copy)]
pub struct Info<'a> {
    /// Of the model that it was trained on.
    pub family: Family,
    /// Names, trigger word, metadata and type of the tensors.
    pub job: &'a Job,
    /// Updates in the weights.
    pub steps: u64,
    /// Whole passes through the pictures that they took.
    pub epoch: u64,
}

/// Writes a LoRA file, atomically.
///
/// Keys are `diffusion_model.<module>.lora_A.weight` and `….lora_B.weight`, with `transformer.` in front for
/// FLUX.1, without alpha: the scale is 1.
/// Those of Kronecker products are `….lokr_w1`, `….lokr_w2` and `….alpha`, whose 1 counts nothing where both
/// factors are whole (ai-toolkit writes 9999999999, which float16 cannot hold). Tensors are rounded to the
/// job's `save.dtype`. Source: ai-toolkit `toolkit/network_mixins.py`, `save_weights`.
///
/// # Errors
/// The file cannot be written, a matrix has not the length that its module says, or a weight is not finite:
/// such a file never replaces another.
pub fn save(path: &Path, modules: &[Module<'_>], info: &Info<'_>) -> Result<()> {
    let entries = entries(modules, info).map_err(|reason| Error::Format { path: path.into(), reason })?;
    if let Some(bad) = entries.par_iter().find_any(|entry| !entry.is_finite()) {
        let (path, key, dtype) = (path.into(), bad.name.clone(), bad.dtype);
        return Err(Error::NotFinite { path, key, dtype });
    }
    tensor_file::write(path, &metadata::of(info, &entries), &entries).map_err(|source| Error::File {
        action: "write",
        path: path.into(),
        source,
    })
}

fn entries(modules: &[Module<'_>], info: &Info<'_>) -> Result<Vec<Entry<'static>>, String> {
    let (dtype, prefix) = (info.job.save.dtype, info.family.lora_prefix());
    for m in modules {
        let [a, b] = shapes(m.rank, m.input, m.output, m.split).map(|[rows, columns]| rows * columns);
        if m.a.len() != a || m.b.len() != b {
            return Err(format!(
                "module `{}`: expected {a} and {b} values, got {} and {}",
                m.name,
                m.a.len(),
                m.b.len()
            ));
        }
    }
    let mut entries: Vec<Entry<'static>> = modules
        .par_iter()
        .flat_map_iter(|m| {
            let key = |part: &str| format!("{prefix}{}.{part}", m.name);
            let [a, b] = shapes(m.rank, m.input, m.output, m.split).map(|shape| shape.to_vec());
            if m.split.is_some() {
                let alpha = Entry::floats(key("alpha"), vec![], &[1.0], dtype);
                let (w1, w2) = (key("lokr_w1"), key("lokr_w2"));
                return vec![Entry::floats(w1, a, m.a, dtype), Entry::floats(w2, b, m.b, dtype), alpha];
            }
            let (low, high) = (key("lora_A.weight"), key("lora_B.weight"));
            vec![Entry::floats(low, a, m.a, dtype), Entry::floats(high, b, m.b, dtype)]
        })
        .collect();
    tensor_file::sort(&mut entries);
    Ok(entries)
}

/// Shapes of both matrices of a module.
fn shapes(rank: usize, input: usize, output: usize, split: Option<[usize; 2]>) -> [[usize; 2]; 2] {
    match split {
        None => [[rank, input], [output, rank]],
        Some([l, q]) => [[l, q], [output / l.max(1), input / q.max(1)]],
    }
}

impl LoraFile {
    /// Whether all weights are finite numbers.
    pub fn is_finite(&self) -> bool {
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        self.modules.iter().all(|module| finite(&module.a) && finite(&module.b))
    }
}

/// The matrices of one module as read.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Dotted name inside the transformer.
    pub name: String,
    /// Rank; 0 for Kronecker products.
    pub rank: usize,
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// `[l, q]` of a Kronecker product.
    pub split: Option<[usize; 2]>,
    /// `[rank, input]`, or W₁.
    pub a: Vec<f32>,
    /// `[output, rank]`, multiplied by alpha / rank where the file has an alpha; or W₂.
    pub b: Vec<f32>,
}

/// A LoRA file as read.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its modules, sorted by name; at least one.
    pub modules: Vec<Loaded>,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
}

impl LoraFile {
    /// The step that the metadata name, if they do.
    pub fn step(&self) -> Option<u64> {
        header::step(&self.metadata)
    }
}

/// Reads a LoRA file in any of these styles: keys with `diffusion_model.`, `transformer.`,
/// `base_model.model.` or no prefix and `lora_A`/`lora_B` or `lora_down`/`lora_up`; `lora_unet_…` with
/// underscores, also by the names of FLUX.1's original release; with or without `alpha`.
///
/// # Errors
/// The file cannot be read, is no whole safetensors file, has a tensor that belongs to no LoRA, a module that
/// lacks a half, or shapes that do not fit.
pub fn load(path: &Path) -> Result<LoraFile> {
    let bytes =
        std::fs::read(path).map_err(|source| Error::File { action: "read", path: path.into(), source })?;
    parse(&bytes, path).map_err(|reason| Error::Format { path: path.into(), reason })
}

#[derive(Default)]
struct Halves {
    a: Option<(Vec<usize>, Vec<f32>)>,
    b: Option<(Vec<usize>, Vec<f32>)>,
    alpha: Option<f32>,
    /// Whether the matrices are the factors of a Kronecker product.
    kronecker: bool,
}

fn parse(bytes: &[u8], path: &Path) -> Result<LoraFile, String> {
    let broken = |e| format!("not a whole safetensors file ({e}); write or fetch it again");
    let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    for (key, view) in tensors.tensors() {
        let (module, part) = keys::parse(&key).ok_or_else(|| {
            format!(
                "tensor `{key}` is not part of any LoRA that this version knows; is this another kind of \
                 file?"
            )
        })?;
        let values = tensor_file::floats(&view)
            .map_err(|dtype| format!("tensor `{key}` has type {dtype:?}; expected F16, BF16 or F32"))?;
        let own = halves.entry(module).or_default();
        own.kronecker |= matches!(part, Part::W1 | Part::W2);
        let twice = match part {
            Part::A | Part::W1 => own.a.replace((view.shape().to_vec(), values)).is_some(),
            Part::B | Part::W2 => own.b.replace((view.shape().to_vec(), values)).is_some(),
            Part::Alpha => match values[..] {
                [alpha] => own.alpha.replace(alpha).is_some(),
                _ => return Err(format!("tensor `{key}` has {} values; expected 1", values.len())),
            },
        };
        if twice {
            return Err(format!("tensor `{key}` is there in two naming styles; keep one"));
        }
    }
    let whole = halves.into_iter().map(|(name, own)| own.join(name)).collect::<Result<Vec<_>, String>>()?;
    let mut modules = whole.into_iter().map(split).collect::<Result<Vec<_>, String>>()?.concat();
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    if modules.is_empty() {
        return Err("it holds no LoRA".into());
    }
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok(LoraFile { path: path.into(), modules, metadata })
}

/// A module of FLUX.1's original release as the modules that diffusers has split it into: they share its A,
/// and each has its rows of B. Any other module as it is.
fn split(module: Loaded) -> Result<Vec<Loaded>, String> {
    let Some(parts) = layer::of_original_flux(&module.name) else { return Ok(vec![module]) };
    let shares: usize = parts.iter().map(|(_, share)| share).sum();
    let Loaded { name, rank, input, output, split, a, b } = module;
    if split.is_some() && parts.len() > 1 {
        return Err(format!("module `{name}`: a LoKr of fused layers cannot be split; train on split ones"));
    }
    if !output.is_multiple_of(shares) {
        return Err(format!(
            "module `{name}` has {output} outputs, which {shares} equal parts do not make up"
        ));
    }
    let mut from = 0;
    let part = |(name, share): (String, usize)| {
        let rows = output / shares * share;
        let to = from + rows * rank;
        // Of a LoKr, which is whole, all of B.
        let b = if split.is_some() { b.clone() } else { b[from..to].to_vec() };
        from = to;
        Loaded { name, rank, input, output: rows, split, a: a.clone(), b }
    };
    Ok(parts.into_iter().map(part).collect())
}

impl Halves {
    fn join(self, name: String) -> Result<Loaded, String> {
        let (Some((a_shape, a)), Some((b_shape, mut b))) = (self.a, self.b) else {
            return Err(format!("module `{name}` lacks its A or its B; is the file cut short?"));
        };
        let (&[rank, input], &[output, columns]) = (&a_shape[..], &b_shape[..]) else {
            return Err(format!(
                "module `{name}`: expected matrices, got shapes {a_shape:?} and {b_shape:?}"
            ));
        };
        if self.kronecker {
            // Both factors are whole, so that alpha counts nothing.
            let (l, q) = (rank, input);
            let sizes = q.checked_mul(columns).zip(l.checked_mul(output));
            let Some((input, output)) = sizes.filter(|&(input, output)| input > 0 && output > 0) else {
                return Err(format!("module `{name}`: no factors of a layer, {a_shape:?} and {b_shape:?}"));
            };
            return Ok(Loaded { name, rank: 0, input, output, split: Some([l, q]), a, b });
        }
        if rank != columns || rank == 0 {
            return Err(format!("module `{name}`: A {a_shape:?} and B {b_shape:?} do not share a rank"));
        }
        // A matrix without a value may claim any rank.
        if input == 0 || output == 0 {
            return Err(format!("module `{name}`: empty matrices, {a_shape:?} and {b_shape:?}"));
        }
        if let Some(alpha) = self.alpha {
            let scale = alpha / rank as f32;
            b.iter_mut().for_each(|v| *v *= scale);
        }
        Ok(Loaded { name, rank, input, output, split: None, a, b })
    }
}

#[cfg(test)]
mod tests;
