//! A folder of safetensors files, read tensor by tensor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use half::bf16;
use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use tenggat_tensor::{DType, Device, Tensor};

use super::read_json;
use super::stored::{Stored, map_range};
use crate::{Error, Result};

/// Weights of one component of a model folder.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    architecture: &'static str,
    files: Vec<Shard>,
    /// Tensor name → index into `files`.
    owner: HashMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data_start: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Files that a `.safetensors.index.json` lists, sorted, each once.
///
/// # Errors
/// The index is missing or malformed.
pub fn shard_names(index: &Path) -> Result<Vec<String>> {
    let listed: Index = read_json(index)?;
    let names: BTreeSet<String> = listed.weight_map.into_values().collect();
    Ok(names.into_iter().collect())
}

impl Weights {
    /// Opens `<folder>/<stem>.safetensors`, or the shards that `<stem>.safetensors.index.json` lists, for the
    /// first of the usual stems that exists. `architecture` names the model class in messages.
    ///
    /// # Errors
    /// There are no weights, a shard is missing or truncated, or a header is malformed.
    pub fn open(folder: &Path, architecture: &'static str) -> Result<Self> {
        for stem in ["diffusion_pytorch_model", "model"] {
            let index = folder.join(format!("{stem}.safetensors.index.json"));
            if index.is_file() {
                let paths = shard_names(&index)?.into_iter().map(|name| folder.join(name));
                return Self::from_files(folder, architecture, paths);
            }
            let single = folder.join(format!("{stem}.safetensors"));
            if single.is_file() {
                return Self::from_files(folder, architecture, [single]);
            }
        }
        Err(Error::format(
            folder,
            format!(
                "no weights of a {architecture} here: expected model.safetensors or \
                 diffusion_pytorch_model.safetensors, or shards with their .index.json"
            ),
        ))
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// The file is missing, truncated or malformed.
    pub fn open_file(path: &Path, architecture: &'static str) -> Result<Self> {
        Self::from_files(path, architecture, [path.to_path_buf()])
    }

    fn from_files(
        folder: &Path,
        architecture: &'static str,
        paths: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Self> {
        let files = paths.into_iter().map(Shard::open).collect::<Result<Vec<_>>>()?;
        let owner = files
            .iter()
            .enumerate()
            .flat_map(|(i, shard)| shard.metadata.tensors().into_keys().map(move |name| (name, i)))
            .collect();
        Ok(Weights { folder: folder.to_path_buf(), architecture, files, owner })
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.owner.contains_key(name)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.owner.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Shape of a tensor.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.find(name)?.1.shape)
    }

    /// Free-form metadata of the first file.
    pub fn metadata(&self) -> HashMap<String, String> {
        self.files.first().and_then(|f| f.metadata.metadata().clone()).unwrap_or_default()
    }

    /// A tensor on a device, rounded to `dtype`; its shape must be `shape`.
    ///
    /// # Errors
    /// There is none of this name, its shape differs, or its type is not a float.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device, dtype: DType) -> Result<Tensor> {
        let (shard, info) = self.find(name)?;
        shard.check_shape(name, info, shape)?;
        let mut out = Tensor::empty(&host(device), dtype, shape)?;
        let stored = shard.stored(name, info)?;
        match dtype {
            DType::F32 => stored.read::<f32>(0..out.len(), out.host_mut()?)?,
            DType::F64 => stored.read::<f64>(0..out.len(), out.host_mut()?)?,
            DType::BF16 => stored.read_bf16(0..out.len(), out.host_mut::<bf16>()?)?,
            DType::U8 => return Err(no_weights(dtype)),
        }
        Ok(out.into_device(device)?)
    }

    /// A tensor where it lies in its file; its shape must be `shape`.
    ///
    /// # Errors
    /// There is none of this name, its shape differs, or the file cannot be mapped.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let (shard, info) = self.find(name)?;
        shard.check_shape(name, info, shape)?;
        shard.stored(name, info)
    }

    /// The files that it was read from.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|shard| shard.path.as_path())
    }

    fn find(&self, name: &str) -> Result<(&Shard, &TensorInfo)> {
        let missing = || Error::MissingTensor {
            path: self.folder.clone(),
            name: name.into(),
            architecture: self.architecture,
        };
        let shard = &self.files[*self.owner.get(name).ok_or_else(missing)?];
        Ok((shard, shard.metadata.info(name).ok_or_else(missing)?))
    }
}

/// Where weights are read that go to a device.
pub(super) fn host(device: &Device) -> Device {
    match device {
        Device::Cpu(_) => device.clone(),
        Device::Cuda(_) => Device::cpu(),
    }
}

/// Weights are never read into this type.
pub(super) fn no_weights(dtype: DType) -> Error {
    tenggat_tensor::Error::DType { op: "read weights", dtype, device: "cpu" }.into()
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|e| Error::read(&path, e))?;
        // Of this map only the header's pages are touched; tensors are mapped one by one.
        // SAFETY: as in `map_range`.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::read(&path, e))?;
        let malformed = |reason: String| {
            Error::format(
                &path,
                format!("not a whole safetensors file ({reason}); delete it and fetch it again"),
            )
        };
        let (header, metadata) =
            safetensors::SafeTensors::read_metadata(&map).map_err(|e| malformed(e.to_string()))?;
        let data_start = header + 8;
        let end = metadata.tensors().values().map(|t| t.data_offsets.1).max().unwrap_or(0);
        if data_start + end > map.len() {
            return Err(malformed(format!("{} bytes, but its header needs {}", map.len(), data_start + end)));
        }
        drop(map);
        Ok(Shard { path, file, metadata, data_start })
    }

    fn check_shape(&self, name: &str, info: &TensorInfo, shape: &[usize]) -> Result<()> {
        if info.shape == shape {
            return Ok(());
        }
        Err(Error::TensorShape {
            path: self.path.clone(),
            name: name.into(),
            expected: shape.to_vec(),
            got: info.shape.clone(),
        })
    }

    fn stored(&self, name: &str, info: &TensorInfo) -> Result<Stored> {
        let (from, to) = info.data_offsets;
        let map = map_range(&self.file, self.data_start + from, to - from)
            .map_err(|e| Error::read(&self.path, e))?;
        Ok(Stored { path: self.path.clone(), name: name.into(), dtype: info.dtype, map })
    }
}
