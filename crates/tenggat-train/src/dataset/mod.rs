//! Pictures with captions, as they are trained on.
//!
//! [`load`] finds the pictures of every data set, reads their captions and decides where each is resized and cut;
//! [`load_pixels`] reads one. [`batches`] puts them in order. Nothing is drawn from a clock or a global generator: the
//! same files and seed give the same items, captions and batches.

pub mod batches;
mod bucket;
mod caption;
mod mask;
mod picture;
mod scan;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tenggat_tensor::random::Philox;

pub use batches::Batches;
pub use bucket::{Crop, DIVISIBLE_BY, bucket};
pub use mask::{Mask, load_mask};
pub(crate) use picture::{Filter, resize};
pub use picture::{load_pixels, load_whole, size};

use crate::job::{self, Compat};
use caption::Captions;

/// Result of reading a data set.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A data set or picture that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A picture that cannot be decoded.
    #[error("{} is no whole picture: {reason}; replace or remove it", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        reason: String,
    },
    /// A caption that cannot be read.
    #[error("the caption {} is not UTF-8 text; save it as UTF-8", path.display())]
    Caption {
        /// The file.
        path: PathBuf,
    },
    /// A data-set list that cannot be understood.
    #[error("{} is neither a folder nor a list of pictures (a JSON object from path to {{\"caption\": …}}): {reason}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// A data set without a usable picture.
    #[error("{} has no usable picture (jpg, jpeg, png or webp){}; check `folder_path`", path.display(), unusable(bad))]
    Empty {
        /// The folder or list.
        path: PathBuf,
        /// Pictures that were found and cannot be used.
        bad: Vec<Bad>,
    },
}

impl Error {
    fn picture(path: &Path, reason: impl std::fmt::Display) -> Self {
        // Decoders end their sentences in different ways.
        let reason = reason.to_string().trim_end().trim_end_matches('.').replace('\n', " ");
        Error::Picture { path: path.into(), reason }
    }
}

fn unusable(bad: &[Bad]) -> String {
    match bad {
        [] => String::new(),
        [first, ..] => format!(": {} found, none usable, the first because {}", bad.len(), first.error),
    }
}

/// A picture that is left out, and why.
#[derive(Debug)]
pub struct Bad {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub error: Box<Error>,
}

/// One picture at one resolution, as it is trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The file.
    pub path: PathBuf,
    /// Its captions, at least one; several if parts are shuffled or left out at random.
    pub captions: Vec<String>,
    /// Caption in place of a dropped one.
    pub dropped: String,
    /// Chance that the caption is dropped.
    pub dropout_rate: f64,
    /// Size and place of the cut.
    pub crop: Crop,
    /// Mirrored left to right.
    pub flip_x: bool,
    /// Mirrored top to bottom.
    pub flip_y: bool,
    /// Factor on its loss.
    pub loss_multiplier: f64,
    /// Which parts of it count; `None`: all of it.
    pub mask: Option<Mask>,
    /// Whether it shows what must not be learnt anew.
    pub is_reg: bool,
    /// Strength of the LoRA while it trains on it.
    pub network_weight: f64,
    /// Which data set, as the job lists them.
    pub dataset: usize,
    /// Which of its resolutions.
    pub resolution: usize,
    /// Pictures in a batch of its data set.
    pub batch_size: usize,
}

impl Item {
    /// Every prompt that training may draw for it.
    pub fn prompts(&self) -> impl Iterator<Item = &str> {
        let dropped = (self.dropout_rate > 0.0).then_some(self.dropped.as_str());
        let captions = self.captions.iter().filter(|_| self.dropout_rate < 1.0);
        captions.map(String::as_str).chain(dropped)
    }

    /// The prompt of draw `index` of a stream: dropped or not, and which variant.
    pub fn prompt(&self, random: Philox, stream: u64, index: u64) -> &str {
        if random.uniform(stream, 2 * index) < self.dropout_rate {
            return &self.dropped;
        }
        &self.captions[random.below(stream, 2 * index + 1, self.captions.len())]
    }
}

/// Every item of every data set, and the pictures that were left out.
///
/// Order: data sets as listed, their resolutions, repeats, paths sorted; mirrored copies follow the originals of their
/// data set and resolution. Captions that vary are drawn from `seed`.
///
/// # Errors
/// A folder cannot be read, or a data set has no usable picture.
pub fn load(sets: &[job::Dataset], compat: Compat, seed: u64) -> Result<(Vec<Item>, Vec<Bad>)> {
    let (mut items, mut bad) = (Vec::new(), Vec::new());
    for (index, set) in sets.iter().enumerate() {
        let captions =
            Captions { set, upstream_spaces: compat.caption_spaces, random: Philox::new(seed ^ CAPTIONS) };
        let mut pictures = Vec::new();
        let mut unusable = Vec::new();
        for (i, found) in scan::pictures(&set.path, set.short_captions)?.into_iter().enumerate() {
            match read(set, &captions, &found, i as u64) {
                Ok((size, texts)) => pictures.push((found.path, size, texts)),
                Err(error) => unusable.push(Bad { path: found.path, error: Box::new(error) }),
            }
        }
        if pictures.is_empty() {
            return Err(Error::Empty { path: set.path.clone(), bad: unusable });
        }
        bad.extend(unusable);
        for &resolution in &set.resolutions {
            let item = |(path, (width, height), texts): &(PathBuf, (usize, usize), Vec<String>)| Item {
                path: path.clone(),
                captions: texts.clone(),
                dropped: captions.dropped(),
                dropout_rate: set.caption_dropout_rate,
                crop: if set.square_crop {
                    Crop::to_square(*width, *height, resolution)
                } else {
                    Crop::to_bucket(*width, *height, resolution)
                },
                flip_x: false,
                flip_y: false,
                loss_multiplier: set.loss_multiplier,
                mask: set.masks.as_ref().and_then(|masks| Mask::of(path, masks)),
                is_reg: set.is_reg,
                network_weight: set.network_weight,
                dataset: index,
                resolution,
                batch_size: set.batch_size,
            };
            let start = items.len();
            (0..set.num_repeats).for_each(|_| items.extend(pictures.iter().map(item)));
            if set.flip_x {
                let copies: Vec<Item> = items[start..].to_vec();
                items.extend(copies.into_iter().map(|i| Item { flip_x: true, ..i }));
            }
            if set.flip_y {
                let copies: Vec<Item> = items[start..].to_vec();
                items.extend(copies.into_iter().map(|i| Item { flip_y: true, ..i }));
            }
            if set.random_crop && !set.square_crop {
                let random = Philox::new(seed ^ CROPS);
                for (number, item) in items.iter_mut().enumerate().skip(start) {
                    item.crop = item.crop.moved(random, number as u64);
                }
            }
        }
    }
    Ok((items, bad))
}

/// Paths of every picture under a folder, sorted.
///
/// # Errors
/// A folder cannot be read.
pub(crate) fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(scan::pictures(folder, false)?.into_iter().map(|found| found.path).collect())
}

/// Decodes every picture, and every mask, of a list of items and returns those that are not whole: [`load`] reads
/// headers alone.
pub fn broken(items: &[Item]) -> Vec<Bad> {
    let mut paths: Vec<&Path> = items.iter().map(|item| item.path.as_path()).collect();
    paths.sort_unstable();
    paths.dedup();
    let mut masked: Vec<&Item> = items.iter().filter(|item| item.mask.is_some()).collect();
    masked.dedup_by_key(|item| &item.path);
    let bad = |path: &Path, error: Error| Bad { path: path.to_path_buf(), error: Box::new(error) };
    let picture = |path: &&Path| Some(bad(path, picture::open(path).err()?));
    let mask = |item: &&Item| Some(bad(&item.path, load_mask(item).err()?));
    let mut broken: Vec<Bad> = paths.par_iter().filter_map(picture).collect();
    let masks: Vec<Bad> = masked.par_iter().filter_map(mask).collect();
    broken.extend(masks);
    broken
}

/// Keeps the numbers drawn for places of cuts apart from those drawn elsewhere.
const CROPS: u64 = 0x0063_726f_7073_2121;

/// Keeps the numbers drawn for captions apart from those drawn elsewhere.
const CAPTIONS: u64 = 0x6361_7074_696f_6e73;

/// Size, scaled as the data set says, and captions of a picture.
fn read(
    set: &job::Dataset,
    captions: &Captions<'_>,
    found: &scan::Found,
    stream: u64,
) -> Result<((usize, usize), Vec<String>)> {
    let (width, height) = size(&found.path)?;
    let scaled = |side: usize| ((side as f64 * set.scale) as usize).max(1);
    let file = match &found.caption {
        Some(caption) => Some(caption.clone()),
        None => read_caption(&found.path, &set.caption_ext)?,
    };
    Ok(((scaled(width), scaled(height)), captions.of(file.as_deref(), stream)))
}

/// The text beside a picture, in a file of its name with this extension; `None` if there is no such file.
pub(crate) fn read_caption(picture: &Path, extension: &str) -> Result<Option<String>> {
    let mut name = picture.file_stem().unwrap_or_default().to_os_string();
    name.push(extension);
    let path = picture.with_file_name(name);
    match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| Error::Caption { path }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Puts a list in an order drawn from a stream (Fisher and Yates).
fn shuffle<T>(list: &mut [T], random: Philox, stream: u64) {
    for last in (1..list.len()).rev() {
        list.swap(last, random.below(stream, last as u64, last + 1));
    }
}

#[cfg(test)]
pub(crate) mod tests;
