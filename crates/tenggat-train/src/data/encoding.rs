//! Latents of pictures and embeddings of prompts: from the caches beside the pictures where the job keeps
//! them, else from the encoders.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use tenggat_models::Interrupt;
use tenggat_models::qwen_image::{MAX_PROMPT_TOKENS, PromptEncoder, patchify};
use tenggat_models::vae::Vae;
use tenggat_tensor::{DType, Device, Tensor};

use super::cache::{self, Embedding, Latent, Misfit, Request, Settings, Usage};
use super::pictures::{self, Bad, Item};
use super::{Error, Result};
use crate::job::{Job, SaveType};

/// Pictures encoded at once, in pixels: bounds the memory of caching.
const PIXELS_AT_ONCE: usize = 1 << 20;
/// Prompts encoded at once.
const PROMPTS_AT_ONCE: usize = 16;

/// What turns pictures and prompts into what is trained on.
pub(crate) struct Encoders<'a> {
    pub device: &'a Device,
    pub vae: &'a Vae,
    pub text: &'a PromptEncoder,
    /// Channels of a text embedding.
    pub text_width: usize,
    /// Folder of the model, whose weights name the caches.
    pub model: &'a Path,
    /// Ends encoding before the next picture.
    pub interrupt: &'a Interrupt,
}

/// Something that was left out or could not be kept; the run goes on.
pub(crate) type Remarks = Vec<String>;

impl Encoders<'_> {
    /// Packed latents of pictures, `[tokens, channels]` each; `None` for those that turn out to be broken,
    /// which the second list names.
    ///
    /// # Errors
    /// The encoder failed, or a file of the model cannot be read.
    pub fn latents(
        &self,
        items: &[&Item],
        job: &Job,
        remarks: &mut Remarks,
    ) -> Result<(Vec<Option<Tensor>>, Vec<Bad>)> {
        let on_disk =
            |item: &Item| job.datasets.get(item.dataset).is_some_and(|set| set.cache_latents_to_disk);
        let name = self.name_of("vae", items.iter().any(|item| on_disk(item)))?;
        let pixels = |item: &&Item| item.crop.width * item.crop.height;
        let largest = items.iter().map(pixels).max().unwrap_or(1).max(1);
        let at_once = (PIXELS_AT_ONCE / largest).max(1);
        let settings = Settings { dtype: cached_as(job), encoder: &name, at_once };
        let mut bad = Vec::new();
        let encode = |group: &[&Item]| -> Result<Vec<Option<Latent>>> {
            let mut whole = Vec::new();
            let mut pixels = Vec::new();
            let mut is_whole = Vec::new();
            for &item in group {
                self.interrupt.check()?;
                let read = pictures::load_pixels(item);
                is_whole.push(read.is_ok());
                match read {
                    Ok(own) => {
                        pixels.extend(own);
                        whole.push(item);
                    }
                    Err(error) => bad.push(Bad { path: item.path.clone(), error: Box::new(error) }),
                }
            }
            let mut each = match whole.first() {
                Some(first) => self.unpacked(first, &pixels, whole.len())?,
                None => Vec::new(),
            }
            .into_iter();
            Ok(is_whole.into_iter().map(|whole| if whole { each.next() } else { None }).collect())
        };
        let (latents, usage) = cache::latents(items, self.vae.latent_channels(), settings, on_disk, encode)?;
        remarks.extend(said_of(usage));
        let packed = |latent: Option<Latent>| -> Result<Option<Tensor>> {
            let Some(latent) = latent else { return Ok(None) };
            let shape = [1, latent.height, latent.width, latent.channels];
            let tensor = Tensor::from_f32(self.device, DType::F32, &latent.values, &shape)?;
            let packed = patchify::pack(&tensor)?;
            let shape = packed.view().shape();
            Ok(Some(packed.reshape(&shape)?))
        };
        Ok((latents.into_iter().map(packed).collect::<Result<_>>()?, bad))
    }

    /// Embeddings of every prompt that training may draw, `[tokens, width]` each.
    ///
    /// # Errors
    /// As [`Encoders::latents`].
    pub fn prompts(
        &self,
        items: &[Item],
        job: &Job,
        remarks: &mut Remarks,
    ) -> Result<HashMap<String, Tensor>> {
        let on_disk = |item: &Item| job.datasets.get(item.dataset).is_some_and(|set| set.cache_text_to_disk);
        let wanted: BTreeSet<(&Path, &str, bool)> = items
            .iter()
            .flat_map(|item| item.prompts().map(|prompt| (item.path.as_path(), prompt, on_disk(item))))
            .collect();
        let name = self.name_of("text_encoder", items.iter().any(on_disk))?;
        let request = |(picture, caption, on_disk)| Request { picture, caption, on_disk };
        let requests: Vec<Request<'_>> = wanted.into_iter().map(request).collect();
        let settings = Settings { dtype: cached_as(job), encoder: &name, at_once: PROMPTS_AT_ONCE };
        let encode = |some: &[&str]| -> Result<Vec<Embedding>> {
            let one = |tensor: Tensor| -> Result<Embedding> {
                let [tokens, width] = tensor.view().shape();
                Ok(Embedding { tokens, width, values: tensor.to_f32()? })
            };
            self.text.encode_each(some)?.into_iter().map(one).collect()
        };
        let (embeddings, usage) = cache::texts(&requests, self.text_width, settings, encode)?;
        remarks.extend(said_of(usage));
        remarks.extend(cut(&embeddings));
        let tensor = |(prompt, e): (String, Embedding)| -> Result<(String, Tensor)> {
            Ok((prompt, Tensor::from_f32(self.device, DType::F32, &e.values, &[e.tokens, e.width])?))
        };
        embeddings.into_iter().map(tensor).collect()
    }

    /// What caches call the weights of an encoder; needed for caches on disk alone.
    fn name_of(&self, part: &str, on_disk: bool) -> Result<String> {
        if !on_disk {
            return Ok(String::new());
        }
        let folder = self.model.join(part);
        cache::weights_name(&folder).map_err(|e| Error::file("read", &folder, e))
    }

    /// Latents of `n` pictures of one size.
    fn unpacked(&self, first: &Item, pixels: &[f32], n: usize) -> Result<Vec<Latent>> {
        let (width, height) = (first.crop.width, first.crop.height);
        let pictures = Tensor::from_f32(self.device, DType::F32, pixels, &[n, height, width, 3])?;
        let latents = self.vae.normalise(&self.vae.encode(&pictures)?.mode()?)?;
        let &[_, h, w, channels] = latents.shape() else {
            return Err(Error::Job("the VAE's latents are not images".into()));
        };
        let values = latents.to_f32()?;
        let each = values.chunks_exact((h * w * channels).max(1));
        let latent = |own: &[f32]| Latent { channels, height: h, width: w, values: own.to_vec() };
        Ok(each.map(latent).collect())
    }
}

/// Type of the values in caches on disk: the job's `dtype`, as upstream has it.
fn cached_as(job: &Job) -> SaveType {
    if job.train.bf16 { SaveType::Bf16 } else { SaveType::F32 }
}

/// What the user should know of the caches.
fn said_of(usage: Usage) -> Remarks {
    let named = |list: &[PathBuf]| {
        let more = if list.len() > 1 { format!(" and {} more", list.len() - 1) } else { String::new() };
        list.first().map(|path| format!("{}{more}", path.display()))
    };
    let changed = named(&usage.changed)
        .map(|names| format!("{names}: changed since the cache was made; encoded again"));
    let younger = named(&usage.younger).map(|names| {
        format!(
            "{names}: newer than the latent in `_latent_cache`, which does not record its source; if the \
             image changed, delete that folder"
        )
    });
    let damaged = (usage.damaged > 0).then(|| format!("damaged cache files, rebuilt: {}", usage.damaged));
    let misfits = usage.misfits.map(|(pictures, why)| {
        let why = match why {
            Misfit::Spaces => {
                "have ai-toolkit's spelling, with two spaces after each comma and line ends kept; `compat: \
                 [caption-spaces]` in the job uses them"
            }
            Misfit::Text => "were made from other captions",
        };
        format!("the embeddings of {pictures} images in `_t_e_cache` are not used: they {why}")
    });
    let unwritten = usage.unwritten.map(|(path, error)| {
        format!("the cache {} cannot be written ({error}); the next run rebuilds it", path.display())
    });
    [changed, younger, damaged, misfits, unwritten].into_iter().flatten().collect()
}

/// The captions that are longer than what the model reads of them.
fn cut(embeddings: &BTreeMap<String, Embedding>) -> Option<String> {
    let is_cut = |(_, embedding): &(&String, &Embedding)| embedding.tokens >= MAX_PROMPT_TOKENS;
    let long: Vec<&String> = embeddings.iter().filter(is_cut).map(|(caption, _)| caption).collect();
    let start: String = long.first()?.chars().take(40).collect();
    let count = long.len();
    Some(format!("captions cut off after {MAX_PROMPT_TOKENS} tokens: {count}, the first begins {start:?}"))
}
