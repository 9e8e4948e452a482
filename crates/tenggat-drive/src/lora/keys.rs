//! Whether a LoRA fits the model that it is for: every key names a layer of the model, with its shape.
//!
//! Programs that load a LoRA pass over keys that they do not know; the timed contest refuses such a file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use super::check::{NotWhole, header};

/// Prefixes that trainers and checkpoints put before the names of layers.
const PREFIXES: [&str; 4] =
    ["model.diffusion_model.", "diffusion_model.", "transformer.", "base_model.model."];
/// Parts of the name of a layer that every family adapts.
const ATTENTION: [&str; 2] = ["attn", "attention"];
/// Most keys that a message names.
const NAMED: usize = 3;

/// Names and shapes of a model's layers, from the headers of its files.
#[derive(Debug, Clone, Default)]
pub struct ModelKeys {
    shapes: HashMap<String, Vec<usize>>,
}

/// Why a LoRA does not fit its model.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The file itself.
    #[error(transparent)]
    NotWhole(#[from] NotWhole),
    /// Keys without a layer.
    #[error(
        "{count} of its {all} keys fit no layer of the model, among them {}; programs that load it would leave them out",
        named.join(", ")
    )]
    Unmatched {
        /// How many.
        count: usize,
        /// Keys in the file.
        all: usize,
        /// Some of them, with what is wrong.
        named: Vec<String>,
    },
}

/// What a key of a LoRA belongs to.
enum Part {
    /// `[rank, input]`.
    Down,
    /// `[output, rank]`.
    Up,
    /// A number, or a factor whose shape says little.
    Other,
}

/// Endings of keys that trainers write.
const PARTS: [(&str, Part); 10] = [
    (".lora_A.weight", Part::Down),
    (".lora_down.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_up.weight", Part::Up),
    (".alpha", Part::Other),
    (".lokr_w1", Part::Other),
    (".lokr_w2", Part::Other),
    (".dora_scale", Part::Other),
    (".lora_magnitude_vector", Part::Other),
    (".diff_b", Part::Other),
];

impl ModelKeys {
    /// Reads the headers of a file of weights, or of all in a folder.
    ///
    /// # Errors
    /// The folder cannot be read, or a file is no whole safetensors file.
    pub fn read(weights: &Path) -> Result<ModelKeys, NotWhole> {
        let files = if weights.is_dir() { files(weights)? } else { vec![weights.to_path_buf()] };
        let mut shapes = HashMap::new();
        for path in files {
            let (_, _, tensors) = header(&mut File::open(path)?)?;
            for (name, info) in tensors {
                if let Some(layer) = bare(&name).strip_suffix(".weight") {
                    shapes.insert(layer.to_owned(), info.shape);
                }
            }
        }
        Ok(ModelKeys { shapes })
    }

    /// Layers known.
    pub fn len(&self) -> usize {
        self.shapes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// Holds every key of a LoRA against the layers.
    ///
    /// # Errors
    /// The file is not whole, or keys in it fit no layer.
    pub fn check(&self, lora: &Path) -> Result<(), Unfit> {
        let (_, _, tensors) = header(&mut File::open(lora).map_err(NotWhole::Io)?)?;
        let misfits: Vec<String> =
            tensors.iter().filter_map(|(key, info)| self.misfit(key, &info.shape)).collect();
        if misfits.is_empty() {
            return Ok(());
        }
        let (count, all) = (misfits.len(), tensors.len());
        Err(Unfit::Unmatched { count, all, named: misfits.into_iter().take(NAMED).collect() })
    }

    /// What is wrong with one key, if anything is.
    fn misfit(&self, key: &str, shape: &[usize]) -> Option<String> {
        let found = PARTS.iter().find_map(|(ending, part)| Some((key.strip_suffix(ending)?, part)));
        let Some((layer, part)) = found else { return Some(format!("`{key}` (no part of a LoRA)")) };
        let Some(weight) = self.shapes.get(bare(layer)) else { return Some(format!("`{key}`")) };
        let fits = match (part, weight.as_slice(), shape) {
            (Part::Down, [_, input, ..], [_, own, ..]) => input == own,
            (Part::Up, [output, ..], [own, ..]) => output == own,
            _ => true,
        };
        (!fits).then(|| format!("`{key}` of shape {shape:?} for a layer of shape {weight:?}"))
    }

    /// A LoRA of one layer that changes nothing, as bytes of a file; `None` if no layer is known that every
    /// loader adapts. A contest's scorer takes it for the bare model.
    pub fn unchanging(&self) -> Option<Vec<u8>> {
        let is_it = |(name, shape): &(&String, &Vec<usize>)| {
            let in_block = name.split('.').any(|part| part.parse::<u32>().is_ok());
            shape.len() == 2
                && shape.iter().all(|side| *side > 1)
                && in_block
                && ATTENTION.iter().any(|word| name.contains(word))
        };
        let (layer, shape) = self.shapes.iter().filter(is_it).min_by_key(|(name, _)| (name.len(), *name))?;
        let down: Vec<u8> = (0..shape[1]).flat_map(|_| 0.01f32.to_le_bytes()).collect();
        let up = vec![0; 4 * shape[0]];
        let tensors = [
            (format!("diffusion_model.{layer}.lora_A.weight"), vec![1, shape[1]], &down),
            (format!("diffusion_model.{layer}.lora_B.weight"), vec![shape[0], 1], &up),
        ];
        let views = tensors.iter().filter_map(|(name, shape, bytes)| {
            Some((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).ok()?))
        });
        let info = HashMap::from([("training_info".to_owned(), r#"{"step": 0, "epoch": 0}"#.to_owned())]);
        serialize(views, Some(info)).ok()
    }
}

/// A name without the prefixes that only say that a layer is the transformer's.
fn bare(name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// The files of weights in a folder.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of these tensors.
    fn file(folder: &Path, name: &str, tensors: &[(&str, &[usize])]) -> PathBuf {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
            (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        let path = folder.join(name);
        std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
        path
    }

    fn model(folder: &Path) -> ModelKeys {
        file(folder, "a.safetensors", &[("blocks.0.attn.wq.weight", &[6, 4]), ("first.bias", &[6])]);
        file(folder, "b.safetensors", &[("model.diffusion_model.blocks.0.mlp.up.weight", &[8, 4])]);
        ModelKeys::read(folder).unwrap()
    }

    #[test]
    fn every_key_needs_a_layer_of_its_shape() {
        let (folder, loras) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let model = model(folder.path());
        assert_eq!(model.len(), 2);
        let check = |tensors: &[(&str, &[usize])]| {
            model.check(&file(loras.path(), "lora.safetensors", tensors)).map_err(|e| e.to_string())
        };
        let down = ("diffusion_model.blocks.0.attn.wq.lora_A.weight", [2, 4].as_slice());
        let up = ("diffusion_model.blocks.0.attn.wq.lora_B.weight", [6, 2].as_slice());
        let other = ("transformer.blocks.0.mlp.up.lora_down.weight", [2, 4].as_slice());
        assert_eq!(check(&[down, up, other, ("transformer.blocks.0.mlp.up.alpha", &[1])]), Ok(()));
        for (tensor, said) in [
            (("diffusion_model.blocks.1.attn.wq.lora_A.weight", [2, 4].as_slice()), "blocks.1.attn.wq"),
            (("diffusion_model.blocks.0.attn.wq.lora_A.weight", [2, 6].as_slice()), "[2, 6]"),
            (("diffusion_model.blocks.0.attn.wq.lora_B.weight", [4, 2].as_slice()), "[6, 4]"),
            (("blocks.0.attn.wq.weight", [6, 4].as_slice()), "no part of a LoRA"),
        ] {
            let message = check(&[other, tensor]).unwrap_err();
            assert!(message.contains("1 of its 2 keys") && message.contains(said), "{message}");
        }
    }

    #[test]
    fn a_lora_that_changes_nothing_fits_its_model() {
        let (folder, loras) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let model = model(folder.path());
        let path = loras.path().join("bare.safetensors");
        std::fs::write(&path, model.unchanging().unwrap()).unwrap();
        model.check(&path).unwrap();
        let checked = crate::lora::check(&path).unwrap();
        assert_eq!((checked.steps, checked.tensors), (Some(0), 2));
        assert_eq!(ModelKeys::default().unchanging(), None);
    }

    #[test]
    fn weights_that_are_cut_off_are_no_model() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.safetensors"), "cut off").unwrap();
        assert!(ModelKeys::read(folder.path()).is_err());
        assert!(ModelKeys::read(&folder.path().join("none")).is_err());
    }
}
