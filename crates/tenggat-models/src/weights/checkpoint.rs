//! A checkpoint as a source of weights: read tensor by tensor, quantised on the way if wanted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use half::bf16;
use tenggat_tensor::weight::{self, Bytes, Format, Parts, Quantised, Weight};
use tenggat_tensor::{DType, Device, Tensor};

use super::{Matrix, Part, Progress, QuantisedFile, Source, Weights};
use crate::{Interrupt, Result};

/// How matrices are quantised.
#[derive(Debug, Clone)]
pub struct Quantisation {
    /// Storage format.
    pub format: Format,
    /// File of an accuracy recovery adapter. With one, only the modules that it repairs are quantised.
    pub recovery: Option<PathBuf>,
    /// Folder that keeps quantised models, for the next time; without one they are held in memory.
    pub cache: Option<PathBuf>,
}

/// A checkpoint and how its weights are to be stored.
#[derive(Debug)]
pub struct Checkpoint {
    weights: Weights,
    device: Device,
    /// Put before every name.
    prefix: &'static str,
    /// Type of vectors.
    compute: DType,
    /// Type of matrices that are not quantised.
    dense: DType,
    quantised: Option<(Format, Modules)>,
    file: Option<QuantisedFile>,
    interrupt: Interrupt,
}

/// Which modules are quantised.
#[derive(Debug, Clone)]
pub enum Modules {
    /// All whose width the format allows.
    All,
    /// Those under any of these names.
    Under(&'static [&'static str]),
    /// Those that a recovery adapter repairs.
    Only(BTreeSet<String>),
}

/// Rows that are converted and quantised at once: bounds the memory beside the result to some MB.
const ROWS: usize = 512;

impl Checkpoint {
    /// A checkpoint whose matrices are read as `dense` and vectors as `compute`.
    pub fn new(
        weights: Weights,
        prefix: &'static str,
        device: &Device,
        compute: DType,
        dense: DType,
    ) -> Self {
        let (device, interrupt) = (device.clone(), Interrupt::default());
        Checkpoint { weights, device, prefix, compute, dense, quantised: None, file: None, interrupt }
    }

    /// The same; reading and quantising end with [`Error::Interrupted`](crate::Error::Interrupted) before the
    /// next matrix once that is asked for.
    #[must_use]
    pub fn interrupted_by(self, interrupt: &Interrupt) -> Self {
        Checkpoint { interrupt: interrupt.clone(), ..self }
    }

    /// The same with quantised matrices. If there is a folder to keep them in, `matrices` (all of the model)
    /// are taken from there, and made first if they are not there yet.
    ///
    /// # Errors
    /// The checkpoint cannot be read, or the folder cannot be written to.
    pub fn quantised(
        mut self,
        wanted: &Quantisation,
        modules: Modules,
        matrices: &[Matrix],
        progress: Progress<'_>,
    ) -> Result<Self> {
        self.quantised = Some((wanted.format, modules));
        if let Some(cache) = &wanted.cache {
            let path = QuantisedFile::path(cache, &self.weights, wanted.format, wanted.recovery.as_deref())?;
            if !path.is_file() {
                QuantisedFile::write(&path, &self, matrices, progress)?;
            }
            self.file = Some(QuantisedFile::open(&path)?);
        }
        Ok(self)
    }

    /// The file that keeps it quantised, if there is one.
    pub fn kept(&self) -> Option<&Path> {
        self.file.as_ref().and_then(QuantisedFile::file)
    }

    /// The format that a part is stored in, if it is quantised.
    fn format_of(&self, matrix: &Matrix, part: &Part) -> Option<Format> {
        let (format, modules) = self.quantised.as_ref()?;
        let chosen = match modules {
            Modules::All => true,
            Modules::Under(names) => names.iter().any(|name| part.module.starts_with(name)),
            Modules::Only(names) => names.contains(&part.module),
        };
        (chosen && format.fits(matrix.input)).then_some(*format)
    }

    /// The format of a matrix, if all of it is quantised.
    pub fn format(&self, matrix: &Matrix) -> Option<Format> {
        let mut formats = matrix.parts.iter().map(|part| self.format_of(matrix, part));
        formats.next().flatten().filter(|_| formats.all(|f| f.is_some()))
    }

    /// Quantises a matrix from the checkpoint, a few rows at a time.
    pub(super) fn quantise(&self, matrix: &Matrix, format: Format) -> Result<Parts<Vec<u8>>> {
        self.interrupt.check()?;
        let mut out = weight::part_bytes(format, matrix.output(), matrix.input).map(|n| vec![0u8; n]);
        for (part, to) in matrix.placed() {
            self.quantise_part(matrix, part, format, to.start, &mut out)?;
        }
        Ok(out)
    }

    fn quantise_part(
        &self,
        matrix: &Matrix,
        part: &Part,
        format: Format,
        to: usize,
        out: &mut Parts<Vec<u8>>,
    ) -> Result<()> {
        let stored = self.weights.stored(&self.weight_name(part), &[part.of, matrix.input])?;
        let mut rows = vec![bf16::ZERO; ROWS.min(part.rows.len()) * matrix.input];
        for from in part.rows.clone().step_by(ROWS) {
            let n = ROWS.min(part.rows.end - from);
            let rows = &mut rows[..n * matrix.input];
            stored.read_bf16(from * matrix.input..(from + n) * matrix.input, rows)?;
            let at = to + from - part.rows.start;
            let before = weight::part_bytes(format, at, matrix.input);
            let these = weight::part_bytes(format, n, matrix.input);
            let to = Parts {
                codes: &mut out.codes[before.codes..before.codes + these.codes],
                scales: &mut out.scales[before.scales..before.scales + these.scales],
                zero_points: &mut out.zero_points[before.zero_points..before.zero_points + these.zero_points],
            };
            weight::quantise_rows(format, rows, matrix.input, to)?;
        }
        Ok(())
    }

    fn weight_name(&self, part: &Part) -> String {
        format!("{}{}.weight", self.prefix, part.module)
    }

    /// A matrix in one dense type. Parts that are quantised hold the values that their codes stand for, which
    /// bf16 holds exactly.
    fn dense(&self, matrix: &Matrix) -> Result<Tensor> {
        let input = matrix.input;
        let host = super::folder::host(&self.device);
        let mut out = Tensor::empty(&host, self.dense, &[matrix.output(), input])?;
        for (part, to) in matrix.placed() {
            let (from, to) =
                (part.rows.start * input..part.rows.end * input, to.start * input..to.end * input);
            if let Some(format) = self.format_of(matrix, part) {
                let alone = Matrix { parts: vec![part.clone()], input };
                let parts = self.quantise(&alone, format)?.map(Bytes::from);
                let q = Quantised::new(format, [part.rows.len(), input], parts)?;
                let wide = q.dequantise(&host, self.dense)?;
                let n = wide.len();
                tenggat_tensor::ops::copy::forward(wide.matrix(0, 1, n)?, out.matrix_mut(to.start, 1, n)?)?;
                continue;
            }
            let stored = self.weights.stored(&self.weight_name(part), &[part.of, input])?;
            match self.dense {
                DType::BF16 => stored.read_bf16(from, &mut out.host_mut()?[to])?,
                DType::F32 => stored.read::<f32>(from, &mut out.host_mut()?[to])?,
                DType::F64 => stored.read::<f64>(from, &mut out.host_mut()?[to])?,
                DType::U8 => return Err(super::folder::no_weights(DType::U8)),
            }
        }
        Ok(out.into_device(&self.device)?)
    }
}

impl Source for Checkpoint {
    fn matrix(&self, matrix: &Matrix) -> Result<Weight> {
        self.interrupt.check()?;
        let Some(format) = self.format(matrix) else {
            return Ok(Weight::Dense(self.dense(matrix)?));
        };
        if let Some(file) = &self.file {
            return Ok(Weight::Quantised(file.matrix(matrix, format)?));
        }
        let parts = self.quantise(matrix, format)?.map(Bytes::from);
        Ok(Weight::Quantised(Quantised::new(format, [matrix.output(), matrix.input], parts)?))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix), &[len], &self.device, self.compute)
    }
}
