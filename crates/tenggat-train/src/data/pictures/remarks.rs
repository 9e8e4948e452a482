//! What a user should know of a data set before hours are spent on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Usable, bucket, caption_path, mask, scan};
use crate::job;

/// Files that are named in one sentence.
const NAMED: usize = 3;

/// Extensions that captions are kept under, in lower case.
const CAPTIONS: [&str; 7] = ["txt", "caption", "captions", "cap", "text", "tags", "json"];

/// Below this share of the resolution's pixels, an image is mostly blur.
const FEWEST_PIXELS: f64 = 1.0 / 16.0;

/// A side this many times the other is seldom meant.
const LONGEST_SIDE: usize = 8;

/// Remarks on a data set, a sentence each.
pub(super) fn of(
    set: &job::Dataset,
    usable: &[Usable],
    listing: &scan::Listing,
    masks: Option<&mask::Finder<'_>>,
) -> Vec<String> {
    let found = [
        unread(&listing.unread),
        passed(&listing.passed),
        without_caption(set, usable),
        json_captions(set, usable),
        without_mask(set, usable, masks),
        small(set, usable),
        narrow(set, usable),
    ];
    found.into_iter().flatten().map(|remark| format!("{}: {remark}", set.path.display())).collect()
}

/// The names of the first files of a list.
fn names<'a>(paths: impl IntoIterator<Item = &'a Path>) -> String {
    let paths: Vec<&Path> = paths.into_iter().collect();
    let name = |path: &&Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut text = paths.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    if paths.len() > NAMED {
        text.push_str(&format!(" and {} more", paths.len() - NAMED));
    }
    text
}

/// "1 image is", "3 images are".
fn images(n: usize, verb: (&str, &str)) -> String {
    if n == 1 { format!("1 image {}", verb.0) } else { format!("{n} images {}", verb.1) }
}

/// "1 of 5 images has", "2 of 5 images have".
fn share(n: usize, of: usize) -> String {
    format!("{n} of {of} image{} {}", if of == 1 { "" } else { "s" }, if n == 1 { "has" } else { "have" })
}

fn unread(paths: &[PathBuf]) -> Option<String> {
    if paths.is_empty() {
        return None;
    }
    let kinds: BTreeSet<String> = paths.iter().filter_map(|path| scan::extension(path)).collect();
    let kinds: Vec<String> = kinds.into_iter().collect();
    let count = images(paths.len(), ("has a format", "have formats"));
    let names = names(paths.iter().map(PathBuf::as_path));
    Some(format!("{count} that tenggat does not read ({}): {names}; save as PNG or JPEG", kinds.join(", ")))
}

fn passed(folders: &[PathBuf]) -> Option<String> {
    if folders.is_empty() {
        return None;
    }
    let names = names(folders.iter().map(PathBuf::as_path));
    Some(format!("images in {names} are not trained on, since they are masks or thumbnails"))
}

/// Images without a caption, with what lies beside them. A trigger word alone is a caption too, unless
/// somebody wrote texts that are not found.
fn without_caption(set: &job::Dataset, usable: &[Usable]) -> Option<String> {
    if set.default_caption.is_some() {
        return None;
    }
    let missing: Vec<&Path> =
        usable.iter().filter(|one| !one.is_captioned).map(|p| p.path.as_path()).collect();
    let (&first, extension) = (missing.first()?, &set.caption_ext);
    let mut folders = BTreeMap::new();
    let beside = missing.iter().find_map(|path| {
        let near = text_beside(path, extension, &mut folders)?;
        Some((*path, near))
    });
    let count = share(missing.len(), usable.len());
    let list = names(missing.iter().copied());
    let wanted = |path: &Path| caption_path(path, extension).file_name().map(|name| name.to_os_string());
    let name = |name: Option<OsString>| name.unwrap_or_default().to_string_lossy().into_owned();
    match beside {
        Some((path, near)) => Some(format!(
            "{count} no caption ({list}): {} has {} beside it, but `caption_ext` asks for {}",
            names([path]),
            near.to_string_lossy(),
            name(wanted(path)),
        )),
        None if set.trigger_word.is_some() => None,
        None => Some(format!("{count} no caption ({list}); write it into {}", name(wanted(first)))),
    }
}

/// The name of a file that may be a picture's caption under another name.
fn text_beside(
    picture: &Path,
    extension: &str,
    folders: &mut BTreeMap<PathBuf, Vec<OsString>>,
) -> Option<OsString> {
    let folder = picture.parent()?;
    let list = folders.entry(folder.to_path_buf()).or_insert_with(|| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut list: Vec<OsString> = entries.map(|entry| entry.file_name()).collect();
        list.sort();
        list
    });
    let whole = picture.file_name()?.to_string_lossy().to_lowercase();
    let stem = picture.file_stem()?.to_string_lossy().to_lowercase();
    let asked = caption_path(picture, extension);
    let is_near = |name: &&OsString| {
        let name = name.to_string_lossy().to_lowercase();
        let Some((before, extension)) = name.rsplit_once('.') else { return false };
        (before == whole || before == stem) && CAPTIONS.contains(&extension)
    };
    let is_written = |name: &&OsString| {
        let path = folder.join(name);
        path != asked && path.metadata().is_ok_and(|m| m.is_file() && m.len() > 0)
    };
    list.iter().filter(is_near).find(is_written).cloned()
}

fn json_captions(set: &job::Dataset, usable: &[Usable]) -> Option<String> {
    let is_json = set.caption_ext.to_lowercase().ends_with("json");
    (is_json && usable.iter().any(|one| one.is_captioned)).then(|| {
        "captions are plain text: those in .json files are trained on as they are, braces included".into()
    })
}

fn without_mask(set: &job::Dataset, usable: &[Usable], masks: Option<&mask::Finder<'_>>) -> Option<String> {
    let folder = set.masks.as_ref()?.folder.as_ref()?.display();
    let missing = usable.iter().filter(|one| one.mask.is_none()).map(|one| one.path.as_path());
    let missing: Vec<&Path> = missing.collect();
    if missing.is_empty() {
        return None;
    }
    let count = share(missing.len(), usable.len());
    let list = names(missing.iter().copied());
    let hint = match masks.and_then(mask::Finder::example).filter(|_| missing.len() == usable.len()) {
        Some(example) => format!("; a mask is named like its image, but the folder has {}", names([example])),
        None => String::new(),
    };
    Some(format!("{count} no mask in {folder}, so the whole image counts: {list}{hint}"))
}

fn small(set: &job::Dataset, usable: &[Usable]) -> Option<String> {
    let side = *set.resolutions.iter().min()?;
    let fewest = (side * side) as f64 * FEWEST_PIXELS;
    let is_small = |one: &&Usable| ((one.size.0 * one.size.1) as f64) < fewest;
    let few: Vec<&Path> = usable.iter().filter(is_small).map(|one| one.path.as_path()).collect();
    let count = images(few.len(), ("is", "are"));
    let names = names(few.iter().copied());
    (!few.is_empty()).then(|| format!("{count} much smaller than the resolution of {side}: {names}"))
}

fn narrow(set: &job::Dataset, usable: &[Usable]) -> Option<String> {
    let is_narrow = |one: &&Usable| {
        let (short, long) = (one.size.0.min(one.size.1), one.size.0.max(one.size.1));
        long > LONGEST_SIDE * short && !set.square_crop
    };
    let few: Vec<&Usable> = usable.iter().filter(is_narrow).collect();
    let first = few.first()?;
    let side = *set.resolutions.iter().max()?;
    let (width, height) = bucket(first.size.0, first.size.1, side, super::DIVISIBLE_BY);
    let count = images(few.len(), ("is", "are"));
    let names = names(few.iter().map(|one| one.path.as_path()));
    Some(format!("{count} very long and narrow: {names}; the first is trained on at {width} × {height}"))
}
