//! Samples: prompts, their inline flags and defaults.

use super::resolver::{PROCESS, Resolver};
use crate::raw::{self, TextOrFlag};
use crate::values::{self, FirstRound, PictureFormat};
use crate::{Compat, Prompt, Sample, keys};

/// Qwen-Image needs sides divisible by this.
const SIDE: usize = 32;

impl Resolver<'_> {
    /// Samples as asked; without a `sample` section there are none.
    pub(super) fn sample(
        &mut self,
        raw: Option<raw::Sample>,
        train: &raw::Train,
        trigger: &Option<String>,
        compat: Compat,
    ) -> Sample {
        let at = |key: &str| format!("{PROCESS}.sample.{key}");
        let present = raw.is_some();
        let raw = raw.unwrap_or_default();
        let from_prompts = |prompts: &Vec<String>| -> Vec<raw::SampleItem> {
            prompts
                .iter()
                .map(|p| raw::SampleItem { prompt: Some(p.clone()), ..Default::default() })
                .collect()
        };
        let (key, items) = match &raw.samples {
            Some(items) => ("samples", items.clone()),
            None => ("prompts", raw.prompts.as_ref().map(from_prompts).unwrap_or_default()),
        };
        let mut prompts = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            prompts.push(self.prompt(&at(&format!("{key}[{i}]")), &raw, item, i, trigger, compat));
        }
        Sample {
            enabled: present && !prompts.is_empty() && train.disable_sampling != Some(true),
            every: raw.sample_every.unwrap_or(100),
            start_step: raw.sample_start_step.unwrap_or(0),
            first: match (train.skip_first_sample, train.force_first_sample) {
                (_, Some(true)) => FirstRound::Always,
                (Some(true), _) => FirstRound::Never,
                _ => FirstRound::AtStart,
            },
            format: self.choose(
                &at("format"),
                raw.format.as_deref(),
                values::PICTURE_FORMATS,
                PictureFormat::Jpeg,
            ),
            prompts,
        }
    }

    fn prompt(
        &mut self,
        path: &str,
        section: &raw::Sample,
        item: &raw::SampleItem,
        index: usize,
        trigger: &Option<String>,
        compat: Compat,
    ) -> Prompt {
        let walked = |seed: i64| match section.walk_seed {
            Some(true) if seed >= 0 => seed.saturating_add(index as i64),
            _ => seed,
        };
        let negative = match item.neg.as_ref().or(section.neg.as_ref()) {
            Some(TextOrFlag::Text(text)) => Some(text.clone()),
            // Upstream formats the missing value, False, into the template.
            _ if compat.negative_false => Some("False".into()),
            _ => None,
        };
        let mut prompt = Prompt {
            text: String::new(),
            negative,
            width: item.width.or(section.width).unwrap_or(512) as usize,
            height: item.height.or(section.height).unwrap_or(512) as usize,
            seed: u64::try_from(item.seed.unwrap_or_else(|| walked(section.seed.unwrap_or(0)))).ok(),
            guidance_scale: item.guidance_scale.or(section.guidance_scale).unwrap_or(7.0),
            steps: item.sample_steps.or(section.sample_steps).unwrap_or(20) as usize,
            strength: item.network_multiplier.or(section.network_multiplier).unwrap_or(1.0),
        };
        let written = item.prompt.clone().unwrap_or_default();
        let (text, flags) = match written.split_once("--") {
            Some((text, flags)) => (text.trim_end(), flags),
            None => (written.as_str(), ""),
        };
        for flag in flags.split("--").filter(|f| !f.trim().is_empty()) {
            self.flag(path, &mut prompt, flag.trim());
        }
        prompt.text = text.replace("[trigger]", trigger.as_deref().unwrap_or_default());
        prompt.width = prompt.width / SIDE * SIDE;
        prompt.height = prompt.height / SIDE * SIDE;
        prompt
    }

    /// One inline flag, `w 1024`. Source: ai-toolkit `toolkit/config_modules.py`, `_process_prompt_string`.
    fn flag(&mut self, path: &str, prompt: &mut Prompt, flag: &str) {
        let (name, value) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let value = value.trim();
        let done = match name {
            "w" | "width" => whole("width", value).map(|n| prompt.width = n),
            "h" | "height" => whole("height", value).map(|n| prompt.height = n),
            "d" | "seed" => value
                .parse::<i64>()
                .map(|seed| prompt.seed = u64::try_from(seed).ok())
                .map_err(|_| "expected a whole number".into()),
            "s" | "steps" => whole("sample_steps", value).map(|n| prompt.steps = n),
            "l" | "cfg" => real("guidance_scale", value).map(|x| prompt.guidance_scale = x),
            "m" | "network_multiplier" => real("network_multiplier", value).map(|x| prompt.strength = x),
            "n" | "neg" => {
                prompt.negative = Some(value.into());
                Ok(())
            }
            _ => {
                self.warn(path, format!("`--{name}` in a prompt has no effect"));
                Ok(())
            }
        };
        if let Err(message) = done {
            self.wrong(path, format!("`--{name} {value}`: {message}"));
        }
    }
}

/// The number of an inline flag, within what its key may be.
fn whole(key: &str, text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    in_range(key, number as f64)?;
    Ok(number)
}

/// As [`whole`], of a number with a fraction.
fn real(key: &str, text: &str) -> Result<f64, String> {
    in_range(key, text.parse().map_err(|_| "expected a number".to_owned())?)
}

fn in_range(key: &str, value: f64) -> Result<f64, String> {
    match keys::number(&format!("config.process[].sample.{key}")) {
        Some(range) => range.check(value),
        None => Err("this number has no range in the key tables".into()),
    }
}
