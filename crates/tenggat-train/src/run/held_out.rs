//! Pictures that are kept out of training, to measure on.

use std::path::Path;

use tenggat_models::qwen_image::vae::Vae;
use tenggat_models::qwen_image::{PromptEncoder, TextBatch};
use tenggat_tensor::{Device, Tensor, ops::copy};

use super::data::{encode_pictures, grid_of};
use super::{Error, Result};
use crate::dataset::{self, Item};
use crate::job::Job;
use crate::score::HeldOut;

/// Reads a folder of captioned pictures as the job's first data set would be read, without mirroring or dropout.
/// All pictures must come out at one size.
pub(super) fn load(
    folder: &Path,
    job: &Job,
    device: &Device,
    vae: &Vae,
    text: &PromptEncoder,
) -> Result<HeldOut> {
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
    if let Some(odd) = items.iter().find(|item| size(item) != size(&items[0])) {
        return Err(Error::Job(format!(
            "held-out pictures must come out at one size, but {} is {:?} and {} is {:?} pixels",
            items[0].path.display(),
            size(&items[0]),
            odd.path.display(),
            size(odd)
        )));
    }
    let (pictures, each) = encode_pictures(device, vae, &refs)?;
    let captions: Vec<&str> =
        items.iter().filter_map(|item| item.captions.first().map(String::as_str)).collect();
    let captions = text.encode_each(&captions)?;
    let empty = text.encode_each(&[""])?;
    let all = |texts: Vec<&Tensor>| TextBatch::new(&texts);
    Ok(HeldOut {
        latents: concatenate(&each)?,
        pictures,
        grid: grid_of(&items[0]),
        captions: all(captions.iter().collect())?,
        empty: all(empty.iter().cycle().take(items.len()).collect())?,
    })
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
