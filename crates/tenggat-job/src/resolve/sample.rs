//! Samples: prompts, their inline flags and defaults.

use super::super::raw::TextOrFlag;
use super::super::types::{Prompt, Sample};
use super::super::values::{self, FirstRound, PictureFormat};
use super::super::{Compat, Result, raw};
use super::{PROCESS, Resolver};

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
    ) -> Result<Sample> {
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
            prompts.push(self.prompt(&at(&format!("{key}[{i}]")), &raw, item, i, trigger, compat)?);
        }
        Ok(Sample {
            enabled: present && !prompts.is_empty() && train.disable_sampling != Some(true),
            every: self.count(&at("sample_every"), raw.sample_every, 100)? as u64,
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
            )?,
            prompts,
        })
    }

    fn prompt(
        &mut self,
        path: &str,
        section: &raw::Sample,
        item: &raw::SampleItem,
        index: usize,
        trigger: &Option<String>,
        compat: Compat,
    ) -> Result<Prompt> {
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
            width: self.count(path, item.width.or(section.width), 512)?,
            height: self.count(path, item.height.or(section.height), 512)?,
            seed: u64::try_from(item.seed.unwrap_or_else(|| walked(section.seed.unwrap_or(0)))).ok(),
            guidance_scale: item.guidance_scale.or(section.guidance_scale).unwrap_or(7.0),
            steps: self.count(path, item.sample_steps.or(section.sample_steps), 20)?,
            strength: item.network_multiplier.or(section.network_multiplier).unwrap_or(1.0),
        };
        let written = item.prompt.clone().unwrap_or_default();
        let (text, flags) = match written.split_once("--") {
            Some((text, flags)) => (text.trim_end(), flags),
            None => (written.as_str(), ""),
        };
        for flag in flags.split("--").filter(|f| !f.trim().is_empty()) {
            self.flag(path, &mut prompt, flag.trim())?;
        }
        prompt.text = text.replace("[trigger]", trigger.as_deref().unwrap_or_default());
        for (name, side) in [("width", &mut prompt.width), ("height", &mut prompt.height)] {
            let rounded = *side / SIDE * SIDE;
            if rounded == 0 {
                return Err(self.wrong(path, format!("a {name} of {side} pixels; expected {SIDE} or more")));
            }
            *side = rounded;
        }
        Ok(prompt)
    }

    /// One inline flag, `w 1024`. Source: ai-toolkit `toolkit/config_modules.py`, `_process_prompt_string`.
    fn flag(&mut self, path: &str, prompt: &mut Prompt, flag: &str) -> Result<()> {
        let (name, value) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let value = value.trim();
        let bad = |what: &str| self.wrong(path, format!("`--{name} {value}`: expected {what}"));
        match name {
            "w" | "width" => prompt.width = value.parse().map_err(|_| bad("a whole number"))?,
            "h" | "height" => prompt.height = value.parse().map_err(|_| bad("a whole number"))?,
            "d" | "seed" => {
                prompt.seed = u64::try_from(value.parse::<i64>().map_err(|_| bad("a whole number"))?).ok();
            }
            "s" | "steps" => {
                prompt.steps = value.parse().ok().filter(|&n| n > 0).ok_or_else(|| bad("1 or more"))?;
            }
            "l" | "cfg" => prompt.guidance_scale = value.parse().map_err(|_| bad("a number"))?,
            "m" | "network_multiplier" => prompt.strength = value.parse().map_err(|_| bad("a number"))?,
            "n" | "neg" => prompt.negative = Some(value.into()),
            _ => self.warn(path, format!("`--{name}` in a prompt has no effect")),
        }
        Ok(())
    }
}
