//! Pictures with captions, as they are trained on.
//!
//! [`load`] finds the pictures of every data set, reads their captions and decides where each is resized and
//! cut; [`load_pixels`] reads one. [`batches`] puts them in order. Nothing is drawn from a clock or a global
//! generator: the same files and seed give the same items, captions and batches.

pub mod batches;
mod bucket;
mod caption;
mod decode;
mod file;
mod jpeg;
mod limits;
mod mask;
mod orientation;
mod picture;
mod remarks;
mod scan;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tenggat_tensor::random::Philox;

pub use batches::Batches;
pub use bucket::{Crop, DIVISIBLE_BY, bucket};
pub(crate) use decode::as_stored;
pub(crate) use file::open as open_file;
pub use mask::{Mask, load_mask};
pub(crate) use picture::{Filter, resize};
pub use picture::{load_bytes, load_pixels, load_whole, size};

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
    #[error("{} is not a usable image: {reason}; replace or remove it", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        reason: String,
    },
    /// A picture without a caption, where one is needed.
    #[error("{} has no caption; write one into {}", path.display(), path.with_extension("txt").display())]
    Uncaptioned {
        /// The picture.
        path: PathBuf,
    },
    /// A caption that cannot be read.
    #[error("the caption {} is not UTF-8 text; save it as UTF-8", path.display())]
    Caption {
        /// The file.
        path: PathBuf,
    },
    /// A mask folder that cannot be read.
    #[error("cannot read the masks in {}: {source}; check `mask_path`", path.display())]
    Masks {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A picture of a kind that is not read.
    #[error("{} has a format that tenggat does not read; save it as PNG or JPEG", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// A data-set list that cannot be understood.
    #[error("{} is neither a folder nor a list of images (a JSON object from path to {{\"caption\": …}}): \
        {reason}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// A data set without a usable picture.
    #[error("{} has no usable image (jpg, png, webp, gif, tiff or bmp){}; check `folder_path`", path.display(), unusable(bad))]
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

/// What data sets hold.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What is trained on.
    pub items: Vec<Item>,
    /// Pictures that were left out.
    pub bad: Vec<Bad>,
    /// What the user should know of the rest, a sentence each.
    pub remarks: Vec<String>,
}

/// Every item of every data set.
///
/// Order: data sets as listed, their resolutions, repeats, paths sorted; mirrored copies follow the originals
/// of their data set and resolution. Captions that vary are drawn from `seed`.
///
/// # Errors
/// A folder cannot be read, or a data set has no usable picture.
pub fn load(sets: &[job::Dataset], compat: Compat, seed: u64) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    for (index, set) in sets.iter().enumerate() {
        load_set(index, set, compat, seed, &mut loaded)?;
    }
    Ok(loaded)
}

/// A picture that can be used.
struct Usable {
    path: PathBuf,
    /// Width and height, scaled as the data set says.
    size: (usize, usize),
    captions: Vec<String>,
    /// Whether somebody wrote a caption for it.
    is_captioned: bool,
    mask: Option<Mask>,
}

fn load_set(index: usize, set: &job::Dataset, compat: Compat, seed: u64, loaded: &mut Loaded) -> Result<()> {
    let captions =
        Captions { set, upstream_spaces: compat.caption_spaces, random: Philox::new(seed ^ CAPTIONS) };
    let masks = set.masks.as_ref().map(|masks| mask::Finder::new(masks, &set.path)).transpose()?;
    let mask_folder = set.masks.as_ref().and_then(|masks| masks.folder.as_deref());
    let listing = scan::pictures(&set.path, set.short_captions, mask_folder)?;
    let read: Vec<Result<Usable>> = listing
        .pictures
        .par_iter()
        .enumerate()
        .map(|(i, found)| read(set, &captions, masks.as_ref(), found, i as u64))
        .collect();
    let (mut usable, mut bad) = (Vec::new(), Vec::new());
    for (found, read) in listing.pictures.iter().zip(read) {
        match read {
            Ok(one) => usable.push(one),
            Err(error) => bad.push(Bad { path: found.path.clone(), error: Box::new(error) }),
        }
    }
    if usable.is_empty() {
        let kind = |path: PathBuf| Bad { error: Box::new(Error::Kind { path: path.clone() }), path };
        bad.extend(listing.unread.into_iter().map(kind));
        return Err(Error::Empty { path: set.path.clone(), bad });
    }
    loaded.bad.extend(bad);
    loaded.remarks.extend(remarks::of(set, &usable, &listing, masks.as_ref()));
    for &resolution in &set.resolutions {
        let start = loaded.items.len();
        add_items(index, set, &usable, (resolution, &captions.dropped()), &mut loaded.items);
        if set.random_crop && !set.square_crop {
            let random = Philox::new(seed ^ CROPS);
            for (number, item) in loaded.items.iter_mut().enumerate().skip(start) {
                item.crop = item.crop.moved(random, number as u64);
            }
        }
    }
    Ok(())
}

/// How the pictures of a data set are cut, from width, height and resolution.
fn crop_of(set: &job::Dataset) -> fn(usize, usize, usize) -> Crop {
    if set.square_crop { Crop::to_square } else { Crop::to_bucket }
}

/// The items of a data set at one resolution.
fn add_items(
    index: usize,
    set: &job::Dataset,
    usable: &[Usable],
    (resolution, dropped): (usize, &str),
    items: &mut Vec<Item>,
) {
    let crop = crop_of(set);
    let item = |picture: &Usable| Item {
        path: picture.path.clone(),
        captions: picture.captions.clone(),
        dropped: dropped.to_owned(),
        dropout_rate: set.caption_dropout_rate,
        crop: crop(picture.size.0, picture.size.1, resolution),
        flip_x: false,
        flip_y: false,
        loss_multiplier: set.loss_multiplier,
        mask: picture.mask.clone(),
        is_reg: set.is_reg,
        network_weight: set.network_weight,
        dataset: index,
        resolution,
        batch_size: set.batch_size,
    };
    let start = items.len();
    (0..set.num_repeats).for_each(|_| items.extend(usable.iter().map(item)));
    if set.flip_x {
        let copies: Vec<Item> = items[start..].to_vec();
        items.extend(copies.into_iter().map(|i| Item { flip_x: true, ..i }));
    }
    if set.flip_y {
        let copies: Vec<Item> = items[start..].to_vec();
        items.extend(copies.into_iter().map(|i| Item { flip_y: true, ..i }));
    }
}

/// Paths of every picture under a folder, sorted.
///
/// # Errors
/// A folder cannot be read.
pub(crate) fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(scan::pictures(folder, false, None)?.pictures.into_iter().map(|found| found.path).collect())
}

/// Decodes every picture, and every mask, of a list of items and returns those that are not whole: [`load`]
/// reads headers alone.
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

/// Most bytes of a caption.
const LONGEST_CAPTION: u64 = 1 << 20;

/// Reads the header of a picture and its caption.
fn read(
    set: &job::Dataset,
    captions: &Captions<'_>,
    masks: Option<&mask::Finder<'_>>,
    found: &scan::Found,
    stream: u64,
) -> Result<Usable> {
    let (width, height) = size(&found.path)?;
    let scaled = |side: usize| ((side as f64 * set.scale) as usize).max(1);
    let crop = crop_of(set);
    for &resolution in &set.resolutions {
        let (wide, high) = (scaled(width), scaled(height));
        if !picture::can_be_resized_to((wide, high))
            || !picture::can_be_resized_to(crop(wide, high, resolution).scaled)
        {
            let reason = format!("it is too long and narrow to be resized: {width} × {height}");
            return Err(Error::picture(&found.path, reason));
        }
    }
    let file = match &found.caption {
        Some(caption) => Some(caption.clone()),
        None => read_caption(&found.path, &set.caption_ext)?,
    };
    Ok(Usable {
        path: found.path.clone(),
        size: (scaled(width), scaled(height)),
        captions: captions.of(file.as_deref(), stream),
        is_captioned: file.is_some_and(|text| !text.trim().is_empty()),
        mask: masks.and_then(|masks| masks.of(&found.path)),
    })
}

/// The text beside a picture, in a file of its name with this extension; `None` if there is no such file.
pub(crate) fn read_caption(picture: &Path, extension: &str) -> Result<Option<String>> {
    let path = caption_path(picture, extension);
    match file::read(&path, LONGEST_CAPTION) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| Error::Caption { path }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Where the caption of a picture is looked for.
fn caption_path(picture: &Path, extension: &str) -> PathBuf {
    let mut name = picture.file_stem().unwrap_or_default().to_os_string();
    name.push(extension);
    picture.with_file_name(name)
}

/// Puts a list in an order drawn from a stream (Fisher and Yates).
fn shuffle<T>(list: &mut [T], random: Philox, stream: u64) {
    for last in (1..list.len()).rev() {
        list.swap(last, random.below(stream, last as u64, last + 1));
    }
}

#[cfg(test)]
pub(crate) mod tests;
