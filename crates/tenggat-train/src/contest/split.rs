//! Pictures of a task as the scorer will see its own, parted into those to train on and those to measure on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::pictures::scaled;
use super::{Error, Result};
use crate::data::pictures;

/// One image in this many is held out, rounded up, as the contest does.
const HELD_OUT_ONE_IN: usize = 10;
/// With fewer pictures none is.
const FEWEST_TO_SPLIT: usize = 5;

/// Folders of prepared pictures.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Split {
    /// Pictures to train on.
    pub train: PathBuf,
    /// Pictures to measure on; `None` if there are too few to spare any.
    pub held_out: Option<PathBuf>,
    /// How many of each.
    pub pictures: (usize, usize),
    /// Pictures that cannot be used.
    pub bad: Vec<String>,
    /// Whether the captions speak of the trigger word.
    pub trigger_in_captions: bool,
}

/// Whether pictures are kept out of the training, to measure on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldOut {
    /// One in ten, if there are enough.
    OneInTen,
    /// None: nothing will measure on them.
    None,
}

/// Scales and cuts every picture of `from` as the scorer does, so that training sees the sizes that are
/// scored, and writes it with its caption to `into/train` or `into/held_out`. Which are held out depends on
/// their names alone.
///
/// # Errors
/// A folder cannot be read or written, or there is no usable picture.
pub fn split(
    from: &Path,
    into: &Path,
    long_side: usize,
    trigger: Option<&str>,
    hold_out: HoldOut,
) -> Result<Split> {
    let paths = pictures::pictures(from)?;
    let read: Vec<_> = paths
        .par_iter()
        .map(|path| {
            // A decoder that panics costs one picture, not the task.
            let read = || Ok((path, scaled(path, long_side)?, caption_of(path)?));
            catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
                Err(pictures::Error::Picture { path: path.clone(), reason: "its decoder failed".into() })
            })
        })
        .collect();
    let bad = read.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string).collect();
    let mut good: Vec<_> = read.into_iter().flatten().collect();
    if good.is_empty() {
        return Err(Error::NoPictures { folder: from.into(), bad });
    }
    good.sort_by_key(|(path, ..)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        <[u8; 32]>::from(Sha256::digest(name.as_bytes()))
    });
    let held = match hold_out {
        HoldOut::OneInTen if good.len() >= FEWEST_TO_SPLIT => good.len().div_ceil(HELD_OUT_ONE_IN),
        _ => 0,
    };
    let (train, held_out) = (into.join("train"), into.join("held_out"));
    for folder in [&train, &held_out] {
        std::fs::create_dir_all(folder).map_err(|e| Error::file("make the folder", folder, e))?;
    }
    let folder = |i: usize| if i < held { &held_out } else { &train };
    let trigger_in_captions = trigger.is_some_and(|word| {
        good.iter().any(|(.., caption)| caption.contains(word) || caption.contains("[trigger]"))
    });
    good.par_iter().enumerate().try_for_each(|(i, (path, (size, rgb), caption))| {
        // The old ending stays, so that files of one name and different kinds stay apart.
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".png");
        let picture = folder(i).join(name);
        let mut bytes = Vec::new();
        let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub);
        let (width, height) = (size.0 as u32, size.1 as u32);
        image::ImageEncoder::write_image(encoder, rgb, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|e| Error::file("write", &picture, std::io::Error::other(e)))?;
        std::fs::write(&picture, bytes).map_err(|e| Error::file("write", &picture, e))?;
        let text = picture.with_extension("txt");
        std::fs::write(&text, caption).map_err(|e| Error::file("write", &text, e))
    })?;
    let held_out = (held > 0).then_some(held_out);
    Ok(Split { train, held_out, pictures: (good.len() - held, held), bad, trigger_in_captions })
}

fn caption_of(picture: &Path) -> pictures::Result<String> {
    Ok(pictures::read_caption(picture, ".txt")?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, RgbImage};

    fn pictures(folder: &Path, n: usize) {
        std::fs::create_dir_all(folder).unwrap();
        for i in 0..n {
            let path = folder.join(format!("{i}.png"));
            RgbImage::from_pixel(40, 80, image::Rgb([i as u8, 0, 0]))
                .save_with_format(&path, ImageFormat::Png)
                .unwrap();
            std::fs::write(path.with_extension("txt"), format!("d0g number {i}")).unwrap();
        }
    }

    #[test]
    fn a_tenth_is_held_out_and_always_the_same() {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        pictures(&from, 11);
        std::fs::write(from.join("broken.png"), "no picture").unwrap();
        let one = split(&from, &root.path().join("one"), 64, Some("d0g"), HoldOut::OneInTen).unwrap();
        let two = split(&from, &root.path().join("two"), 64, Some("cat"), HoldOut::OneInTen).unwrap();
        assert_eq!((one.pictures, one.bad.len()), ((9, 2), 1));
        assert!(one.trigger_in_captions && !two.trigger_in_captions);
        let names = |folder: &Path| {
            let mut names: Vec<_> =
                std::fs::read_dir(folder).unwrap().flatten().map(|e| e.file_name()).collect();
            names.sort();
            names
        };
        let all = split(&from, &root.path().join("all"), 64, None, HoldOut::None).unwrap();
        assert_eq!((all.pictures, all.held_out), ((11, 0), None));
        let held = one.held_out.unwrap();
        assert_eq!(names(&held), names(&two.held_out.unwrap()));
        assert_eq!((names(&held).len(), names(&one.train).len()), (4, 18));
        let picture = image::open(one.train.join(&names(&one.train)[0])).unwrap();
        assert_eq!((picture.width(), picture.height()), (32, 64));
    }

    #[test]
    fn names_that_differ_little_stay_apart() {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        pictures(&from, 2);
        for (old, new) in [("0", "a.b"), ("1", "a_b")] {
            for kind in ["png", "txt"] {
                std::fs::rename(from.join(format!("{old}.{kind}")), from.join(format!("{new}.{kind}")))
                    .unwrap();
            }
        }
        let split = split(&from, &root.path().join("into"), 64, None, HoldOut::OneInTen).unwrap();
        let captions = ["a.b", "a_b"].map(|name| {
            let picture = split.train.join(format!("{name}.png.png"));
            assert!(picture.is_file());
            pictures::read_caption(&picture, ".txt").unwrap().unwrap()
        });
        assert_eq!(captions, ["d0g number 0", "d0g number 1"]);
    }

    #[test]
    fn few_pictures_are_all_trained_on() {
        let root = tempfile::tempdir().unwrap();
        for n in [1, 4] {
            let (from, into) = (root.path().join(format!("from{n}")), root.path().join(format!("into{n}")));
            pictures(&from, n);
            let split = split(&from, &into, 64, None, HoldOut::OneInTen).unwrap();
            assert_eq!((split.pictures, split.held_out), ((n, 0), None));
        }
        std::fs::create_dir(root.path().join("none")).unwrap();
        let message = super::split(&root.path().join("none"), root.path(), 64, None, HoldOut::OneInTen)
            .unwrap_err()
            .to_string();
        assert!(message.contains("none"), "{message}");
    }
}
