//! What is trained on, encoded: latents of every picture and embeddings of every prompt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;

use tenggat_models::qwen_image::transformer::{Positions, Transformer};
use tenggat_models::qwen_image::{Scheduler, TextBatch};
use tenggat_tensor::Tensor;

use super::encoding::{Encoders, Remarks};
use super::{Error, Result};
use crate::dataset::{self, Bad, Batches, Crop, Item};
use crate::draws::{Draws, NoiseLevels};
use crate::job::Job;
use crate::step::Batch;

/// Rows and columns of patches.
pub(super) type Grid = (usize, usize);

/// The encoded data set.
#[derive(Debug)]
pub(super) struct Prepared {
    pub items: Vec<Item>,
    batches: Batches,
    /// Index into `latents` of each item.
    latents_of: Vec<usize>,
    /// Packed latents, `[tokens, channels]`, once per picture, cut and mirroring; `None` for broken pictures.
    latents: Vec<Option<Tensor>>,
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
        let (latents, bad) = encoders.latents(&firsts, &job.datasets, remarks)?;
        items.retain(|item| latent_of.get(&picture_of(item)).is_some_and(|&i| latents[i].is_some()));
        for (number, set) in job.datasets.iter().enumerate() {
            if !items.iter().any(|item| item.dataset == number) {
                return Err(dataset::Error::Empty { path: set.path.clone(), bad }.into());
            }
        }
        let latents_of = items.iter().filter_map(|item| latent_of.get(&picture_of(item)).copied()).collect();
        let prompts = encoders.prompts(&items, &job.datasets, remarks)?;
        let mut buckets: Vec<(usize, usize)> = items.iter().map(size_of).collect();
        buckets.sort_unstable();
        buckets.dedup();
        let batches = Batches::new(&items, job.seed);
        let positions = HashMap::new();
        Ok((Prepared { items, batches, latents_of, latents, prompts, buckets, positions }, bad))
    }

    /// Picture sizes and the share of the batches that each has.
    pub fn bucket_shares(&self) -> Vec<f64> {
        let all = self.batches.all();
        let share = |b: &(usize, usize)| {
            let of_size =
                all.iter().filter(|batch| batch.first().is_some_and(|&i| size_of(&self.items[i]) == *b));
            of_size.count() as f64 / all.len().max(1) as f64
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
        latent.ok_or_else(|| Error::Job(format!("picture {item} was not encoded")))
    }

    /// Batch `number` with everything random drawn for it.
    pub fn draw(
        &mut self,
        number: u64,
        model: &Transformer,
        scheduler: &Scheduler,
        (draws, levels, offset): (&Draws, NoiseLevels, f64),
    ) -> Result<Batch> {
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
            let mut level = draws.level(levels, scheduler, tokens, number, sample);
            level.weight *= item.loss_multiplier;
            drawn.push(level);
            let prompt = draws.prompt(item, number, sample);
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
        Ok(Batch { latents, noise, levels: drawn, text, positions })
    }
}

fn size_of(item: &Item) -> (usize, usize) {
    (item.crop.width, item.crop.height)
}

/// Rows and columns of patches: a patch is 16 × 16 pixels.
pub(super) fn grid_of(item: &Item) -> Grid {
    (item.crop.height / 16, item.crop.width / 16)
}

/// What a latent is made of.
fn picture_of(item: &Item) -> (PathBuf, Crop, bool, bool) {
    (item.path.clone(), item.crop, item.flip_x, item.flip_y)
}
