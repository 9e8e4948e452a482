//! Pictures that are kept out of training, to measure on.

use std::path::Path;

use super::score::{HeldOut, Picture};
use crate::data::encoding::Encoders;
use crate::data::pictures::{self, Bad};
use crate::data::{Error, Result};
use crate::job::Job;

/// Pictures measured at once: few, so that a measurement can stop at almost any moment of a budget.
const AT_ONCE: usize = 2;

/// Reads a folder of captioned pictures as the job's first data set would be read, without mirroring or
/// dropout, in groups of one size. Broken pictures are left out and returned.
pub(crate) fn load(folder: &Path, job: &Job, encoders: &Encoders<'_>) -> Result<(Vec<HeldOut>, Vec<Bad>)> {
    let Some(first_set) = job.datasets.first() else {
        return Err(Error::Job("the job has no data set".into()));
    };
    let mut set = first_set.clone();
    set.path = folder.to_path_buf();
    (set.flip_x, set.flip_y, set.num_repeats) = (false, false, 1);
    (set.caption_dropout_rate, set.token_dropout_rate, set.shuffle_tokens) = (0.0, 0.0, false);
    set.resolutions.truncate(1);
    let pictures::Loaded { items, mut bad, .. } = pictures::load(&[set], job.compat, job.seed)?;
    let mut pictures = Vec::new();
    for item in &items {
        encoders.interrupt.check()?;
        match pictures::load_bytes(item) {
            Ok(rgb) => pictures.push(Picture {
                caption: item.captions.first().cloned().unwrap_or_default(),
                size: (item.crop.width, item.crop.height),
                rgb,
            }),
            Err(error) => bad.push(Bad { path: item.path.clone(), error: Box::new(error) }),
        }
    }
    if pictures.is_empty() {
        return Err(pictures::Error::Empty { path: folder.to_path_buf(), bad }.into());
    }
    let &Encoders { device, vae, text, .. } = encoders;
    Ok((HeldOut::encode(&pictures, AT_ONCE, device, vae, text)?, bad))
}
