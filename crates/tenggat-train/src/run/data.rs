//! What is trained on, encoded: latents of every picture and embeddings of every prompt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use tenggat_models::qwen_image::transformer::{Positions, Transformer};
use tenggat_models::qwen_image::vae::Vae;
use tenggat_models::qwen_image::{PromptEncoder, Scheduler, TextBatch, patchify};
use tenggat_tensor::{DType, Device, Tensor};

use super::{Error, Result};
use crate::dataset::{self, Batches, Item};
use crate::draws::{Draws, NoiseLevels};
use crate::step::Batch;

/// Pictures encoded at once, in pixels: bounds the memory of caching.
const PIXELS_AT_ONCE: usize = 1 << 20;
/// Prompts encoded at once.
const PROMPTS_AT_ONCE: usize = 16;

/// Rows and columns of patches.
pub(super) type Grid = (usize, usize);

/// The encoded data set.
#[derive(Debug)]
pub(super) struct Prepared {
    pub items: Vec<Item>,
    batches: Batches,
    /// Index into `latents` of each item.
    latents_of: Vec<usize>,
    /// Packed latents, `[tokens, channels]`, once per picture, cut and mirroring.
    latents: Vec<Tensor>,
    prompts: HashMap<String, Tensor>,
    /// Different picture sizes, in pixels.
    buckets: Vec<(usize, usize)>,
    positions: HashMap<(Grid, usize), Arc<Positions>>,
}

impl Prepared {
    /// Encodes everything.
    pub fn new(
        items: Vec<Item>,
        seed: u64,
        device: &Device,
        vae: &Vae,
        text: &PromptEncoder,
    ) -> Result<Self> {
        let mut index = HashMap::new();
        let (mut latents_of, mut firsts) = (Vec::with_capacity(items.len()), Vec::new());
        for (i, item) in items.iter().enumerate() {
            match index.entry((&item.path, item.crop, item.flip_x, item.flip_y)) {
                Entry::Occupied(known) => latents_of.push(*known.get()),
                Entry::Vacant(new) => {
                    latents_of.push(*new.insert(firsts.len()));
                    firsts.push(i);
                }
            }
        }
        let mut latents = Vec::with_capacity(firsts.len());
        let mut rest = &firsts[..];
        while let Some(&first) = rest.first() {
            let size = size_of(&items[first]);
            let most = (PIXELS_AT_ONCE / (size.0 * size.1).max(1)).max(1);
            let n = rest.iter().take(most).take_while(|&&i| size_of(&items[i]) == size).count();
            let group: Vec<&Item> = rest[..n].iter().map(|&i| &items[i]).collect();
            latents.extend(encode_pictures(device, vae, &group)?.1);
            rest = &rest[n..];
        }
        let mut wanted: Vec<&str> = items.iter().flat_map(Item::prompts).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut prompts = HashMap::new();
        for some in wanted.chunks(PROMPTS_AT_ONCE) {
            prompts.extend(some.iter().map(|p| p.to_string()).zip(text.encode_each(some)?));
        }
        let mut buckets: Vec<(usize, usize)> = items.iter().map(size_of).collect();
        buckets.sort_unstable();
        buckets.dedup();
        let batches = Batches::new(&items, seed);
        Ok(Prepared { items, batches, latents_of, latents, prompts, buckets, positions: HashMap::new() })
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
        let clean = &self.latents[self.latents_of[first]];
        let [tokens, channels] = clean.view().shape();
        let shape = [chosen.len() * tokens, channels];
        let mut latents = clean.empty_like(&shape)?;
        let mut noise = vec![0.0f32; chosen.len() * tokens * channels];
        let (mut texts, mut drawn) = (Vec::new(), Vec::new());
        for (sample, &i) in chosen.iter().enumerate() {
            let item = &self.items[i];
            let rows = sample * tokens..(sample + 1) * tokens;
            let one = self.latents[self.latents_of[i]].view();
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

/// Pictures of one size, `[n, h, w, 3]`, and the packed latents of each, `[tokens, channels]`.
pub(super) fn encode_pictures(device: &Device, vae: &Vae, items: &[&Item]) -> Result<(Tensor, Vec<Tensor>)> {
    let (width, height) = items.first().map_or((0, 0), |item| size_of(item));
    let mut pixels = Vec::with_capacity(items.len() * width * height * 3);
    for item in items {
        pixels.extend(dataset::load_pixels(item)?);
    }
    let pictures = Tensor::from_f32(device, DType::F32, &pixels, &[items.len(), height, width, 3])?;
    let latents = vae.normalise(&vae.encode(&pictures)?.mode()?)?;
    let packed = patchify::pack(&latents)?;
    let channels = packed.view().cols();
    let tokens = packed.view().rows() / items.len().max(1);
    let one = |i: usize| -> Result<Tensor> {
        let mut own = packed.empty_like(&[tokens, channels])?;
        let rows = i * tokens..(i + 1) * tokens;
        tenggat_tensor::ops::copy::forward(packed.view().row_range(rows), own.view_mut())?;
        Ok(own)
    };
    let each = (0..items.len()).map(one).collect::<Result<_>>()?;
    Ok((pictures, each))
}
