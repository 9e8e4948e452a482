//! A folder that looks like ai-toolkit's, with the stand-in of the crate `tenggat-drive` in it, and files for
//! it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

/// Makes `folder/ai-toolkit`.
pub fn toolkit(folder: &Path) -> PathBuf {
    let root = folder.join("ai-toolkit");
    fs::create_dir_all(root.join("toolkit")).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tenggat-drive/tests/stand_in/run.py");
    fs::copy(from, root.join("run.py")).unwrap();
    root
}

/// A program that says what Python with PyTorch says of itself.
pub fn python(folder: &Path, says: &str) -> PathBuf {
    let path = folder.join("python");
    fs::write(&path, format!("#!/bin/sh\n{says}\n")).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&path).status().unwrap().success());
    path
}

/// Writes a safetensors file of these tensors, all of them 0.5.
pub fn tensors(path: &Path, tensors: &[(&str, [usize; 2])]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, [rows, columns])| 0.5f32.to_le_bytes().repeat(rows * columns)).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    fs::write(path, serialize(views, Some(HashMap::new())).unwrap()).unwrap();
}
