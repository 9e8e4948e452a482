//! One tensor of a file, mapped into memory on its own: its pages leave memory as soon as it has been read.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use half::{bf16, f16};
use memmap2::{Mmap, MmapOptions};
use safetensors::tensor::Dtype;
use tenggat_tensor::Element;
use tenggat_tensor::weight::{NextUse, Owner};

use crate::{Error, Result};

/// A tensor where it lies in its file.
#[derive(Debug)]
pub struct Stored {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) map: Mmap,
}

/// Maps part of a file.
pub(super) fn map_range(file: &File, from: usize, len: usize) -> std::io::Result<Mmap> {
    // SAFETY: the map is read only. A file that another process truncates meanwhile kills this one with
    // SIGBUS; checkpoints are replaced by renaming, never rewritten in place, so that does not happen to
    // a running job.
    unsafe { MmapOptions::new().offset(from as u64).len(len).map(file) }
}

impl Stored {
    /// Writes the elements of `range`, rounded to the type of `to`.
    ///
    /// # Errors
    /// The tensor's type is not a float, or the range is not as long as `to` or lies outside.
    pub fn read<T: Element>(&self, range: Range<usize>, to: &mut [T]) -> Result<()> {
        let size = match self.dtype {
            Dtype::BF16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
            other => {
                let reason =
                    format!("tensor `{}` has type {other:?}; expected BF16, F16, F32 or F64", self.name);
                return Err(Error::format(&self.path, reason));
            }
        };
        let bytes = self.map.get(range.start * size..range.end * size).filter(|_| range.len() == to.len());
        let Some(bytes) = bytes else {
            let reason = format!("tensor `{}` has no elements {range:?} for {} values", self.name, to.len());
            return Err(Error::format(&self.path, reason));
        };
        // Through f64 all conversions round once; the compiler folds those that widen and narrow again.
        match self.dtype {
            Dtype::BF16 => {
                convert(bytes, to, |b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))
            }
            Dtype::F16 => convert(bytes, to, |b| f64::from(f16::from_le_bytes(b).to_f32())),
            Dtype::F32 => convert(bytes, to, |b| f64::from(f32::from_le_bytes(b))),
            _ => convert(bytes, to, f64::from_le_bytes),
        }
        Ok(())
    }

    /// Elements of `range` as bf16, copied if they are stored so.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub fn read_bf16(&self, range: Range<usize>, to: &mut [bf16]) -> Result<()> {
        if let (Dtype::BF16, Some(bytes)) = (self.dtype, self.map.get(2 * range.start..2 * range.end))
            && range.len() == to.len()
        {
            to.iter_mut().zip(bytes.as_chunks().0).for_each(|(d, &b)| *d = bf16::from_le_bytes(b));
            return Ok(());
        }
        self.read(range, to)
    }
}

fn convert<const N: usize, T: Element>(bytes: &[u8], to: &mut [T], one: impl Fn([u8; N]) -> f64) {
    to.iter_mut().zip(bytes.as_chunks::<N>().0).for_each(|(d, &b)| *d = T::from_f64(one(b)));
}

impl Owner for Stored {
    /// Pages are read ahead, or leave memory until they are read again.
    fn prefetch(&self, next: NextUse) {
        #[cfg(unix)]
        {
            // Advice that is not taken costs speed or memory, and there is nothing to do about it.
            let _ = match next {
                NextUse::Soon => self.map.advise(memmap2::Advice::WillNeed),
                // SAFETY: the map is of a file and never written to: pages that are let go come back as they
                // were.
                NextUse::Later => unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) },
            };
        }
        #[cfg(not(unix))]
        let _ = next;
    }

    fn in_file(&self) -> bool {
        true
    }
}

impl AsRef<[u8]> for Stored {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Resident pages of files, bytes.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn pages_leave_memory_and_come_back() {
        const LEN: usize = 64 << 20;
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|i| (i / 4096 % 251) as u8).collect();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let map = map_range(&file, 4096 + 8, LEN - 4096 - 8).unwrap();
        let stored = Stored { path: "here".into(), name: "it".into(), dtype: Dtype::U8, map };
        assert_eq!(stored.as_ref(), &bytes[4096 + 8..]);
        let full = resident();
        stored.prefetch(NextUse::Later);
        let left = full.saturating_sub(resident());
        assert!(left > LEN as u64 / 2, "{left} bytes left memory");
        stored.prefetch(NextUse::Soon);
        assert_eq!(stored.as_ref(), &bytes[4096 + 8..]);
    }
}
