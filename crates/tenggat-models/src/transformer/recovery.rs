//! Accuracy recovery adapters: LoRAs or LoKrs trained to undo the damage of one quantised model.
//!
//! They are part of the frozen model: always on, in training and in sampling, added to the forward pass and
//! to the input gradient, and never given gradients. Files as ai-toolkit reads them
//! (`toolkit/util/quantize.py`): keys `diffusion_model.<module>.lora_A.weight` and `.lora_B.weight` (or
//! `transformer.` in front), or `.lokr_w1` and `.lokr_w2` under these names or
//! `lycoris_<module with underscores>`; strength 1 whatever rank or alpha. Only the modules in the file are
//! quantised.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use tenggat_tensor::ops::kronecker;
use tenggat_tensor::ops::linear::{self, Write};
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{DType, Device, Tensor, View, ViewMut};

use super::layer;
use crate::weights::{Matrix, Part, Weights};
use crate::{Error, Result};

const PREFIXES: [&str; 2] = ["diffusion_model.", "transformer."];
/// In front of names with underscores for dots.
const FLAT_PREFIX: &str = "lycoris_";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const W1: &str = ".lokr_w1";
const W2: &str = ".lokr_w2";
/// Without effect where both factors of a LoKr are whole.
const ALPHA: &str = ".alpha";

/// An opened adapter file.
#[derive(Debug)]
pub struct Recovery {
    path: PathBuf,
    weights: Weights,
    /// Module → its keys without what they end in, and whether they are a LoKr's.
    modules: BTreeMap<String, (String, bool)>,
}

impl Recovery {
    /// Opens an adapter file.
    ///
    /// # Errors
    /// It cannot be read, or is not a LoRA or LoKr of a diffusion transformer.
    pub fn open(path: &Path) -> Result<Self> {
        let weights = Weights::open_file(path, "accuracy recovery adapter")?;
        let mut modules = BTreeMap::new();
        for key in weights.names() {
            let ends = [A, B, W1, W2, ALPHA].into_iter();
            let parsed = ends.filter_map(|end| Some((key.strip_suffix(end)?, end))).next();
            match parsed.and_then(|(stem, end)| Some((module(stem)?, stem, end))) {
                Some((module, stem, A | W1)) => {
                    modules.insert(module, (stem.to_owned(), key.ends_with(W1)));
                }
                Some(_) => {}
                None => {
                    let why = format!(
                        "the key `{key}` is not that of a LoRA or LoKr on a diffusion transformer \
                         (`diffusion_model.<module>{A}`, `{FLAT_PREFIX}<module>{W1}`); other kinds of recovery \
                         adapters are not supported"
                    );
                    return Err(Error::format(path, why));
                }
            }
        }
        if modules.is_empty() {
            return Err(Error::format(path, "there is no LoRA or LoKr in it"));
        }
        Ok(Recovery { path: path.to_path_buf(), weights, modules })
    }

    /// Modules that it repairs.
    pub fn modules(&self) -> BTreeSet<String> {
        self.modules.keys().cloned().collect()
    }

    /// What it adds to a matrix.
    ///
    /// # Errors
    /// Its shapes do not fit the matrix, or it cannot be read.
    pub fn branch(&self, matrix: &Matrix, device: &Device) -> Result<Option<Branch>> {
        let mut members = Vec::new();
        for (part, columns) in matrix.placed() {
            if let Some((stem, is_lokr)) = self.modules.get(&part.module) {
                let factors = match is_lokr {
                    true => self.kronecker(stem, matrix, part, device)?,
                    false => self.low_rank(stem, matrix, part, device)?,
                };
                members.push(Member { columns, factors });
            }
        }
        Ok((!members.is_empty()).then_some(Branch { members }))
    }

    /// The factors A `[rank, in]` and B `[out, rank]` of one part of a fused matrix.
    ///
    /// # Errors
    /// A tensor is missing, or its shape does not fit the matrix.
    fn low_rank(&self, stem: &str, matrix: &Matrix, part: &Part, device: &Device) -> Result<Factors> {
        let name = |suffix: &str| format!("{stem}{suffix}");
        let [rank, _] = self.matrix_shape(&name(A))?;
        let a = self.weights.tensor(&name(A), &[rank, matrix.input], device, DType::BF16)?;
        let host = Device::cpu();
        let stored = self.weights.stored(&name(B), &[part.of, rank])?;
        let mut b = Tensor::empty(&host, DType::BF16, &[part.rows.len(), rank])?;
        stored.read_bf16(part.rows.start * rank..part.rows.end * rank, b.host_mut::<bf16>()?)?;
        Ok(Factors::LowRank { a: Weight::Dense(a), b: Weight::Dense(b.into_device(device)?) })
    }

    /// The factors W₁ and W₂ of one part of a fused matrix, `W₁ ⊗ W₂` of shape `[out, in]`.
    ///
    /// # Errors
    /// A tensor is missing, or its shape does not fit the matrix.
    fn kronecker(&self, stem: &str, matrix: &Matrix, part: &Part, device: &Device) -> Result<Factors> {
        let name = |suffix: &str| format!("{stem}{suffix}");
        let ([l, q], [k, n]) = (self.matrix_shape(&name(W1))?, self.matrix_shape(&name(W2))?);
        if [l * k, q * n] != [part.of, matrix.input] || part.rows != (0..part.of) {
            let (of, input) = (part.of, matrix.input);
            let why = format!(
                "`{stem}`: factors [{l}, {q}] and [{k}, {n}] are not those of a [{of}, {input}] matrix"
            );
            return Err(Error::format(&self.path, why));
        }
        let host = Device::cpu();
        let w1 = self.weights.tensor(&name(W1), &[l, q], &host, DType::BF16)?;
        let mut transposed = Tensor::empty(&host, DType::BF16, &[q, l])?;
        let from = w1.host::<bf16>()?;
        for (i, to) in transposed.host_mut::<bf16>()?.iter_mut().enumerate() {
            *to = from[i % l * q + i / l];
        }
        let w2 = self.weights.tensor(&name(W2), &[k, n], device, DType::BF16)?;
        let (w1, transposed) = (w1.into_device(device)?, transposed.into_device(device)?);
        Ok(Factors::Kronecker { w1, transposed, w2: Weight::Dense(w2) })
    }

    /// Rows and columns of a tensor of the file.
    ///
    /// # Errors
    /// It is missing, or has not two axes.
    fn matrix_shape(&self, name: &str) -> Result<[usize; 2]> {
        <[usize; 2]>::try_from(self.weights.shape(name)?)
            .map_err(|_| Error::format(&self.path, format!("`{name}` is not a matrix")))
    }
}

/// The dotted name of a module from that of its keys; `None` if it is in no style that we know.
fn module(stem: &str) -> Option<String> {
    if let Some(flat) = stem.strip_prefix(FLAT_PREFIX) {
        return layer::dotted(flat);
    }
    PREFIXES.into_iter().find_map(|prefix| stem.strip_prefix(prefix)).map(str::to_owned)
}

/// What a recovery adapter adds to one matrix.
#[derive(Debug)]
pub struct Branch {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    /// Outputs of the matrix that it adds to.
    columns: Range<usize>,
    factors: Factors,
}

#[derive(Debug)]
enum Factors {
    /// `B·A`.
    LowRank {
        /// `[rank, in]`.
        a: Weight,
        /// `[columns, rank]`.
        b: Weight,
    },
    /// `W₁ ⊗ W₂`.
    Kronecker {
        /// `[l, q]`.
        w1: Tensor,
        /// `[q, l]`.
        transposed: Tensor,
        /// `[k, n]`.
        w2: Weight,
    },
}

impl Branch {
    /// `y += B·(A·x)` or `y += (W₁ ⊗ W₂)·x`; x: `[m, in]` without gaps, y: `[m, out]`.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn forward(&self, x: View<'_>, mut y: ViewMut<'_>) -> Result<()> {
        for Member { columns, factors } in &self.members {
            let y = y.reborrow().columns(columns.clone());
            match factors {
                Factors::LowRank { a, b } => {
                    let mut ax = Tensor::empty(&x.device(), x.dtype(), &[x.rows(), a.shape()[0]])?;
                    linear::forward(x, a, None, ax.view_mut())?;
                    linear::accumulate(ax.view(), b, y)?;
                }
                Factors::Kronecker { w1, w2, .. } => {
                    // With x as X: [q, n], T = X·W₂ᵀ and Y += W₁·T.
                    let ([k, n], q) = (w2.shape(), w1.shape()[1]);
                    let mut t = Tensor::empty(&x.device(), x.dtype(), &[x.rows() * q, k])?;
                    linear::forward(x.rows_of(n)?, w2, None, t.view_mut())?;
                    kronecker::forward(1.0, w1.to_dtype(x.dtype())?.view(), t.view().rows_of(q * k)?, y)?;
                }
            }
        }
        Ok(())
    }

    /// `dx += Aᵀ·(Bᵀ·dy)` or `dx += (W₁ ⊗ W₂)ᵀ·dy`; dy: `[m, out]`, dx: `[m, in]` without gaps.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn backward(&self, dy: View<'_>, mut dx: ViewMut<'_>) -> Result<()> {
        for Member { columns, factors } in &self.members {
            let dy = dy.columns(columns.clone());
            match factors {
                Factors::LowRank { a, b } => {
                    let mut u = Tensor::empty(&dy.device(), dy.dtype(), &[dy.rows(), a.shape()[0]])?;
                    linear::backward(dy, b, Write::Replace, u.view_mut())?;
                    linear::backward(u.view(), a, Write::Add, dx.reborrow())?;
                }
                Factors::Kronecker { transposed, w2, .. } => {
                    // dT = W₁ᵀ·dY is the same op with W₁ transposed; dX += dT·W₂.
                    let ([k, n], q) = (w2.shape(), transposed.shape()[0]);
                    let mut dt = Tensor::zeros(&dy.device(), dy.dtype(), &[dy.rows(), q * k])?;
                    kronecker::forward(1.0, transposed.to_dtype(dy.dtype())?.view(), dy, dt.view_mut())?;
                    linear::backward(dt.view().rows_of(k)?, w2, Write::Add, dx.reborrow().rows_of(n)?)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        let tensor = |t: &Tensor| t.len() * t.dtype().bytes();
        let of = |member: &Member| match &member.factors {
            Factors::LowRank { a, b } => a.bytes() + b.bytes(),
            Factors::Kronecker { w1, transposed, w2 } => tensor(w1) + tensor(transposed) + w2.bytes(),
        };
        self.members.iter().map(of).sum()
    }
}
