//! Latents of pictures.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tenggat_models::qwen_image::geometry;

use super::kept::{self, ENCODER, SOURCE};
use super::{Settings, Unfit, Usage, name, source};
use crate::data::pictures::Item;
use crate::files::python_json;
use crate::files::tensor_file::Entry;

/// Name of the tensor.
const KEY: &str = "latent";

/// The normalised latent of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    /// Channels.
    pub channels: usize,
    /// Height in latents.
    pub height: usize,
    /// Width in latents.
    pub width: usize,
    /// `[height, width, channels]`.
    pub values: Vec<f32>,
}

/// `[height, width, channels]` → `[channels, height, width]`, as files have it.
fn channels_first(values: &[f32], channels: usize) -> Vec<f32> {
    let area = values.len() / channels.max(1);
    (0..values.len()).map(|i| values[i % area * channels + i / area]).collect()
}

/// `[channels, height, width]` → `[height, width, channels]`.
fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    let area = values.len() / channels.max(1);
    (0..values.len()).map(|i| values[i % channels * area + i / channels]).collect()
}

impl Latent {
    fn entry(&self, dtype: crate::job::SaveType) -> Entry<'static> {
        let shape = vec![self.channels, self.height, self.width];
        Entry::floats(KEY.into(), shape, &channels_first(&self.values, self.channels), dtype)
    }
}

/// Latents of items, in their order: from cache files where they are good, else from `encode`, which gets
/// items of one size and gives `None` for a picture that cannot be used. `on_disk` says whose latents are
/// read and written. `channels` is the VAE's.
///
/// # Errors
/// Those of `encode`.
pub fn latents<E>(
    items: &[&Item],
    channels: usize,
    settings: Settings<'_>,
    on_disk: impl Fn(&Item) -> bool,
    mut encode: impl FnMut(&[&Item]) -> Result<Vec<Option<Latent>>, E>,
) -> Result<(Vec<Option<Latent>>, Usage), E> {
    let mut usage = Usage::default();
    let kept = items.iter().filter(|item| on_disk(item));
    let sources = source::digests(kept.map(|item| item.path.as_path()));
    let source = |item: &Item| sources.get(item.path.as_path()).map(String::as_str);
    let wanted = |item: &Item| source(item).filter(|_| on_disk(item));
    let mut found = from_disk(items, channels, settings, wanted, &mut usage);
    let missing: Vec<usize> = (0..items.len()).filter(|&i| found[i].is_none()).collect();
    let size = |i: usize| (items[i].crop.width, items[i].crop.height);
    let mut sizes: Vec<_> = missing.iter().map(|&i| size(i)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for one in sizes {
        let alike: Vec<usize> = missing.iter().copied().filter(|&i| size(i) == one).collect();
        for group in alike.chunks(settings.at_once.max(1)) {
            let pictures: Vec<&Item> = group.iter().map(|&i| items[i]).collect();
            for (&i, latent) in group.iter().zip(encode(&pictures)?) {
                let Some(mut latent) = latent else { continue };
                if on_disk(items[i]) {
                    super::rounded(&mut latent.values, settings.dtype);
                    write(items[i], &latent, settings, source(items[i]), &mut usage);
                }
                usage.encoded += 1;
                found[i] = Some(latent);
            }
        }
    }
    Ok((found, usage))
}

/// Latents from their files, of items that have a source.
fn from_disk<'s>(
    items: &[&Item],
    channels: usize,
    settings: Settings<'_>,
    source: impl Fn(&Item) -> Option<&'s str>,
    usage: &mut Usage,
) -> Vec<Option<Latent>> {
    let mut found = Vec::with_capacity(items.len());
    let mut unnamed = Vec::new();
    for &item in items {
        let path = name::latent_path(item);
        let read = source(item).map(|source| read(&path, item, channels, settings, source));
        match &read {
            Some(Ok((_, false))) => unnamed.push((item.path.as_path(), path)),
            Some(Err(Unfit::Changed)) => usage.changed.push(item.path.clone()),
            Some(Err(Unfit::Damaged)) => usage.damaged += 1,
            _ => {}
        }
        found.push(read.and_then(Result::ok).map(|(latent, _)| latent));
    }
    usage.read = found.iter().flatten().count();
    usage.younger = source::younger(&unnamed);
    for list in [&mut usage.changed, &mut usage.younger] {
        list.sort_unstable();
        list.dedup();
    }
    found
}

/// The latent of a file, and whether the file names what it was made from.
fn read(
    path: &Path,
    item: &Item,
    channels: usize,
    settings: Settings<'_>,
    source: &str,
) -> Result<(Latent, bool), Unfit> {
    let kept = kept::read(path, settings.encoder, Some(source))?;
    let tensors = SafeTensors::deserialize(&kept.bytes).map_err(|_| Unfit::Damaged)?;
    let (shape, values) = kept::values(&tensors, KEY).ok_or(Unfit::Damaged)?;
    let (height, width) = geometry::latent_grid((item.crop.width, item.crop.height));
    if shape != [channels, height, width] {
        return Err(Unfit::Missing);
    }
    Ok((Latent { channels, height, width, values: channels_last(&values, channels) }, kept.is_ours))
}

fn write(item: &Item, latent: &Latent, settings: Settings<'_>, source: Option<&str>, usage: &mut Usage) {
    let mut metadata: Vec<(String, String)> = name::latent_info(item)
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, python_json::dumps(&other)),
        })
        .collect();
    let software = json!({ "name": "tenggat", "version": env!("CARGO_PKG_VERSION") });
    metadata.push(("software".into(), python_json::dumps(&software)));
    metadata.push(("format".into(), "pt".into()));
    metadata.push((ENCODER.into(), settings.encoder.into()));
    metadata.extend(source.map(|digest| (SOURCE.into(), digest.into())));
    usage.write(&name::latent_path(item), &metadata, vec![latent.entry(settings.dtype)]);
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::data::pictures::Crop;
    use crate::job::SaveType;

    /// Pictures with this name and later ones cannot be encoded.
    const BROKEN: f32 = 90.0;

    fn settings(encoder: &str) -> Settings<'_> {
        Settings { dtype: SaveType::F32, encoder, at_once: 2 }
    }

    fn items(folder: &Path, sizes: &[(usize, usize)]) -> Vec<Item> {
        let item = |(i, &(w, h)): (usize, &(usize, usize))| {
            let path = folder.join(format!("{i}.png"));
            std::fs::write(&path, format!("picture {i}")).unwrap();
            Item { path, crop: Crop::to_bucket(w, h, 128), ..crate::data::pictures::tests::item() }
        };
        sizes.iter().enumerate().map(item).collect()
    }

    /// Encodes a picture to numbers made of its name; notes the sizes of the groups.
    fn run(items: &[Item], settings: Settings<'_>, on_disk: bool) -> (Vec<Latent>, Usage, Vec<usize>) {
        let mut groups = Vec::new();
        let list: Vec<&Item> = items.iter().collect();
        let encode = |group: &[&Item]| -> Result<Vec<Option<Latent>>, Infallible> {
            groups.push(group.len());
            assert!(group.iter().all(|i| i.crop == group[0].crop));
            let one = |item: &&Item| {
                let (h, w) = (item.crop.height / 8, item.crop.width / 8);
                let first: f32 = item.path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
                let values = (0..16 * h * w).map(|i| first + i as f32 * 0.1).collect();
                (first < BROKEN).then_some(Latent { channels: 16, height: h, width: w, values })
            };
            Ok(group.iter().map(one).collect())
        };
        let (latents, usage) = latents(&list, 16, settings, |_| on_disk, encode).unwrap();
        (latents.into_iter().flatten().collect(), usage, groups)
    }

    #[test]
    fn the_second_run_reads_what_the_first_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let items = items(folder.path(), &[(64, 64), (64, 32), (64, 64), (64, 64), (64, 32)]);
        let (first, usage, groups) = run(&items, settings("a"), true);
        assert_eq!((usage.read, usage.encoded), (0, 5));
        assert!(usage.unwritten.is_none());
        assert_eq!(groups, [2, 2, 1]);
        for (i, latent) in first.iter().enumerate() {
            assert_eq!(latent.values[0], i as f32);
        }
        let (second, usage, groups) = run(&items, settings("a"), true);
        assert_eq!((usage.read, usage.encoded, groups.len()), (5, 0, 0));
        assert_eq!(first, second);
        let (_, usage, _) = run(&items, settings("a"), false);
        assert_eq!((usage.read, usage.encoded), (0, 5));
    }

    #[test]
    fn files_have_upstreams_key_shape_and_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let items = items(folder.path(), &[(64, 32)]);
        run(&items, Settings { dtype: SaveType::Bf16, ..settings("a") }, true);
        let bytes = std::fs::read(name::latent_path(&items[0])).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor("latent").unwrap();
        assert_eq!((view.shape(), view.dtype()), (&[16, 4, 8][..], safetensors::Dtype::BF16));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let of = |key: &str| metadata[key].as_str();
        assert_eq!((of("filename"), of("crop_width"), of("format")), ("0.png", "64", "pt"));
        assert_eq!((of("latent_space_version"), of("latent_version")), ("qwen_image", "1"));
    }

    #[test]
    fn rounding_is_the_same_with_and_without_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let items = items(folder.path(), &[(64, 64)]);
        let half = Settings { dtype: SaveType::F16, ..settings("a") };
        let first = run(&items, half, true).0;
        assert_eq!(run(&items, half, true).0, first);
        assert_ne!(run(&items, half, false).0, first);
    }

    #[test]
    fn bad_files_are_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let items = items(folder.path(), &[(64, 64)]);
        let good = run(&items, settings("a"), true).0;
        let path = name::latent_path(&items[0]);
        let whole = std::fs::read(&path).unwrap();
        let with = |shape: Vec<usize>, values: Vec<f32>, key: &str| {
            let entry = Entry::floats(key.into(), shape, &values, SaveType::F32);
            crate::files::tensor_file::write(&path, &[], &[entry]).unwrap();
        };
        let wrong: [&dyn Fn(); 6] = [
            &|| std::fs::write(&path, &whole[..whole.len() - 1]).unwrap(),
            &|| std::fs::write(&path, b"").unwrap(),
            &|| with(vec![16, 4, 16], vec![0.0; 1024], "latent"),
            &|| with(vec![16, 8, 8], vec![0.0; 1024], "latents"),
            &|| with(vec![16, 8, 8], vec![f32::NAN; 1024], "latent"),
            &|| drop(run(&items, settings("b"), true)),
        ];
        for (i, spoil) in wrong.iter().enumerate() {
            spoil();
            let (again, usage, _) = run(&items, settings("a"), true);
            assert_eq!((usage.encoded, &again), (1, &good), "case {i}");
        }
        // A file of ai-toolkit names no encoder and is taken.
        with(vec![16, 8, 8], vec![0.5; 1024], "latent");
        let (taken, usage, _) = run(&items, settings("a"), true);
        assert_eq!((usage.read, taken[0].values[7]), (1, 0.5));
    }

    #[test]
    fn another_picture_under_the_same_name_is_encoded_anew() {
        let folder = tempfile::tempdir().unwrap();
        let items = items(folder.path(), &[(64, 64), (64, 64)]);
        run(&items, settings("a"), true);
        // Of the same length, and with the time of the first.
        let path = &items[1].path;
        let time = path.metadata().unwrap().modified().unwrap();
        std::fs::write(path, "picture X").unwrap();
        std::fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
        let (_, usage, _) = run(&items, settings("a"), true);
        assert_eq!((usage.read, usage.encoded, &usage.changed[..]), (1, 1, std::slice::from_ref(path)));
        let (_, usage, _) = run(&items, settings("a"), true);
        assert_eq!((usage.read, usage.changed.len(), usage.damaged), (2, 0, 0));
    }

    #[test]
    fn pictures_younger_than_the_files_of_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let items = items(folder.path(), &[(64, 64)]);
        let path = name::latent_path(&items[0]);
        let entry = Entry::floats("latent".into(), vec![16, 8, 8], &[0.5; 1024], SaveType::F32);
        crate::files::tensor_file::write(&path, &[], &[entry]).unwrap();
        let (_, usage, _) = run(&items, settings("a"), true);
        assert_eq!((usage.read, usage.younger.len()), (1, 0));
        let later = path.metadata().unwrap().modified().unwrap() + std::time::Duration::from_secs(60);
        std::fs::File::options().append(true).open(&items[0].path).unwrap().set_modified(later).unwrap();
        let (_, usage, _) = run(&items, settings("a"), true);
        assert_eq!((usage.read, usage.younger), (1, vec![items[0].path.clone()]));
    }

    /// Every flipped bit is either noticed, or in a part of the header that nothing is read from.
    #[test]
    fn flipped_bits_never_change_a_latent() {
        let folder = tempfile::tempdir().unwrap();
        let items = items(folder.path(), &[(64, 64)]);
        let good = run(&items, settings("a"), true).0;
        let path = name::latent_path(&items[0]);
        let whole = std::fs::read(&path).unwrap();
        let mut noticed = 0;
        let places: Vec<usize> = (0..1200).step_by(5).chain((1200..whole.len()).step_by(1999)).collect();
        for &at in &places {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            let (latents, usage, _) = run(&items, settings("a"), true);
            assert_eq!(latents, good, "byte {at}");
            noticed += usage.encoded;
        }
        assert!(noticed * 4 > places.len(), "{noticed} of {}", places.len());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("_latent_cache"), "in the way").unwrap();
        let items = items(folder.path(), &[(64, 64), (64, 64)]);
        let (latents, usage, _) = run(&items, settings("a"), true);
        assert_eq!((latents.len(), usage.encoded), (2, 2));
        assert!(usage.unwritten.unwrap().0.ends_with(name::latent_path(&items[0]).file_name().unwrap()));
    }

    #[test]
    fn a_picture_that_cannot_be_encoded_leaves_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let mut items = items(folder.path(), &[(64, 64), (64, 64), (64, 64)]);
        items[1].path = folder.path().join("90.png");
        let (latents, usage, _) = run(&items, settings("a"), true);
        assert_eq!((usage.encoded, latents.len()), (2, 2));
        assert!(!name::latent_path(&items[1]).exists());
    }

    #[test]
    fn channels_change_places_and_back() {
        let last: Vec<f32> = (0..2 * 3 * 4).map(|i| i as f32).collect();
        let first = channels_first(&last, 4);
        // Channel 1 of the second column of the first row.
        assert_eq!((first[6 + 1], last[4 + 1]), (5.0, 5.0));
        assert_eq!(channels_last(&first, 4), last);
    }
}
