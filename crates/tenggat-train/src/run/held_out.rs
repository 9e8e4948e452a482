//! Pictures that are kept out of training, to measure on.

use std::path::Path;

use tenggat_models::qwen_image::vae::Vae;
use tenggat_models::qwen_image::{PromptEncoder, TextBatch};
use tenggat_tensor::{Device, Tensor, ops::copy};

use super::data::grid_of;
use super::encoding::encode_pictures;
use super::{Error, Result};
use crate::dataset::{self, Item};
use crate::job::Job;
use crate::score::HeldOut;

/// Pictures measured at once: few, so that a measurement can stop at almost any moment of a budget.
const AT_ONCE: usize = 2;

/// Reads a folder of captioned pictures as the job's first data set would be read, without mirroring or dropout, in
/// groups of one size.
pub(super) fn load(
    folder: &Path,
    job: &Job,
    device: &Device,
    vae: &Vae,
    text: &PromptEncoder,
) -> Result<Vec<HeldOut>> {
    let Some(first_set) = job.datasets.first() else {
        return Err(Error::Job("the job has no data set".into()));
    };
    let mut set = first_set.clone();
    set.path = folder.to_path_buf();
    (set.flip_x, set.flip_y, set.num_repeats) = (false, false, 1);
    (set.caption_dropout_rate, set.token_dropout_rate, set.shuffle_tokens) = (0.0, 0.0, false);
    set.resolutions.truncate(1);
    let (items, _) = dataset::load(&[set], job.compat, job.seed)?;
    let refs: Vec<&Item> = items.iter().collect();
    let size = |item: &Item| (item.crop.width, item.crop.height);
    let empty = text.encode_each(&[""])?;
    let mut groups = Vec::new();
    let mut rest = &refs[..];
    while let Some(&next) = rest.first() {
        let n = rest.iter().take(AT_ONCE).take_while(|item| size(item) == size(next)).count();
        let (some, after) = rest.split_at(n);
        let (pictures, each) = encode_pictures(device, vae, some)?;
        let captions: Vec<&str> =
            some.iter().filter_map(|item| item.captions.first().map(String::as_str)).collect();
        let labels = captions.iter().map(|c| c.to_string()).collect();
        let captions = text.encode_each(&captions)?;
        groups.push(HeldOut {
            labels,
            first: refs.len() - rest.len(),
            latents: concatenate(&each)?,
            pictures,
            grid: grid_of(next),
            captions: TextBatch::new(&captions.iter().collect::<Vec<_>>())?,
            empty: TextBatch::new(&empty.iter().cycle().take(n).collect::<Vec<_>>())?,
        });
        rest = after;
    }
    Ok(groups)
}

/// `[tokens, channels]` each → `[n, tokens, channels]`.
fn concatenate(each: &[Tensor]) -> Result<Tensor> {
    let [tokens, channels] = each.first().map_or([0, 0], |t| t.view().shape());
    let Some(first) = each.first() else {
        return Err(Error::Job("there are no held-out pictures".into()));
    };
    let mut all = first.empty_like(&[each.len(), tokens, channels])?;
    for (i, one) in each.iter().enumerate() {
        copy::forward(one.view(), all.view_mut().row_range(i * tokens..(i + 1) * tokens))?;
    }
    Ok(all)
}
