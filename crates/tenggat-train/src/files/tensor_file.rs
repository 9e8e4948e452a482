//! Writing safetensors files: the same tensors and metadata give the same bytes, which the library's own
//! writer does not promise (its metadata are a hash map).
//!
//! Format: 8 bytes of header length, the header (JSON, padded with spaces to a multiple of 8), the tensors.
//! Source: safetensors README, section "Format"; tensors lie sorted by type, then by name, as the library has
//! them.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::files::atomic;
use crate::job::SaveType;

/// A tensor to be written.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian values.
    pub bytes: Cow<'a, [u8]>,
}

impl Entry<'_> {
    /// A tensor of floats, rounded to the nearest value of `dtype`, ties to even.
    pub fn floats(name: String, shape: Vec<usize>, values: &[f32], dtype: SaveType) -> Self {
        let (dtype, bytes): (_, Vec<u8>) = match dtype {
            SaveType::F32 => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            SaveType::F16 => {
                let mut rounded = vec![f16::ZERO; values.len()];
                rounded.convert_from_f32_slice(values);
                (Dtype::F16, rounded.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            SaveType::Bf16 => {
                let mut rounded = vec![bf16::ZERO; values.len()];
                rounded.convert_from_f32_slice(values);
                (Dtype::BF16, rounded.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        };
        Entry { name, dtype, shape, bytes: bytes.into() }
    }

    /// Whether all values are finite numbers in the type that they are stored in; integers are.
    pub fn is_finite(&self) -> bool {
        // Without an early end, so that the loop is vectorised: almost every tensor is read to its end.
        fn all<const N: usize>(bytes: &[u8], is_finite: impl Fn([u8; N]) -> bool) -> bool {
            bytes.as_chunks::<N>().0.iter().fold(true, |all, &value| all & is_finite(value))
        }
        match self.dtype {
            Dtype::F64 => all(&self.bytes, |b| f64::from_le_bytes(b).is_finite()),
            Dtype::F32 => all(&self.bytes, |b| f32::from_le_bytes(b).is_finite()),
            Dtype::F16 => all(&self.bytes, |b| f16::from_le_bytes(b).is_finite()),
            Dtype::BF16 => all(&self.bytes, |b| bf16::from_le_bytes(b).is_finite()),
            _ => true,
        }
    }
}

/// Puts tensors in the order of the file.
pub(crate) fn sort(entries: &mut [Entry<'_>]) {
    entries.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
}

/// Header with its length before it, for sorted tensors.
pub(crate) fn header(metadata: &[(String, String)], entries: &[Entry<'_>]) -> Vec<u8> {
    let mut fields = Map::new();
    let texts: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
    fields.insert("__metadata__".into(), texts.into());
    let mut offset = 0;
    for entry in entries {
        let end = offset + entry.bytes.len();
        let info = json!({
            "dtype": entry.dtype.to_string(),
            "shape": entry.shape,
            "data_offsets": [offset, end],
        });
        fields.insert(entry.name.clone(), info);
        offset = end;
    }
    let mut text = Value::Object(fields).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    bytes
}

/// Writes sorted tensors, atomically.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(path: &Path, metadata: &[(String, String)], entries: &[Entry<'_>]) -> io::Result<()> {
    atomic::write_with(path, |file| put(file, metadata, entries))
}

/// As [`write`], and keeps the file that it replaces under the name `previous`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_keeping(
    path: &Path,
    previous: &Path,
    metadata: &[(String, String)],
    entries: &[Entry<'_>],
) -> io::Result<()> {
    atomic::write_keeping(path, previous, |file| put(file, metadata, entries))
}

fn put(file: &mut dyn Write, metadata: &[(String, String)], entries: &[Entry<'_>]) -> io::Result<()> {
    file.write_all(&header(metadata, entries))?;
    entries.iter().try_for_each(|entry| file.write_all(&entry.bytes))
}

/// Values of a float tensor.
///
/// # Errors
/// The type is no float; its name is returned.
pub(crate) fn floats(view: &safetensors::tensor::TensorView<'_>) -> Result<Vec<f32>, Dtype> {
    fn convert<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|&b| one(b)).collect()
    }
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => Ok(convert(bytes, f32::from_le_bytes)),
        Dtype::F16 => Ok(convert(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Ok(convert(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => Ok(convert(bytes, |b| f64::from_le_bytes(b) as f32)),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_overflow_their_type_are_not_finite() {
        use SaveType::{Bf16, F16, F32};
        let is_finite =
            |value, dtype| Entry::floats("a".into(), vec![3], &[1.0, value, -2.0], dtype).is_finite();
        for dtype in [F16, Bf16, F32] {
            assert!(is_finite(65504.0, dtype));
            assert!([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].iter().all(|&bad| !is_finite(bad, dtype)));
        }
        assert!(!is_finite(65520.0, F16) && is_finite(65520.0, Bf16));
        assert!(!is_finite(f32::MAX, Bf16) && is_finite(f32::MAX, F32));
        let integers =
            Entry { name: String::new(), dtype: Dtype::U8, shape: vec![1], bytes: vec![255].into() };
        assert!(integers.is_finite());
    }

    #[test]
    fn files_are_read_back_and_equal_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let mut entries = vec![
            Entry::floats("b".into(), vec![2], &[1.0, -2.5], SaveType::F16),
            Entry::floats("a".into(), vec![1, 3], &[0.1, 1e30, f32::MIN_POSITIVE], SaveType::F32),
            Entry::floats("c".into(), vec![1], &[1.0 + 1.0 / 128.0 / 2.0], SaveType::Bf16),
        ];
        sort(&mut entries);
        let metadata: Vec<(String, String)> =
            (0..20).map(|i| (format!("key {i}"), format!("välue \"{i}\""))).collect();
        let paths = [folder.path().join("x"), folder.path().join("y")];
        paths.iter().for_each(|path| write(path, &metadata, &entries).unwrap());
        let bytes = std::fs::read(&paths[0]).unwrap();
        assert_eq!(bytes, std::fs::read(&paths[1]).unwrap());
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(floats(&read.tensor("a").unwrap()).unwrap(), [0.1, 1e30, f32::MIN_POSITIVE]);
        assert_eq!(floats(&read.tensor("b").unwrap()).unwrap(), [1.0, -2.5]);
        // Half way between two bf16 values: the even one.
        assert_eq!(floats(&read.tensor("c").unwrap()).unwrap(), [1.0]);
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["key 7"], "välue \"7\"");
    }
}
