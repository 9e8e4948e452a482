//! What is trained on, encoded: latents of every picture and embeddings of every prompt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tenggat_models::qwen_image::geometry::{self, LATENT_PX, LATENTS_PER_TOKEN, PATCH};
use tenggat_models::qwen_image::{Scheduler, TextBatch};
use tenggat_models::transformer::{Positions, Transformer};
use tenggat_tensor::Tensor;

use super::encoding::{Encoders, Remarks};
use super::pictures::{self, Bad, Batches, Crop, Item};
use super::{Error, Result};
use crate::job::Job;
use crate::step::Batch;
use crate::step::random::{Draws, Level, NoiseLevels};

/// Rows and columns of patches.
pub(crate) type Grid = (usize, usize);

/// How noise is drawn for a batch.
pub(crate) struct Noising {
    draws: Draws,
    levels: NoiseLevels,
    /// Standard deviation of what is added to the noise of a whole channel: the job's `noise_offset`.
    offset: f64,
}

impl Noising {
    /// As the job says.
    pub fn of(job: &Job) -> Self {
        let train = &job.train;
        let levels = NoiseLevels {
            kind: train.timestep_type,
            balance: train.balance,
            bell: train.bell,
            range: train.denoising_steps,
        };
        Noising { draws: Draws::new(job.seed), levels, offset: train.noise_offset }
    }
}

/// The encoded data set.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub items: Vec<Item>,
    batches: Batches,
    /// Index into `latents` of each item.
    latents_of: Vec<usize>,
    /// Packed latents, `[tokens, channels]`, once per picture, cut and mirroring; `None` for broken
    /// pictures.
    latents: Vec<Option<Tensor>>,
    /// Packed masks of the items that have one, `[tokens, 4]`: the weight of each latent pixel.
    masks: HashMap<usize, Vec<f32>>,
    /// Factor on the loss of regularisation sets.
    reg_weight: f64,
    prompts: HashMap<String, Tensor>,
    /// Different picture sizes, in pixels.
    buckets: Vec<(usize, usize)>,
    positions: HashMap<(Grid, usize), Arc<Positions>>,
}

impl Prepared {
    /// Encodes everything. Pictures that turn out to be broken are left out and returned.
    ///
    /// # Errors
    /// An encoder failed, or a data set has no picture left.
    pub fn new(
        mut items: Vec<Item>,
        job: &Job,
        encoders: &Encoders<'_>,
        remarks: &mut Remarks,
    ) -> Result<(Self, Vec<Bad>)> {
        let (mut latent_of, mut firsts) = (HashMap::new(), Vec::new());
        for item in &items {
            if let Entry::Vacant(new) = latent_of.entry(picture_of(item)) {
                new.insert(firsts.len());
                firsts.push(item);
            }
        }
        let (latents, mut bad) = encoders.latents(&firsts, job, remarks)?;
        let is_encoded =
            |item: &Item| latent_of.get(&picture_of(item)).is_some_and(|&i| latents[i].is_some());
        let mut masks = Vec::new();
        items.retain(|item| match pictures::load_mask(item) {
            Ok(mask) if is_encoded(item) => {
                masks.push(mask.map(|weights| packed_mask(&weights, item.crop.width)));
                true
            }
            Ok(_) => false,
            Err(error) => {
                // Its copies at other sizes would say the same again.
                if bad.iter().all(|known: &Bad| known.path != item.path) {
                    bad.push(Bad { path: item.path.clone(), error: Box::new(error) });
                }
                false
            }
        });
        for (number, set) in job.datasets.iter().enumerate() {
            if !items.iter().any(|item| item.dataset == number) {
                return Err(pictures::Error::Empty { path: set.path.clone(), bad }.into());
            }
        }
        let latents_of = items.iter().filter_map(|item| latent_of.get(&picture_of(item)).copied()).collect();
        let prompts = encoders.prompts(&items, job, remarks)?;
        let mut buckets: Vec<(usize, usize)> = items.iter().map(size_of).collect();
        buckets.sort_unstable();
        buckets.dedup();
        let batches = Batches::new(&items, job.train.gradient_accumulation, job.seed);
        let positions = HashMap::new();
        let masks = masks.into_iter().enumerate().filter_map(|(i, mask)| Some((i, mask?))).collect();
        let reg_weight = job.train.reg_weight;
        let prepared =
            Prepared { items, batches, latents_of, latents, masks, reg_weight, prompts, buckets, positions };
        Ok((prepared, bad))
    }

    /// Batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        self.batches.per_epoch()
    }

    /// Hash of the images, captions and their preprocessing; it changes when any of them does.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        self.items.iter().for_each(|item| hash.update(format!("{item:?}\n")));
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Picture sizes and the share of the batches that each has.
    pub fn bucket_shares(&self) -> Vec<f64> {
        let share = |b: &(usize, usize)| {
            let of_size = |batch: &[usize]| batch.first().is_some_and(|&i| size_of(&self.items[i]) == *b);
            self.batches.shares().filter(|(batch, _)| of_size(batch)).map(|(_, share)| share).sum()
        };
        self.buckets.iter().map(share).collect()
    }

    /// Number of the picture size of a batch.
    pub fn bucket(&mut self, batch: u64) -> usize {
        let size = self.batches.at(batch).first().map(|&i| size_of(&self.items[i]));
        size.and_then(|s| self.buckets.iter().position(|b| *b == s)).unwrap_or(0)
    }

    /// The picture size with the most pixels.
    pub fn largest_size(&self) -> (usize, usize) {
        self.buckets.iter().copied().max_by_key(|(width, height)| width * height).unwrap_or_default()
    }

    /// Tokens of the longest prompt.
    pub fn longest_prompt(&self) -> usize {
        self.prompts.values().map(|prompt| prompt.view().rows()).max().unwrap_or(0)
    }

    /// Pixels of a picture size.
    pub fn bucket_size(&self, bucket: usize) -> (usize, usize) {
        self.buckets.get(bucket).copied().unwrap_or_default()
    }

    fn latent(&self, item: usize) -> Result<&Tensor> {
        let latent = self.latents_of.get(item).and_then(|&i| self.latents.get(i)?.as_ref());
        latent.ok_or_else(|| Error::Job(format!("image {item} was not encoded")))
    }

    /// The level of a sample, its loss weighted as its data set wants it.
    fn level(&self, item: &Item, level: Level) -> Level {
        let weight = item.loss_multiplier * if item.is_reg { self.reg_weight } else { 1.0 };
        Level { weight: level.weight * weight, ..level }
    }

    /// The noise levels of batch `number`, as [`Prepared::draw`] draws them.
    ///
    /// # Errors
    /// An image of the batch was not encoded.
    pub fn levels(&mut self, number: u64, scheduler: &Scheduler, noising: &Noising) -> Result<Vec<Level>> {
        let &Noising { ref draws, levels, .. } = noising;
        let chosen = self.batches.at(number).to_vec();
        let Some(&first) = chosen.first() else { return Ok(Vec::new()) };
        let tokens = self.latent(first)?.view().rows();
        let drawn = chosen.iter().enumerate();
        let level = |(sample, &item): (usize, &usize)| {
            self.level(&self.items[item], draws.level(levels, scheduler, tokens, number, sample))
        };
        Ok(drawn.map(level).collect())
    }

    /// Batch `number` with everything random drawn for it: latents and noise `[b·tokens, channels]`.
    ///
    /// # Errors
    /// An image or a prompt was not encoded, or the device failed or is out of memory.
    pub fn draw(
        &mut self,
        number: u64,
        model: &Transformer,
        scheduler: &Scheduler,
        noising: &Noising,
    ) -> Result<Batch> {
        let &Noising { ref draws, levels, offset } = noising;
        let chosen = self.batches.at(number).to_vec();
        let Some(&first) = chosen.first() else {
            return Err(Error::Job("there is nothing to train on".into()));
        };
        let clean = self.latent(first)?;
        let [tokens, channels] = clean.view().shape();
        let shape = [chosen.len() * tokens, channels];
        let mut latents = clean.empty_like(&shape)?;
        let mut noise = vec![0.0f32; chosen.len() * tokens * channels];
        let (mut texts, mut drawn) = (Vec::new(), Vec::new());
        for (sample, &i) in chosen.iter().enumerate() {
            let item = &self.items[i];
            let rows = sample * tokens..(sample + 1) * tokens;
            let one = self.latent(i)?.view();
            tenggat_tensor::ops::copy::forward(one, latents.view_mut().row_range(rows.clone()))?;
            let own = &mut noise[rows.start * channels..rows.end * channels];
            draws.noise(number, sample, channels, offset, own);
            drawn.push(self.level(item, draws.level(levels, scheduler, tokens, number, sample)));
            // A variant of its caption, or what stands for a dropped one.
            let (random, stream) = draws.of_caption(number, sample);
            let prompt = item.prompt(random, stream, 0);
            let missing = || Error::Job(format!("the prompt {prompt:?} was not encoded"));
            texts.push(self.prompts.get(prompt).ok_or_else(missing)?);
        }
        let text = TextBatch::new(&texts)?;
        let grid = grid_of(&self.items[first]);
        let positions = match self.positions.entry((grid, text.tokens)) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => Arc::clone(new.insert(Arc::new(model.positions(grid, text.tokens)?))),
        };
        let noise = Tensor::from_f32(&latents.device(), latents.dtype(), &noise, &shape)?;
        let mask = match self.mask(&chosen, tokens, channels) {
            Some(weights) => Some(Tensor::from_f32(&latents.device(), latents.dtype(), &weights, &shape)?),
            None => None,
        };
        let strength = self.items[first].network_weight;
        Ok(Batch { latents, noise, levels: drawn, mask, share: 1.0, strength, number, text, positions })
    }

    /// Weights of every element of a batch, their mean 1 unless all are 0; `None` if no picture in it has a
    /// mask. Source: ai-toolkit `extensions_built_in/sd_trainer/SDTrainer.py`, `mask_multiplier`.
    fn mask(&self, chosen: &[usize], tokens: usize, channels: usize) -> Option<Vec<f32>> {
        if !chosen.iter().any(|i| self.masks.contains_key(i)) {
            return None;
        }
        let mut weights = Vec::with_capacity(chosen.len() * tokens * channels);
        for i in chosen {
            let own = self.masks.get(i);
            // A packed channel c holds the latent pixel c mod 4 of its patch.
            let part = |e: usize| e / channels * LATENTS_PER_TOKEN + e % channels % LATENTS_PER_TOKEN;
            let at = |e: usize| own.map_or(1.0, |mask| mask[part(e)]);
            weights.extend((0..tokens * channels).map(at));
        }
        let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / weights.len().max(1) as f64;
        if mean > 0.0 {
            weights.iter_mut().for_each(|w| *w = (f64::from(*w) / mean) as f32);
        }
        Some(weights)
    }
}

fn size_of(item: &Item) -> (usize, usize) {
    (item.crop.width, item.crop.height)
}

/// Rows and columns of patches.
pub(crate) fn grid_of(item: &Item) -> Grid {
    geometry::token_grid(size_of(item))
}

/// Weights of the latent pixels of each patch, `[tokens, 4]`, from those of pixels: the nearest, as torch's
/// `interpolate` takes it.
fn packed_mask(weights: &[f32], width: usize) -> Vec<f32> {
    let height = weights.len() / width.max(1);
    let (rows, columns) = geometry::token_grid((width, height));
    let at = |token: usize, part: usize| {
        let (y, x) = (PATCH * (token / columns) + part / PATCH, PATCH * (token % columns) + part % PATCH);
        weights[y * LATENT_PX * width + x * LATENT_PX]
    };
    (0..rows * columns).flat_map(|token| (0..LATENTS_PER_TOKEN).map(move |part| at(token, part))).collect()
}

/// What a latent is made of.
fn picture_of(item: &Item) -> (PathBuf, Crop, bool, bool) {
    (item.path.clone(), item.crop, item.flip_x, item.flip_y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_packed_as_latents_are() {
        // Pixel (y, x) weighs 100·y + x; 16 × 32 pixels are one row of two patches.
        let weights: Vec<f32> = (0..16 * 32).map(|i| (100 * (i / 32) + i % 32) as f32).collect();
        assert_eq!(packed_mask(&weights, 32), [0.0, 8.0, 800.0, 808.0, 16.0, 24.0, 816.0, 824.0]);
    }
}
