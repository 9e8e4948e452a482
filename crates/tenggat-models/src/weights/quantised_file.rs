//! A quantised model on disk: made once, mapped into memory ever after.
//!
//! A safetensors file with `<matrix>.codes` (U8, packed as in memory), `.scales` (BF16) and `.zero_points`
//! (U8) for every quantised matrix. Its name holds a digest of everything it depends on: the files it was
//! made from with their sizes and times of change, the format, and the recovery adapter.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tenggat_tensor::weight::{self, Bytes, Format, Parts, Quantised};

use super::{Checkpoint, Matrix, Weights};
use crate::{Error, Result};

/// Changes when the layout of packed codes or of the file does.
const VERSION: u32 = 1;
const NAMES: [&str; 3] = ["codes", "scales", "zero_points"];

/// Told how many bytes of how many are quantised.
pub type Progress<'a> = &'a dyn Fn(u64, u64);

/// An opened file of quantised matrices.
#[derive(Debug)]
pub struct QuantisedFile {
    weights: Weights,
}

impl QuantisedFile {
    /// Where the quantised form of a checkpoint lies in the folder `cache`.
    ///
    /// # Errors
    /// A file that it depends on cannot be looked at.
    pub fn path(cache: &Path, weights: &Weights, format: Format, recovery: Option<&Path>) -> Result<PathBuf> {
        let mut digest = Sha256::new();
        digest.update(format!("{VERSION} {format}\n"));
        for path in weights.paths().chain(recovery) {
            let path = fs::canonicalize(path).map_err(|e| Error::read(path, e))?;
            let about = fs::metadata(&path).map_err(|e| Error::read(&path, e))?;
            let changed =
                about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            digest.update(format!("{} {} {}\n", path.display(), about.len(), changed.as_nanos()));
        }
        let mut name = format!("{format}-");
        for byte in &digest.finalize()[..8] {
            let _ = write!(name, "{byte:02x}"); // writing to a String cannot fail
        }
        Ok(cache.join("quantised").join(name + ".safetensors"))
    }

    /// Opens a file that [`QuantisedFile::write`] has written.
    ///
    /// # Errors
    /// It is missing or not whole.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(QuantisedFile { weights: Weights::open_file(path, "quantised model")? })
    }

    /// Where it lies.
    pub fn file(&self) -> Option<&Path> {
        self.weights.paths().next()
    }

    /// Quantises the matrices that are to be quantised, one at a time, into a file that appears under its
    /// name only when it is whole.
    ///
    /// # Errors
    /// The checkpoint cannot be read, or the file cannot be written.
    pub fn write(path: &Path, from: &Checkpoint, matrices: &[Matrix], progress: Progress<'_>) -> Result<()> {
        let failed = |e: std::io::Error| Error::Write { path: path.to_path_buf(), source: e };
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        let chosen: Vec<(&Matrix, Format)> =
            matrices.iter().filter_map(|m| Some((m, from.format(m)?))).collect();
        let (header, total) = header(&chosen);
        {
            let mut out = BufWriter::new(temporary.as_file_mut());
            out.write_all(&header).map_err(failed)?;
            let mut done = 0;
            for (matrix, format) in chosen {
                progress(done, total);
                let parts = from.quantise(matrix, format)?;
                for bytes in [&parts.codes, &parts.scales, &parts.zero_points] {
                    out.write_all(bytes).map_err(failed)?;
                    done += bytes.len() as u64;
                }
            }
            out.flush().map_err(failed)?;
            progress(total, total);
        }
        temporary.as_file().sync_all().map_err(failed)?;
        temporary.persist(path).map_err(|e| failed(e.error))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    /// A matrix, mapped.
    ///
    /// # Errors
    /// It is not in the file.
    pub fn matrix(&self, matrix: &Matrix, format: Format) -> Result<Quantised> {
        let shape = [matrix.output(), matrix.input];
        let expected = arrays(matrix, format);
        let mapped = |i: usize| -> Result<Bytes> {
            let (name, _, shape) = &expected[i];
            let stored = Arc::new(self.weights.stored(name, shape)?);
            let all = 0..stored.map.len();
            Bytes::of(stored, all).ok_or_else(|| Error::Unsupported("an empty map".into()))
        };
        let zero_points = if format.has_zero_points() { mapped(2)? } else { Bytes::default() };
        let parts = Parts { codes: mapped(0)?, scales: mapped(1)?, zero_points };
        Ok(Quantised::new(format, shape, parts)?)
    }
}

/// Name, type and shape of the arrays of a matrix.
fn arrays(matrix: &Matrix, format: Format) -> [(String, Dtype, [usize; 2]); 3] {
    let (rows, groups) = (matrix.output(), format.groups(matrix.input));
    let zeros = if format.has_zero_points() { groups } else { 0 };
    let name = |i: usize| format!("{}.{}", matrix.key(), NAMES[i]);
    [
        (name(0), Dtype::U8, [rows, format.code_bytes(matrix.input)]),
        (name(1), Dtype::BF16, [rows, groups]),
        (name(2), Dtype::U8, [rows, zeros]),
    ]
}

/// The head of a safetensors file for these matrices, and the bytes that follow it.
fn header(matrices: &[(&Matrix, Format)]) -> (Vec<u8>, u64) {
    let mut entries = Map::new();
    entries.insert(
        "__metadata__".into(),
        json!({ "format": "tenggat quantised", "version": VERSION.to_string() }),
    );
    let mut at = 0usize;
    for (matrix, format) in matrices {
        let bytes = weight::part_bytes(*format, matrix.output(), matrix.input);
        for ((name, dtype, shape), len) in
            arrays(matrix, *format).into_iter().zip([bytes.codes, bytes.scales, bytes.zero_points])
        {
            if len == 0 {
                continue; // symmetric formats have no zero points
            }
            let dtype = if dtype == Dtype::BF16 { "BF16" } else { "U8" };
            entries.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + len] }));
            at += len;
        }
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    (header, at as u64)
}
