//! The data sets.

use std::path::PathBuf;

use super::resolver::{PROCESS, Resolver};
use crate::{Dataset, Masks, file, raw};

impl Resolver<'_> {
    /// Every data set of the job; the trigger word, the batch size and the text cache of the job hold for
    /// sets that say nothing.
    pub(super) fn datasets(
        &mut self,
        raw: Option<Vec<raw::Dataset>>,
        trigger: &Option<String>,
        batch_size: usize,
        cached_text: bool,
    ) -> Vec<Dataset> {
        let raw = raw.unwrap_or_default();
        if raw.is_empty() {
            self.missing("config.process[0].datasets", "name at least one `folder_path`");
        } else if raw.iter().all(|set| set.is_reg == Some(true)) {
            let path = format!("{PROCESS}.datasets[0].is_reg");
            self.wrong(&path, "every data set is for regularisation; expected at least one to learn from");
        }
        let cached = raw.iter().filter(|d| d.cache_text_embeddings == Some(true)).count();
        if cached > 0 && cached < raw.len() && !cached_text {
            let path = format!("{PROCESS}.datasets");
            self.warn(&path, "only some data sets cache text embeddings; tenggat does it for all of them");
        }
        let cached_text = cached_text || cached > 0;
        raw.into_iter()
            .enumerate()
            .map(|(i, raw)| self.dataset(i, raw, trigger, batch_size, cached_text))
            .collect()
    }

    fn dataset(
        &mut self,
        index: usize,
        raw: raw::Dataset,
        trigger: &Option<String>,
        batch_size: usize,
        cached_text: bool,
    ) -> Dataset {
        let here = format!("{PROCESS}.datasets[{index}]");
        let at = |key: &str| format!("{here}.{key}");
        let path = raw.dataset_path.or(raw.folder_path).filter(|p| !p.is_empty()).unwrap_or_else(|| {
            self.wrong(&at("folder_path"), "no `folder_path`; name the folder of the images");
            String::new()
        });
        let extension = raw.caption_type.or(raw.caption_ext).unwrap_or_else(|| "txt".into());
        let resolutions = raw.resolution.map_or_else(|| vec![512], |r| r.0);
        if resolutions.is_empty() {
            self.wrong(&at("resolution"), "an empty list; expected numbers such as 512 or 1024");
        }
        let masks = match (raw.alpha_mask, raw.mask_path.filter(|p| !p.is_empty())) {
            (Some(true), _) => Some(None),
            (_, Some(folder)) => Some(Some(PathBuf::from(folder))),
            _ => None,
        };
        let floor = raw.mask_min_value.unwrap_or(0.0);
        let inverted = raw.invert_mask.unwrap_or(false);
        let masks = masks.map(|folder| Masks { folder, inverted, floor });
        let is_reg = raw.is_reg.unwrap_or(false);
        let random_triggers = self.random_triggers(&at("random_triggers"), raw.random_triggers);
        Dataset {
            path: PathBuf::from(path),
            caption_ext: if extension.starts_with('.') { extension } else { format!(".{extension}") },
            default_caption: raw.default_caption,
            trigger_word: raw.trigger_word.filter(|t| !t.trim().is_empty()).or_else(|| trigger.clone()),
            caption_dropout_rate: raw.caption_dropout_rate.unwrap_or(0.0),
            token_dropout_rate: raw.token_dropout_rate.unwrap_or(0.0),
            keep_tokens: raw.keep_tokens.unwrap_or(0) as usize,
            shuffle_tokens: raw.shuffle_tokens.unwrap_or(false),
            resolutions: resolutions.into_iter().map(|side| side as usize).collect(),
            num_repeats: raw.num_repeats.unwrap_or(1) as usize,
            flip_x: raw.flip_x.unwrap_or(false),
            flip_y: raw.flip_y.unwrap_or(false),
            scale: raw.scale.unwrap_or(1.0),
            square_crop: raw.square_crop.unwrap_or(false),
            batch_size: raw.batch_size.map_or(batch_size, |n| n as usize),
            random_crop: raw.random_crop.unwrap_or(false),
            loss_multiplier: raw.loss_multiplier.unwrap_or(1.0),
            network_weight: raw.network_weight.unwrap_or(1.0),
            is_reg,
            masks,
            random_triggers_max: (raw.random_triggers_max.unwrap_or(1) as usize).min(random_triggers.len()),
            random_triggers,
            short_captions: raw.use_short_captions.unwrap_or(false),
            // Memory holds them for the run in any case.
            cache_latents_to_disk: raw.cache_latents_to_disk.unwrap_or(false),
            cache_text_to_disk: cached_text,
        }
    }

    /// Words as they are listed, or the lines of a file.
    fn random_triggers(&mut self, path: &str, raw: Option<raw::OneOrMany<String>>) -> Vec<String> {
        let words = raw.unwrap_or_default().0;
        let [only] = &words[..] else { return words };
        if !std::path::Path::new(only).is_file() {
            return words;
        }
        match file::text(std::path::Path::new(only)) {
            Ok(text) => text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect(),
            Err(e) => {
                self.wrong(path, format!("{only}: {e}"));
                words
            }
        }
    }
}
