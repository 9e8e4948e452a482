//! A model folder: what is in it, and whether it is complete.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::weights::{Weights, read_json, shard_names};
use crate::{Error, Result};

/// Pipelines that can be trained, with their published repositories.
const PIPELINES: [(&str, &str); 1] = [("QwenImagePipeline", "Qwen/Qwen-Image, Qwen/Qwen-Image-2512")];

/// Repositories of other families, by how their names begin, in lower case.
const OTHERS: [(&str, &str); 13] = [
    ("qwen/qwen-image-edit", "Qwen-Image-Edit, which edits images"),
    ("qwen/qwen-image-layered", "Qwen-Image-Layered, which splits images into layers"),
    ("black-forest-labs/", "FLUX"),
    ("ostris/flex", "Flex"),
    ("lodestones/chroma", "Chroma"),
    ("stabilityai/", "Stable Diffusion"),
    ("runwayml/stable-diffusion", "Stable Diffusion"),
    ("tongyi-mai/", "Z-Image"),
    ("wan-ai/", "Wan"),
    ("hidream-ai/", "HiDream"),
    ("alpha-vllm/lumina", "Lumina"),
    ("omnigen2/", "OmniGen2"),
    ("lightricks/", "LTX"),
];

/// The family of a published model that is not Qwen-Image, as far as its repository's name tells. Of a
/// folder, [`ModelIndex::components`] tells for certain.
pub fn other_family(repository: &str) -> Option<&'static str> {
    let name = repository.to_lowercase();
    OTHERS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, family)| *family)
}

/// A part of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// Its folder, and its key in `model_index.json`.
    pub name: &'static str,
    /// Classes that it may be of.
    classes: &'static [&'static str],
    /// What it is made of.
    pub files: Files,
}

/// Files of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// `config.json`, and `<stem>.safetensors` or shards with `<stem>.safetensors.index.json`.
    Weights {
        /// Name of the weights without extension.
        stem: &'static str,
    },
    /// `vocab.json` and `merges.txt`, or `tokenizer.json`, with what belongs to them.
    Tokenizer,
    /// `scheduler_config.json`.
    Scheduler,
}

const COMPONENTS: [Component; 5] = [
    Component {
        name: "transformer",
        classes: &["QwenImageTransformer2DModel"],
        files: Files::Weights { stem: "diffusion_pytorch_model" },
    },
    Component {
        name: "vae",
        classes: &["AutoencoderKLQwenImage"],
        files: Files::Weights { stem: "diffusion_pytorch_model" },
    },
    Component {
        name: "text_encoder",
        classes: &["Qwen2_5_VLForConditionalGeneration"],
        files: Files::Weights { stem: "model" },
    },
    Component {
        name: "tokenizer",
        classes: &["Qwen2Tokenizer", "Qwen2TokenizerFast"],
        files: Files::Tokenizer,
    },
    Component { name: "scheduler", classes: &["FlowMatchEulerDiscreteScheduler"], files: Files::Scheduler },
];

/// `model_index.json`: the class of the pipeline and of its components.
#[derive(Debug)]
pub struct ModelIndex {
    path: PathBuf,
    entries: BTreeMap<String, Value>,
}

impl ModelIndex {
    /// Its name in a model folder.
    pub const FILE: &'static str = "model_index.json";

    /// Reads `<folder>/model_index.json`.
    ///
    /// # Errors
    /// The file is missing or malformed.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(Self::FILE);
        if !path.is_file() {
            let reason = if folder.is_dir() {
                "no model_index.json here; expected the folder of a diffusers model"
            } else {
                "no such folder"
            };
            return Err(Error::format(folder, reason));
        }
        Ok(ModelIndex { entries: read_json(&path)?, path })
    }

    /// The components, all of supported classes.
    ///
    /// # Errors
    /// The pipeline or a component is of another class, named in the message with those supported, or
    /// missing.
    pub fn components(&self) -> Result<[Component; 5]> {
        let refuse = |reason: String| Err(Error::format(&self.path, reason));
        let Some(pipeline) = self.entries.get("_class_name").and_then(Value::as_str) else {
            return refuse("`_class_name` is missing; expected the class of a diffusers pipeline".into());
        };
        if !PIPELINES.iter().any(|(class, _)| *class == pipeline) {
            let known = PIPELINES.map(|(class, repositories)| format!("{class} ({repositories})")).join(", ");
            return refuse(format!("architecture `{pipeline}` is not supported; supported: {known}"));
        }
        for component in &COMPONENTS {
            let name = component.name;
            // ["library", "class"]
            let class = self.entries.get(name).and_then(|entry| entry.get(1)?.as_str());
            let Some(class) = class else {
                return refuse(format!("component `{name}` is missing in this {pipeline}"));
            };
            if !component.classes.contains(&class) {
                let known = component.classes.join(" or ");
                return refuse(format!("`{name}` is a `{class}`, which is not supported; expected {known}"));
            }
        }
        Ok(COMPONENTS)
    }
}

/// Checks up front that a model folder is of a supported architecture and that every file is there and whole,
/// before any of it is loaded. Reads headers alone.
///
/// # Errors
/// The architecture is not supported; files are missing, all of them named; a weights file is truncated or
/// malformed.
pub fn check(folder: &Path) -> Result<()> {
    let components = ModelIndex::read(folder)?.components()?;
    let mut missing = Vec::new();
    for component in &components {
        let mut need = |names: &[&str]| {
            if !names.iter().any(|name| folder.join(component.name).join(name).is_file()) {
                missing.push(format!("{}/{}", component.name, names.join(" or ")));
            }
        };
        match component.files {
            Files::Weights { stem } => {
                need(&["config.json"]);
                let index = format!("{stem}.safetensors.index.json");
                let local = folder.join(component.name).join(&index);
                if local.is_file() {
                    shard_names(&local)?.iter().for_each(|shard| need(&[shard]));
                } else {
                    need(&[&format!("{stem}.safetensors"), &index]);
                }
            }
            Files::Tokenizer => {
                need(&["vocab.json", "tokenizer.json"]);
                if folder.join(component.name).join("vocab.json").is_file() {
                    need(&["merges.txt"]);
                }
            }
            Files::Scheduler => need(&["scheduler_config.json"]),
        }
    }
    if !missing.is_empty() {
        return Err(Error::format(
            folder,
            format!("missing: {}; is the download complete?", missing.join(", ")),
        ));
    }
    for component in &components {
        if let Files::Weights { .. } = component.files {
            Weights::open(&folder.join(component.name), component.classes[0])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with every file a model needs, of one small tensor each; the transformer in two shards.
    fn model() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        let index: BTreeMap<&str, Value> = COMPONENTS
            .iter()
            .map(|c| (c.name, serde_json::json!(["library", c.classes[0]])))
            .chain([("_class_name", "QwenImagePipeline".into())])
            .collect();
        write("model_index.json", &serde_json::to_vec(&index).unwrap());
        let weights = |name: &str| {
            let tensor =
                safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![4], &[1, 2, 3, 4]).unwrap();
            safetensors::serialize([(name, tensor)], None).unwrap()
        };
        for config in ["transformer/config.json", "vae/config.json", "text_encoder/config.json"] {
            write(config, b"{}");
        }
        let shards = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
        write("transformer/diffusion_pytorch_model.safetensors.index.json", shards.as_bytes());
        write("transformer/one.safetensors", &weights("a"));
        write("transformer/two.safetensors", &weights("b"));
        write("vae/diffusion_pytorch_model.safetensors", &weights("a"));
        write("text_encoder/model.safetensors", &weights("a"));
        for name in ["tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"] {
            write(name, b"{}");
        }
        folder
    }

    fn message(folder: &Path) -> String {
        check(folder).unwrap_err().to_string()
    }

    #[test]
    fn published_models_of_other_families_are_known_by_name() {
        for other in ["Qwen/Qwen-Image-Edit-2509", "black-forest-labs/FLUX.1-dev", "stabilityai/sdxl-turbo"] {
            assert!(other_family(other).is_some(), "{other}");
        }
        for own in
            ["Qwen/Qwen-Image", "Qwen/Qwen-Image-2512", "me/Qwen-Image-Edit-like", "models/black-forest-labs"]
        {
            assert_eq!(other_family(own), None, "{own}");
        }
    }

    #[test]
    fn names_every_missing_file() {
        let model = model();
        check(model.path()).unwrap();
        for file in ["transformer/two.safetensors", "tokenizer/merges.txt", "vae/config.json"] {
            std::fs::remove_file(model.path().join(file)).unwrap();
        }
        let text = message(model.path());
        for file in ["transformer/two.safetensors", "tokenizer/merges.txt", "vae/config.json"] {
            assert!(text.contains(file), "{text}");
        }
    }

    #[test]
    fn names_a_truncated_file() {
        let model = model();
        let shard = model.path().join("transformer/two.safetensors");
        let bytes = std::fs::read(&shard).unwrap();
        std::fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
        assert!(message(model.path()).contains("two.safetensors"));
    }

    #[test]
    fn names_an_unsupported_architecture_and_what_is_supported() {
        let model = model();
        let path = model.path().join("model_index.json");
        let index = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, index.replace("QwenImagePipeline", "StableDiffusionPipeline")).unwrap();
        let text = message(model.path());
        assert!(text.contains("StableDiffusionPipeline") && text.contains("Qwen/Qwen-Image"), "{text}");
        std::fs::write(&path, index.replace("AutoencoderKLQwenImage", "AutoencoderKLWan")).unwrap();
        let text = message(model.path());
        assert!(text.contains("AutoencoderKLWan") && text.contains("`vae`"), "{text}");
        std::fs::write(&path, index.replace("\"scheduler\"", "\"sampler\"")).unwrap();
        assert!(message(model.path()).contains("`scheduler` is missing"));
        std::fs::remove_file(&path).unwrap();
        assert!(message(model.path()).contains("model_index.json"));
        assert!(message(&model.path().join("none")).contains("no such folder"));
    }
}
