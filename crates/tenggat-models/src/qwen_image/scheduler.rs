//! Noise levels of a sampling run: `FlowMatchEulerDiscreteScheduler` with the shift that grows with the
//! picture.
//!
//! Source: diffusers `schedulers/scheduling_flow_match_euler_discrete.py` (`set_timesteps`, `time_shift`,
//! `stretch_shift_to_terminal`) and `pipelines/qwenimage/pipeline_qwenimage.py` (`calculate_shift` and the
//! linear schedule that the pipeline passes in). Those run in f32; this runs in f64, 1e-7 apart.

use std::path::Path;

use serde::Deserialize;

use crate::weights::{dimension, read_json};
use crate::{Error, Result};

/// Turns a number of steps and a picture size into noise levels σ in 0..1.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduler {
    num_train_timesteps: usize,
    shift: Shift,
    /// Last σ before 0, reached by stretching the schedule.
    terminal: Option<f64>,
}

/// How the linear schedule is bent towards noise.
#[derive(Debug, Clone, PartialEq)]
enum Shift {
    /// The same for every picture: σ' = s·σ / (1 + (s − 1)·σ).
    Constant(f64),
    /// By μ, linear in the number of image tokens.
    Dynamic { base: (f64, f64), slope: f64, exponential: bool },
}

/// `scheduler_config.json` as it is written; a missing key has the default of the diffusers class.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    num_train_timesteps: Option<usize>,
    shift: Option<f64>,
    use_dynamic_shifting: Option<bool>,
    base_shift: Option<f64>,
    max_shift: Option<f64>,
    base_image_seq_len: Option<f64>,
    max_image_seq_len: Option<f64>,
    shift_terminal: Option<f64>,
    time_shift_type: Option<String>,
    invert_sigmas: Option<bool>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    stochastic_sampling: Option<bool>,
}

impl Scheduler {
    /// Reads `<folder>/scheduler_config.json`.
    ///
    /// # Errors
    /// The file is missing or malformed, names another scheduler class, or asks for a kind of schedule that
    /// is not supported; the message names the setting.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("scheduler_config.json");
        let raw: Raw = read_json(&path)?;
        Self::from_raw(raw).map_err(|reason| Error::format(path, reason))
    }

    fn from_raw(raw: Raw) -> Result<Self, String> {
        const CLASS: &str = "FlowMatchEulerDiscreteScheduler";
        if let Some(other) = raw.class_name.filter(|name| name != CLASS) {
            return Err(format!("scheduler class `{other}` is not supported; Qwen-Image uses `{CLASS}`"));
        }
        let unsupported = [
            ("use_karras_sigmas", raw.use_karras_sigmas),
            ("use_exponential_sigmas", raw.use_exponential_sigmas),
            ("use_beta_sigmas", raw.use_beta_sigmas),
            ("invert_sigmas", raw.invert_sigmas),
            ("stochastic_sampling", raw.stochastic_sampling),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, set)| *set == Some(true)) {
            return Err(format!("`{name}: true` is not supported; set it to false"));
        }
        let num_train_timesteps = raw.num_train_timesteps.unwrap_or(1000);
        // A table of that many numbers is made; published models have 1000.
        dimension("num_train_timesteps", num_train_timesteps, 2, 1_000_000)?;
        let shift = if raw.use_dynamic_shifting.unwrap_or(false) {
            let exponential = match raw.time_shift_type.as_deref() {
                None | Some("exponential") => true,
                Some("linear") => false,
                Some(other) => {
                    return Err(format!("`time_shift_type` is \"{other}\"; expected exponential or linear"));
                }
            };
            let (base_len, max_len) =
                (raw.base_image_seq_len.unwrap_or(256.0), raw.max_image_seq_len.unwrap_or(4096.0));
            let (base, max) = (raw.base_shift.unwrap_or(0.5), raw.max_shift.unwrap_or(1.15));
            if max_len <= base_len {
                return Err(format!(
                    "`max_image_seq_len` {max_len} is not above `base_image_seq_len` {base_len}"
                ));
            }
            Shift::Dynamic { base: (base_len, base), slope: (max - base) / (max_len - base_len), exponential }
        } else {
            Shift::Constant(raw.shift.unwrap_or(1.0))
        };
        if matches!(shift, Shift::Constant(s) if s.is_nan() || s <= 0.0) {
            return Err("`shift` is not a positive number".into());
        }
        // Zero counts as absent, as in the source.
        let terminal = raw.shift_terminal.filter(|&t| t != 0.0);
        if let Some(t) = terminal.filter(|t| !(0.0..1.0).contains(t)) {
            return Err(format!("`shift_terminal` is {t}; expected 0 to 1"));
        }
        Ok(Scheduler { num_train_timesteps, shift, terminal })
    }

    /// What σ = 1 is called on the timestep scale: 1000 for Qwen-Image.
    pub fn num_train_timesteps(&self) -> usize {
        self.num_train_timesteps
    }

    /// Shift parameter μ of an image of this many tokens (2×2 latent pixels, 16×16 image pixels); 0 if the
    /// shift does not depend on the picture.
    pub fn mu(&self, image_tokens: usize) -> f64 {
        match self.shift {
            Shift::Dynamic { base: (len, shift), slope, .. } => shift + slope * (image_tokens as f64 - len),
            Shift::Constant(_) => 0.0,
        }
    }

    /// Noise levels of a sampling run, falling: `steps + 1` numbers from 1 to 0. Step i goes from the i-th to
    /// the next.
    pub fn sigmas(&self, steps: usize, image_tokens: usize) -> Vec<f64> {
        let last = 1.0 / steps.max(1) as f64;
        let mut sigmas = linspace(1.0, last, steps);
        self.shift(&mut sigmas, image_tokens);
        sigmas.push(0.0);
        sigmas
    }

    /// Timesteps of a sampling run, `σ · num_train_timesteps`: `steps` numbers.
    pub fn timesteps(&self, steps: usize, image_tokens: usize) -> Vec<f64> {
        let scale = self.num_train_timesteps as f64;
        let mut sigmas = self.sigmas(steps, image_tokens);
        sigmas.truncate(steps);
        sigmas.into_iter().map(|sigma| sigma * scale).collect()
    }

    /// Every noise level that a model is trained at when training follows the sampling schedule:
    /// `num_train_timesteps` falling numbers.
    pub fn train_sigmas(&self, image_tokens: usize) -> Vec<f64> {
        let n = self.num_train_timesteps;
        let mut lowest = 1.0 / n as f64;
        if let Shift::Constant(s) = self.shift {
            // The source shifts once when it is built and takes the ends of its table from there.
            lowest = constant_shift(s, lowest);
        }
        let mut sigmas = linspace(1.0, lowest, n);
        self.shift(&mut sigmas, image_tokens);
        sigmas
    }

    /// Bends a falling linear schedule for an image of this many tokens, then stretches it to the terminal
    /// level.
    fn shift(&self, sigmas: &mut [f64], image_tokens: usize) {
        let mu = self.mu(image_tokens);
        for sigma in &mut *sigmas {
            *sigma = match self.shift {
                Shift::Constant(s) => constant_shift(s, *sigma),
                Shift::Dynamic { exponential, .. } => {
                    let weight = if exponential { mu.exp() } else { mu };
                    weight / (weight + (1.0 / *sigma - 1.0))
                }
            };
        }
        let (Some(terminal), Some(&last)) = (self.terminal, sigmas.last()) else { return };
        // A single step starts and ends at σ = 1, which no stretching moves; the source divides by zero
        // there.
        if last < 1.0 {
            let scale = (1.0 - terminal) / (1.0 - last);
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) * scale);
        }
    }
}

fn constant_shift(s: f64, sigma: f64) -> f64 {
    s * sigma / (1.0 + (s - 1.0) * sigma)
}

/// `n` evenly spaced numbers with both ends.
fn linspace(from: f64, to: f64, n: usize) -> Vec<f64> {
    let step = (to - from) / n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| if i > 0 && i + 1 == n { to } else { from + step * i as f64 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(json: &str) -> Result<Scheduler, String> {
        Scheduler::from_raw(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn refuses_other_schedules_by_name() {
        for setting in [
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "invert_sigmas",
            "stochastic_sampling",
        ] {
            let error = scheduler(&format!(r#"{{"{setting}": true}}"#)).unwrap_err();
            assert!(error.contains(setting), "{error}");
        }
        for (json, named) in [
            (r#"{"_class_name": "DDIMScheduler"}"#, "DDIMScheduler"),
            (r#"{"use_dynamic_shifting": true, "time_shift_type": "cubic"}"#, "cubic"),
            (r#"{"use_dynamic_shifting": true, "max_image_seq_len": 256}"#, "max_image_seq_len"),
            (r#"{"shift_terminal": 1.5}"#, "shift_terminal"),
            (r#"{"shift": -1.0}"#, "shift"),
            (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
            (r#"{"num_train_timesteps": 9007199254740993}"#, "num_train_timesteps"),
        ] {
            let error = scheduler(json).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn without_any_shift_the_schedule_is_linear() {
        let plain = scheduler(r#"{"shift_terminal": null}"#).unwrap();
        assert_eq!(plain.sigmas(4, 999), [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(plain.timesteps(4, 999), [1000.0, 750.0, 500.0, 250.0]);
    }

    /// σ' = e^μ/(e^μ + 1/σ − 1) with μ = ln 3 for every size (as in few-step checkpoints): 0.5 → 3/4.
    #[test]
    fn a_log_shift_of_three() {
        let json = r#"{"use_dynamic_shifting": true, "base_shift": 1.0986122886681098, "max_shift": 1.0986122886681098,
            "max_image_seq_len": 8192, "shift_terminal": null}"#;
        let sigmas = scheduler(json).unwrap().sigmas(2, 4096);
        assert!((sigmas[1] - 0.75).abs() < 1e-12, "{sigmas:?}");
        let linear = json.replace("{\"use", "{\"time_shift_type\": \"linear\", \"use");
        let expected = 1.0986122886681098 / (1.0986122886681098 + 1.0);
        assert!((scheduler(&linear).unwrap().sigmas(2, 4096)[1] - expected).abs() < 1e-12);
        // s·σ/(1 + (s − 1)σ) at s = 3 is the same curve.
        assert!((scheduler(r#"{"shift": 3.0}"#).unwrap().sigmas(2, 1)[1] - 0.75).abs() < 1e-12);
    }

    #[test]
    fn one_step_and_none_stay_finite() {
        let stretched = scheduler(r#"{"use_dynamic_shifting": true, "shift_terminal": 0.02}"#).unwrap();
        assert_eq!(stretched.sigmas(1, 256), [1.0, 0.0]);
        assert_eq!(stretched.sigmas(0, 256), [0.0]);
        assert!((stretched.sigmas(9, 256)[8] - 0.02).abs() < 1e-12);
    }

    /// The source takes the ends of its table from levels that are shifted already, and shifts the table once
    /// more: 1 to 3·¼/(1 + 2·¼) = ½ in four levels, each then 3σ/(1 + 2σ).
    #[test]
    fn levels_of_training_are_shifted_twice_by_a_constant() {
        let sigmas = scheduler(r#"{"shift": 3.0, "num_train_timesteps": 4}"#).unwrap().train_sigmas(999);
        let expected = [1.0, 2.5 / (8.0 / 3.0), 2.0 / (7.0 / 3.0), 0.75];
        assert_eq!(sigmas.len(), 4);
        assert!(sigmas.iter().zip(expected).all(|(got, sigma)| (got - sigma).abs() < 1e-12), "{sigmas:?}");
        // Without a shift they are multiples of 1/n, and a dynamic one bends those once.
        let plain = scheduler(r#"{"num_train_timesteps": 4}"#).unwrap();
        assert_eq!(plain.train_sigmas(999), [1.0, 0.75, 0.5, 0.25]);
        let json = r#"{"use_dynamic_shifting": true, "base_shift": 1.0986122886681098,
            "max_shift": 1.0986122886681098, "num_train_timesteps": 4}"#;
        let sigmas = scheduler(json).unwrap().train_sigmas(1024);
        let expected = [1.0, 2.25 / 2.5, 0.75, 0.75 / 1.5];
        assert!(sigmas.iter().zip(expected).all(|(got, sigma)| (got - sigma).abs() < 1e-12), "{sigmas:?}");
    }
}
