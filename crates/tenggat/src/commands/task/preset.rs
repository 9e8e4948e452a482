//! The built-in jobs of the contest, and what is worked out to fill them in.

use std::path::Path;

use anyhow::Context;
use tenggat_train::contest::Split;
use tenggat_train::contest::container::Roots;
use tenggat_train::job::{Job, Warning};

use super::TaskArgs;
use crate::processor;

/// The job, unless another is given.
const PRESET: &str = include_str!("../../../../../assets/contest/task.yaml");
/// With fewer images than this, the learning rate falls no further; not measured.
const FEWEST_PICTURES: usize = 4;
/// Memory that a run takes beside the weights, bytes, and bytes of memory per byte of weights in files.
const BESIDE_WEIGHTS: f64 = 8e9;
const MEMORY_PER_FILE: f64 = 1.2;

/// Fills the preset in.
pub struct JobMaker<'a> {
    pub args: &'a TaskArgs,
    pub choices: Choices,
    pub model: &'a Path,
    pub side: usize,
    pub quantised: Option<String>,
}

impl JobMaker<'_> {
    /// The job for these pictures.
    ///
    /// # Errors
    /// The preset cannot be read, or makes no sense.
    pub fn job(&self, pictures: &Split) -> anyhow::Result<(Job, Vec<Warning>)> {
        let template = match &self.args.preset {
            None => PRESET.to_owned(),
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| format!("--preset {}", path.display()))?
            }
        };
        let path = self.args.preset.as_deref().unwrap_or(Path::new("task.yaml"));
        let variable = |name: &str| self.value(name, pictures);
        Ok(Job::from_str(&template, path, None, &variable)?)
    }

    /// Values of the preset's variables, quoted as YAML.
    fn value(&self, name: &str, pictures: &Split) -> Option<String> {
        let text = |text: &str| serde_json::to_string(text).ok();
        let choices = &self.choices;
        let trigger = self.args.trigger_word.as_deref().filter(|_| pictures.trigger_in_captions);
        let held_out = pictures.held_out.as_deref();
        match name {
            "MODEL" => text(&self.model.display().to_string()),
            "DATA" => text(&pictures.train.display().to_string()),
            "HELD_OUT" => text(&held_out.map_or(String::new(), |path| path.display().to_string())),
            "DELIVER" => text(if held_out.is_some() { "best" } else { "newest" }),
            "TRIGGER" => text(trigger.unwrap_or_default()),
            "SIDE" => Some(self.side.to_string()),
            "RANK" => Some(choices.rank.to_string()),
            "LR" => Some(format!("{:.1e}", choices.lr)),
            "LR_TIMES_STEPS" => {
                Some(choices.lr_times_steps.map_or("null".into(), |product| format!("{product:.3e}")))
            }
            "BATCH" => Some(choices.batch.to_string()),
            "EMPTY" => Some(self.args.weights.empty().to_string()),
            "WEIGHTS" => text(&self.args.weights.to_string()),
            "QUANTISE" => Some(self.quantised.is_some().to_string()),
            "QTYPE" => text(self.quantised.as_deref().unwrap_or("qfloat8")),
            other => std::env::var(other).ok(),
        }
    }
}

/// What the pictures decide.
pub struct Choices {
    pub rank: usize,
    pub batch: usize,
    pub lr: f64,
    /// Product of peak learning rate and steps, and for how many pictures it is meant.
    pub lr_times_steps: Option<f64>,
    pictures: Option<f64>,
}

impl Choices {
    /// Measured with 10 and with 24 pictures: docs/what-does-time-buy.md.
    pub const MINI: Self =
        Choices { rank: 64, batch: 4, lr: 2e-4, lr_times_steps: Some(0.1), pictures: Some(24.0) };
    /// The contest's own job of rank 32 and 3000 steps at 1e-4, kept in proportion; not measured.
    pub const QWEN_IMAGE: Self =
        Choices { rank: 32, batch: 1, lr: 1e-4, lr_times_steps: Some(0.3), pictures: None };

    /// Fewer images are memorised sooner. Very few count as [`FEWEST_PICTURES`]: below, nothing would be
    /// learnt.
    pub fn consider(&mut self, pictures: usize) {
        let pictures = pictures.max(FEWEST_PICTURES);
        let many = self.pictures.map_or(1.0, |usual| pictures as f64 / usual);
        let factor = many.min(many.powi(3));
        self.lr_times_steps = self.lr_times_steps.map(|product| product * factor);
        self.lr *= factor.min(1.0);
    }
}

/// How the weights must be quantised to fit this machine's memory, as `qtype`; `None` if they fit as they
/// are.
///
/// # Errors
/// None yet.
pub fn quantised(model: &Path, roots: &Roots) -> anyhow::Result<Option<String>> {
    let weights: u64 = ["transformer", "text_encoder", "vae"]
        .iter()
        .flat_map(|part| std::fs::read_dir(model.join(part)).into_iter().flatten().flatten())
        .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "safetensors"))
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .map(|file| file.len())
        .sum();
    let memory = processor::memory_bytes();
    if MEMORY_PER_FILE * weights as f64 + BESIDE_WEIGHTS <= memory || weights < 1 << 30 {
        return Ok(None);
    }
    Ok(Some(match roots.recovery_adapter() {
        Some(adapter) => format!("uint3|{}", adapter.display()),
        None => "qfloat8".into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_pictures_learn_more_slowly() {
        let product = |pictures| {
            let mut choices = Choices::MINI;
            choices.consider(pictures);
            (choices.lr_times_steps.unwrap() * 1e4).round() / 1e4
        };
        assert_eq!([12, 24, 48].map(product), [0.0125, 0.1, 0.2]);
        assert_eq!([1, 3, 4].map(product), [0.0005; 3]);
    }
}
