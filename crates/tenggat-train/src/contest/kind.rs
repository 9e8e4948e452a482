//! The kinds of model of the contest: what each is called, how long its tasks last, what its folder holds.
//! Source: gradients-ai/G.O.D, `docs/miner.md` and the image trainer's entry point, as of September 2026.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::container::{Roots, Task};

/// A kind of model, as `--model-type` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelType {
    /// FLUX.1.
    Flux,
    /// Z-Image and Z-Image-Turbo.
    ZImage,
    /// Qwen-Image.
    QwenImage,
    /// Ideogram 4.
    Ideogram4,
    /// Krea 2.
    Krea2,
}

/// Something that the training of a kind reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub what: &'static str,
    /// Where it should be: a folder or a file.
    pub path: PathBuf,
}

impl ModelType {
    /// All of them.
    pub const ALL: [ModelType; 5] =
        [ModelType::Flux, ModelType::ZImage, ModelType::QwenImage, ModelType::Ideogram4, ModelType::Krea2];

    /// As the contest writes it.
    pub fn name(self) -> &'static str {
        match self {
            ModelType::Flux => "flux",
            ModelType::ZImage => "z-image",
            ModelType::QwenImage => "qwen-image",
            ModelType::Ideogram4 => "ideogram4",
            ModelType::Krea2 => "krea2",
        }
    }

    /// ai-toolkit's name of the architecture. Source: its `extensions_built_in/diffusion_models`.
    pub fn arch(self) -> &'static str {
        match self {
            ModelType::Flux => "flux",
            ModelType::ZImage => "zimage",
            ModelType::QwenImage => "qwen_image",
            ModelType::Ideogram4 => "ideogram4",
            ModelType::Krea2 => "krea2",
        }
    }

    /// Whether this program's own engine trains it.
    pub fn is_ours(self) -> bool {
        self == ModelType::QwenImage
    }

    /// Hours that a task with so many pairs of picture and caption is given: ½ to 1 hour in quarters, and ½
    /// more for Qwen-Image. Source: `validator/tasks/synthetics/constants.py` and `diffusion.py`.
    pub fn hours(self, pairs: usize) -> f64 {
        let share = (pairs.clamp(10, 50) - 10) as f64 / 40.0;
        let quarters = (4.0 * (0.5 + 0.5 * share)).ceil();
        quarters / 4.0 + if self == ModelType::QwenImage { 0.5 } else { 0.0 }
    }

    /// The folder of the text encoder that lies beside the models, for those that bring none of their own.
    pub fn text_encoder(self, roots: &Roots) -> Option<PathBuf> {
        let name = match self {
            ModelType::Ideogram4 => "Qwen--Qwen3-VL-8B-Instruct",
            ModelType::Krea2 => "Qwen--Qwen3-VL-4B-Instruct",
            ModelType::Flux | ModelType::ZImage | ModelType::QwenImage => return None,
        };
        Some(roots.cache.join("hf_cache").join(name))
    }

    /// What must be there besides the model's own folder. For Krea 2 that is a file of weights as well; see
    /// [`ModelType::weights`].
    pub fn parts(self, model: &Path, roots: &Roots) -> Vec<Part> {
        let inside: &[(&'static str, &str)] = match self {
            ModelType::Flux => &[
                ("transformer", "transformer"),
                ("VAE", "vae"),
                ("first text encoder", "text_encoder"),
                ("second text encoder", "text_encoder_2"),
                ("first tokenizer", "tokenizer"),
                ("second tokenizer", "tokenizer_2"),
            ],
            ModelType::ZImage | ModelType::QwenImage => &[
                ("transformer", "transformer"),
                ("VAE", "vae"),
                ("text encoder", "text_encoder"),
                ("tokenizer", "tokenizer"),
            ],
            ModelType::Ideogram4 => &[("transformer", "transformer"), ("VAE", "vae")],
            ModelType::Krea2 => &[("VAE", "vae")],
        };
        let part = |(what, name): &(&'static str, &str)| Part { what, path: model.join(name) };
        let encoder = self.text_encoder(roots).map(|path| Part { what: "text encoder", path });
        inside.iter().map(part).chain(encoder).collect()
    }

    /// Where the transformer's weights lie: a folder of files, or one file among others. `None` if there is
    /// none, or no telling which.
    pub fn weights(self, model: &Path, task: &Task) -> Option<PathBuf> {
        if self != ModelType::Krea2 {
            return Some(model.join("transformer")).filter(|folder| folder.is_dir());
        }
        let files = std::fs::read_dir(model).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors")).collect();
        if files.len() < 2 {
            return files.pop();
        }
        // `krea/Krea-2-Raw` has `raw.safetensors`: ai-toolkit goes by the last part of the name, too.
        let variant = task.model.rsplit(['-', '/']).next().unwrap_or_default().to_lowercase();
        files.into_iter().find(|path| path.file_stem().is_some_and(|stem| *stem == *variant))
    }

    /// The adapter that Z-Image-Turbo is trained with, so that it stays a model of few steps.
    pub fn training_adapter(self, roots: &Roots, task: &Task) -> Option<PathBuf> {
        if !self.wants_adapter(task) {
            return None;
        }
        let entries = std::fs::read_dir(roots.cache.join("hf_cache")).into_iter().flatten().flatten();
        let is_it = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("zimage_turbo_training_adapter") && name.ends_with(".safetensors")
        };
        // The newest version by name.
        entries.map(|entry| entry.path()).filter(is_it).max()
    }

    /// Whether the model is a distilled one that is trained with an adapter.
    pub fn wants_adapter(self, task: &Task) -> bool {
        self == ModelType::ZImage && task.model.to_lowercase().contains("turbo")
    }
}

impl FromStr for ModelType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.to_lowercase().replace('_', "-");
        ModelType::ALL.into_iter().find(|kind| kind.name() == wanted).ok_or_else(|| {
            let names: Vec<&str> = ModelType::ALL.iter().map(|kind| kind.name()).collect();
            format!("`{text}` is not one of the contest's model types: {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_follow_the_rule() {
        let hours = |kind: ModelType| [1, 10, 11, 30, 31, 50, 99].map(|pairs| kind.hours(pairs));
        assert_eq!(hours(ModelType::Krea2), [0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0]);
        assert_eq!(hours(ModelType::QwenImage), [1.0, 1.0, 1.25, 1.25, 1.5, 1.5, 1.5]);
    }

    #[test]
    fn names_are_the_contests() {
        for kind in ModelType::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("Qwen_Image".parse(), Ok(ModelType::QwenImage));
        let message = "sdxl".parse::<ModelType>().unwrap_err();
        assert!(message.contains("`sdxl`") && message.contains("flux, z-image"), "{message}");
    }

    #[test]
    fn parts_lie_where_the_container_puts_them() {
        let root = tempfile::tempdir().unwrap();
        let roots = Roots { cache: root.path().into(), checkpoints: "/out".into() };
        let model = root.path().join("models/krea--Krea-2-Raw");
        let task = Task {
            id: "t1".into(),
            model: "krea/Krea-2-Raw".into(),
            dataset: String::new(),
            repository: "repo".into(),
        };
        let parts: Vec<PathBuf> =
            ModelType::Krea2.parts(&model, &roots).into_iter().map(|part| part.path).collect();
        assert_eq!(parts, [model.join("vae"), root.path().join("hf_cache/Qwen--Qwen3-VL-4B-Instruct")]);
        assert_eq!(ModelType::Krea2.weights(&model, &task), None);
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(model.join("any.safetensors"), "").unwrap();
        assert_eq!(ModelType::Krea2.weights(&model, &task), Some(model.join("any.safetensors")));
        std::fs::write(model.join("raw.safetensors"), "").unwrap();
        assert_eq!(ModelType::Krea2.weights(&model, &task), Some(model.join("raw.safetensors")));
        std::fs::remove_file(model.join("raw.safetensors")).unwrap();
        std::fs::write(model.join("other.safetensors"), "").unwrap();
        assert_eq!(ModelType::Krea2.weights(&model, &task), None, "no telling which");
        assert_eq!(ModelType::Flux.weights(&model, &task), None);
    }

    #[test]
    fn a_distilled_model_is_trained_with_its_adapter() {
        let root = tempfile::tempdir().unwrap();
        let roots = Roots { cache: root.path().into(), checkpoints: "/out".into() };
        let task = |model: &str| Task {
            id: "t1".into(),
            model: model.into(),
            dataset: String::new(),
            repository: "repo".into(),
        };
        std::fs::create_dir_all(root.path().join("hf_cache")).unwrap();
        let turbo = task("Tongyi-MAI/Z-Image-Turbo");
        assert_eq!(ModelType::ZImage.training_adapter(&roots, &turbo), None);
        for version in ["v1", "v2"] {
            let name = format!("hf_cache/zimage_turbo_training_adapter_{version}.safetensors");
            std::fs::write(root.path().join(name), "").unwrap();
        }
        let found = ModelType::ZImage.training_adapter(&roots, &turbo).unwrap();
        assert!(found.ends_with("zimage_turbo_training_adapter_v2.safetensors"));
        assert_eq!(ModelType::ZImage.training_adapter(&roots, &task("Tongyi-MAI/Z-Image")), None);
        assert_eq!(ModelType::Flux.training_adapter(&roots, &turbo), None);
    }
}
