//! Whether a safetensors file is whole: header, sizes, and numbers that are numbers.
//!
//! Trainers write in place, so a file may be seen half written. A header that promises more bytes than are
//! there says so; the header itself is written first.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

/// Longest header that is read, as the format's own library allows.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes read at a time; a multiple of every type's size.
const CHUNK: usize = 1 << 20;

/// A whole file.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Steps that its metadata tell of, if they do: ai-toolkit's `training_info`, or kohya's and musubi's
    /// `ss_steps`.
    pub steps: Option<u64>,
    /// Its length in bytes.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: usize,
}

/// Why a file is not published.
#[derive(Debug, thiserror::Error)]
pub enum NotWhole {
    /// The system's reason.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Fewer or more bytes than its header tells: it is being written, or writing it was cut off.
    #[error("its header promises {promised} bytes, but the file has {found}")]
    Length {
        /// Bytes that the header asks for.
        promised: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// No safetensors header.
    #[error("it is not a safetensors file ({0})")]
    Header(String),
    /// No tensor at all.
    #[error("it holds no tensor")]
    Empty,
    /// A number that is none.
    #[error("tensor `{0}` holds numbers that are infinite or NaN")]
    NotFinite(String),
    /// It does not fit the model that it is for.
    #[error("{0}")]
    Unfit(String),
}

impl NotWhole {
    /// Whether the file may yet become whole.
    pub fn may_grow(&self) -> bool {
        matches!(self, NotWhole::Length { .. } | NotWhole::Header(_) | NotWhole::Io(_))
    }
}

#[derive(Deserialize)]
struct TrainingInfo {
    step: Option<u64>,
}

/// Steps that the metadata tell of.
fn steps(metadata: Option<&HashMap<String, String>>) -> Option<u64> {
    let metadata = metadata?;
    let info = metadata.get("training_info").and_then(|text| serde_json::from_str::<TrainingInfo>(text).ok());
    info.and_then(|info| info.step).or_else(|| metadata.get("ss_steps")?.parse().ok())
}

/// Reads the header alone and holds it against the length of the file.
///
/// # Errors
/// The file cannot be read, is no safetensors file, or has another length than its header tells.
pub fn peek(path: &Path) -> Result<Checked, NotWhole> {
    Ok(header(&mut File::open(path)?)?.0)
}

/// What the beginning of a file says: what is told of it, its bytes, and the tensors in the order of their
/// data.
pub(super) type Header = (Checked, Vec<u8>, Vec<(String, TensorInfo)>);

pub(super) fn header(file: &mut File) -> Result<Header, NotWhole> {
    let found = file.metadata()?.len();
    let mut first = [0; 8];
    file.read_exact(&mut first).map_err(|_| NotWhole::Length { promised: 8, found })?;
    let length = u64::from_le_bytes(first);
    if length > LONGEST_HEADER {
        return Err(NotWhole::Header(format!("a header of {length} bytes")));
    }
    if 8 + length > found {
        return Err(NotWhole::Length { promised: 8 + length, found });
    }
    let mut bytes = vec![0; 8 + length as usize];
    bytes[..8].copy_from_slice(&first);
    file.read_exact(&mut bytes[8..])?;
    let metadata: Metadata =
        serde_json::from_slice(&bytes[8..]).map_err(|e| NotWhole::Header(e.to_string()))?;
    let mut tensors: Vec<_> =
        metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let promised = 8 + length + tensors.last().map_or(0, |(_, info)| info.data_offsets.1 as u64);
    if promised != found {
        return Err(NotWhole::Length { promised, found });
    }
    if tensors.is_empty() {
        return Err(NotWhole::Empty);
    }
    let checked =
        Checked { steps: steps(metadata.metadata().as_ref()), bytes: found, tensors: tensors.len() };
    Ok((checked, bytes, tensors))
}

/// Checks a file to its last number.
///
/// # Errors
/// As [`peek`], and a tensor with numbers that are none.
pub fn check(path: &Path) -> Result<Checked, NotWhole> {
    check_into(path, &mut io::sink())
}

/// [`check`], writing what was checked to `out`: what is published is what was checked, byte for byte,
/// whatever the trainer does to its file in the meantime.
pub(super) fn check_into(path: &Path, out: &mut dyn Write) -> Result<Checked, NotWhole> {
    let mut file = File::open(path)?;
    let (checked, header, tensors) = header(&mut file)?;
    out.write_all(&header)?;
    let mut reader = BufReader::with_capacity(CHUNK, file);
    let mut buffer = vec![0; CHUNK];
    for (name, info) in tensors {
        let mut left = info.data_offsets.1 - info.data_offsets.0;
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK)];
            reader.read_exact(chunk)?;
            if !is_finite(info.dtype, chunk) {
                return Err(NotWhole::NotFinite(name));
            }
            out.write_all(chunk)?;
            left -= chunk.len();
        }
    }
    Ok(checked)
}

/// Whether all numbers of a type are finite; types without such numbers always are.
fn is_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
        Dtype::F64 => bytes.as_chunks().0.iter().all(|b| f64::from_le_bytes(*b).is_finite()),
        Dtype::BF16 => bytes.as_chunks().0.iter().all(|b| bf16::from_le_bytes(*b).is_finite()),
        Dtype::F16 => bytes.as_chunks().0.iter().all(|b| f16::from_le_bytes(*b).is_finite()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(values: &[f32], metadata: &str) -> Vec<u8> {
        let header = format!(
            r#"{{"__metadata__":{metadata},"a":{{"dtype":"F32","shape":[{}],"data_offsets":[0,{}]}}}}"#,
            values.len(),
            4 * values.len()
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        values.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        bytes
    }

    fn checked(bytes: &[u8]) -> Result<Checked, NotWhole> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, bytes).unwrap();
        check(&path)
    }

    #[test]
    fn steps_are_read_where_trainers_write_them() {
        let toolkit = file(&[1.0, 2.0], r#"{"training_info":"{\"step\": 31, \"epoch\": 2}"}"#);
        assert_eq!(checked(&toolkit).unwrap().steps, Some(31));
        let kohya = file(&[1.0], r#"{"ss_steps":"120","ss_epoch":"3"}"#);
        assert_eq!(checked(&kohya).unwrap().steps, Some(120));
        let other = checked(&file(&[1.0], r#"{"format":"pt"}"#)).unwrap();
        assert_eq!((other.steps, other.tensors), (None, 1));
    }

    #[test]
    fn every_cut_is_seen() {
        let whole = file(&[1.0, 2.0, 3.0], r#"{"format":"pt"}"#);
        for cut in 0..whole.len() {
            let error = checked(&whole[..cut]).unwrap_err();
            assert!(error.may_grow(), "{cut}: {error}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(matches!(checked(&longer), Err(NotWhole::Length { .. })));
    }

    #[test]
    fn numbers_that_are_none_are_seen_in_every_type() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = checked(&file(&[1.0, bad], "{}")).unwrap_err();
            assert!(matches!(&error, NotWhole::NotFinite(name) if name == "a") && !error.may_grow());
            assert!(!is_finite(Dtype::F64, &f64::from(bad).to_le_bytes()));
            assert!(!is_finite(Dtype::BF16, &bf16::from_f32(bad).to_le_bytes()));
            assert!(!is_finite(Dtype::F16, &f16::from_f32(bad).to_le_bytes()));
        }
        assert!(is_finite(Dtype::BF16, &bf16::MAX.to_le_bytes()));
        assert!(is_finite(Dtype::I64, &[0xff; 8]));
    }

    #[test]
    fn nonsense_is_no_file() {
        assert!(matches!(checked(b"not a tensor file, but long enough"), Err(NotWhole::Header(_))));
        let empty = b"{}";
        let mut bytes = (empty.len() as u64).to_le_bytes().to_vec();
        bytes.extend(empty);
        assert!(matches!(checked(&bytes), Err(NotWhole::Empty)));
    }
}
