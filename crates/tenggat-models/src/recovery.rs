//! Accuracy recovery adapters: LoRAs trained to undo the damage of one quantised model.
//!
//! They are part of the frozen model: always on, in training and in sampling, added to the forward pass and to the
//! input gradient, and never given gradients. File as ai-toolkit reads it (`toolkit/util/quantize.py`): keys
//! `diffusion_model.<module>.lora_A.weight` and `.lora_B.weight` (or `transformer.` in front), strength 1 whatever
//! the rank. Only the modules in the file are quantised.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use tenggat_tensor::ops::linear::{self, Weight, Write};
use tenggat_tensor::{DType, Device, Tensor, View, ViewMut};

use crate::weights::{Matrix, Part, Weights};
use crate::{Error, Result};

const PREFIXES: [&str; 2] = ["diffusion_model.", "transformer."];
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// An opened adapter file.
#[derive(Debug)]
pub struct Recovery {
    path: PathBuf,
    weights: Weights,
    /// Module → what stands before it in the file.
    modules: BTreeMap<String, &'static str>,
}

impl Recovery {
    /// Opens an adapter file.
    ///
    /// # Errors
    /// It cannot be read, or is not a LoRA of a diffusion transformer.
    pub fn open(path: &Path) -> Result<Self> {
        let weights = Weights::open_file(path, "accuracy recovery adapter")?;
        let mut modules = BTreeMap::new();
        for key in weights.names() {
            let prefix = PREFIXES.into_iter().find(|prefix| key.starts_with(prefix));
            let bare = prefix.map(|prefix| (prefix, &key[prefix.len()..]));
            match bare.and_then(|(prefix, bare)| Some((prefix, bare.strip_suffix(A)?))) {
                Some((prefix, module)) => {
                    modules.insert(module.to_string(), prefix);
                }
                None if bare.is_some_and(|(_, bare)| bare.ends_with(B)) => {}
                None => {
                    let why = format!(
                        "the key `{key}` is not that of a LoRA on a diffusion transformer \
                         (`diffusion_model.<module>{A}`); other kinds of recovery adapters are not supported"
                    );
                    return Err(Error::format(path, why));
                }
            }
        }
        if modules.is_empty() {
            return Err(Error::format(path, "there is no LoRA in it"));
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
            if let Some(prefix) = self.modules.get(&part.module) {
                members.push(self.member(prefix, matrix, part, columns, device)?);
            }
        }
        Ok((!members.is_empty()).then_some(Branch { members }))
    }

    fn member(
        &self,
        prefix: &str,
        matrix: &Matrix,
        part: &Part,
        columns: Range<usize>,
        device: &Device,
    ) -> Result<Member> {
        let name = |suffix: &str| format!("{prefix}{}{suffix}", part.module);
        let &[rank, _] = self.weights.shape(&name(A))? else {
            return Err(Error::format(&self.path, format!("`{}` is not a matrix", name(A))));
        };
        let a = self.weights.tensor(&name(A), &[rank, matrix.input], device, DType::BF16)?;
        let stored = self.weights.stored(&name(B), &[part.of, rank])?;
        let mut b = Tensor::empty(device, DType::BF16, &[part.rows.len(), rank])?;
        stored.read_bf16(part.rows.start * rank..part.rows.end * rank, b.host_mut::<bf16>()?)?;
        Ok(Member { columns, a: Weight::Dense(a), b: Weight::Dense(b) })
    }
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
    /// `[rank, in]`.
    a: Weight,
    /// `[columns, rank]`.
    b: Weight,
}

impl Branch {
    /// `y += B·(A·x)`; x: `[m, in]`, y: `[m, out]`.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn forward(&self, x: View<'_>, mut y: ViewMut<'_>) -> Result<()> {
        for Member { columns, a, b } in &self.members {
            let mut ax = Tensor::empty(&x.device(), x.dtype(), &[x.rows(), a.shape()[0]])?;
            linear::forward(x, a, None, ax.view_mut())?;
            linear::accumulate(ax.view(), b, y.reborrow().columns(columns.clone()))?;
        }
        Ok(())
    }

    /// `dx += Aᵀ·(Bᵀ·dy)`; dy: `[m, out]`, dx: `[m, in]`.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn backward(&self, dy: View<'_>, mut dx: ViewMut<'_>) -> Result<()> {
        for Member { columns, a, b } in &self.members {
            let mut u = Tensor::empty(&dy.device(), dy.dtype(), &[dy.rows(), a.shape()[0]])?;
            linear::backward(dy.columns(columns.clone()), b, Write::Replace, u.view_mut())?;
            linear::backward(u.view(), a, Write::Add, dx.reborrow())?;
        }
        Ok(())
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        self.members.iter().map(|m| m.a.bytes() + m.b.bytes()).sum()
    }
}
