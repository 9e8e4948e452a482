//! Which parts of a picture count. Source: ai-toolkit `toolkit/dataloader_mixins.py`, `load_mask_image`; its
//! random blur, by up to half a percent of the shorter side, is left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::{RgbImage, imageops};

use super::picture::{self, Filter};
use super::{Error, Item, Result, decode, scan};
use crate::job::Masks;

/// Where the mask of a picture is, and how it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// The mask, or the picture itself.
    pub path: PathBuf,
    /// Whether it is the transparency of that file.
    pub of_alpha: bool,
    /// Exchanges black and white.
    pub inverted: bool,
    /// What black counts.
    pub floor: f64,
}

/// The masks of a data set.
pub(super) struct Finder<'a> {
    masks: &'a Masks,
    /// The folder or list of the pictures.
    set: &'a Path,
    /// Files of the mask folder by their path inside of it, without extension.
    files: BTreeMap<PathBuf, PathBuf>,
}

impl<'a> Finder<'a> {
    /// Looks through the mask folder, if there is one.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn new(masks: &'a Masks, set: &'a Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        if let Some(folder) = &masks.folder {
            let unread = |source| Error::Masks { path: folder.clone(), source };
            std::fs::read_dir(folder).map_err(unread)?;
            let rank = |path: &Path| {
                let own = scan::extension(path);
                scan::EXTENSIONS.iter().position(|e| own.as_deref() == Some(*e))
            };
            let mut found = scan::pictures(folder, false, None)?.pictures;
            // Where several have one name, the kind that upstream looks for first.
            found.sort_by_key(|found| rank(&found.path));
            for mask in found {
                let inside = mask.path.strip_prefix(folder).unwrap_or(&mask.path).with_extension("");
                files.entry(inside).or_insert(mask.path);
            }
        }
        Ok(Finder { masks, set, files })
    }

    /// The mask of a picture: the file of its name in the mask folder, in the same folder inside of it or, as
    /// upstream has it, right in it. `None` if there is none, so that all of the picture counts.
    pub(super) fn of(&self, picture: &Path) -> Option<Mask> {
        let masks = self.masks;
        let path = if masks.folder.is_none() {
            picture.to_path_buf()
        } else {
            let inside = picture.strip_prefix(self.set).ok().map(|path| path.with_extension(""));
            let nested = inside.and_then(|inside| self.files.get(&inside));
            nested.or_else(|| self.files.get(Path::new(picture.file_stem()?)))?.clone()
        };
        Some(Mask { path, of_alpha: masks.folder.is_none(), inverted: masks.inverted, floor: masks.floor })
    }

    /// A file of the mask folder, to show what its names look like.
    pub(super) fn example(&self) -> Option<&Path> {
        self.files.values().next().map(PathBuf::as_path)
    }
}

/// The weight of each pixel of the item's crop, `[height, width]`, from the mask's floor to 1; `None` if it
/// has no mask.
///
/// Made grey by ITU-R 601 (or the transparency taken), mirrored, resized and cut as the picture is.
///
/// # Errors
/// The file cannot be read or is no whole picture.
pub fn load_mask(item: &Item) -> Result<Option<Vec<f32>>> {
    let Some(mask) = &item.mask else { return Ok(None) };
    let mut grey = grey(mask)?;
    if item.flip_x {
        imageops::flip_horizontal_in_place(&mut grey);
    }
    if item.flip_y {
        imageops::flip_vertical_in_place(&mut grey);
    }
    let crop = item.crop;
    let scaled = picture::resize(grey, crop.scaled, Filter::Bicubic)
        .map_err(|reason| Error::Picture { path: mask.path.clone(), reason })?;
    let mut weights = Vec::with_capacity(crop.width * crop.height);
    for y in crop.y..crop.y + crop.height {
        for x in crop.x..crop.x + crop.width {
            let share = f64::from(scaled.get_pixel(x as u32, y as u32)[0]) / 255.0;
            weights.push((mask.floor + (1.0 - mask.floor) * share) as f32);
        }
    }
    Ok(Some(weights))
}

/// The mask as a grey picture, upright.
fn grey(mask: &Mask) -> Result<RgbImage> {
    let whole = decode::upright(&mask.path)?;
    let invert = |value: u8| if mask.inverted { 255 - value } else { value };
    let one = |value: u8| image::Rgb([value; 3]);
    if mask.of_alpha {
        let pixels = whole.into_rgba8();
        let (width, height) = pixels.dimensions();
        return Ok(RgbImage::from_fn(width, height, |x, y| one(invert(pixels.get_pixel(x, y)[3]))));
    }
    let pixels = whole.into_rgb8();
    let (width, height) = pixels.dimensions();
    Ok(RgbImage::from_fn(width, height, |x, y| {
        let [r, g, b] = pixels.get_pixel(x, y).0.map(|v| u32::from(invert(v)));
        // Pillow's 16-bit weights of 0.299, 0.587 and 0.114.
        one(((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::{Crop, tests};
    use super::*;

    fn weights(folder: &Path, masks: &Masks) -> Option<Vec<f32>> {
        let path = folder.join("a.png");
        let crop = Crop { scaled: (4, 2), x: 1, y: 0, width: 3, height: 2 };
        let mask = Finder::new(masks, folder).unwrap().of(&path);
        load_mask(&Item { path, crop, mask, ..tests::item() }).unwrap()
    }

    #[test]
    fn masks_are_cut_as_the_picture_is() {
        let folder = tempfile::tempdir().unwrap();
        let masks = folder.path().join("masks");
        std::fs::create_dir(&masks).unwrap();
        let grey = |x: u32, y: u32| (60 * x + 10 * y) as u8;
        let mask = RgbImage::from_fn(4, 2, |x, y| image::Rgb([grey(x, y); 3]));
        mask.save(masks.join("a.png")).unwrap();
        let of = |inverted, floor| {
            let masks = Masks { folder: Some(masks.clone()), inverted, floor };
            weights(folder.path(), &masks).unwrap()
        };
        let expected = |f: &dyn Fn(f64) -> f64| -> Vec<f32> {
            let at = |i: u32| f(f64::from(grey(1 + i % 3, i / 3))) as f32;
            (0..6).map(at).collect()
        };
        assert_eq!(of(false, 0.0), expected(&|g| g / 255.0));
        assert_eq!(of(true, 0.0), expected(&|g| (255.0 - g) / 255.0));
        assert_eq!(of(false, 0.5), expected(&|g| 0.5 + 0.5 * g / 255.0));
        std::fs::rename(masks.join("a.png"), masks.join("b.png")).unwrap();
        let none = Masks { folder: Some(masks.clone()), inverted: false, floor: 0.0 };
        assert_eq!(weights(folder.path(), &none), None);
        let missing = Masks { folder: Some(folder.path().join("msaks")), ..none };
        let error = Finder::new(&missing, folder.path()).err().unwrap().to_string();
        assert!(error.contains("msaks") && error.contains("check `mask_path`"), "{error}");
    }

    #[test]
    fn masks_are_found_by_name_in_the_same_folder_first() {
        let folder = tempfile::tempdir().unwrap();
        let (set, masks) = (folder.path().join("pics"), folder.path().join("m"));
        for name in ["sub/a.png", "a.png", "b.JPG", "c.webp", "c.png", "deep/d.png"] {
            let path = masks.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let wanted = Masks { folder: Some(masks.clone()), inverted: false, floor: 0.0 };
        let finder = Finder::new(&wanted, &set).unwrap();
        let of = |name: &str| {
            let mask = finder.of(&set.join(name))?;
            Some(mask.path.strip_prefix(&masks).unwrap().to_str().unwrap().to_owned())
        };
        let cases = [
            ("sub/a.jpg", Some("sub/a.png")),
            ("a.jpg", Some("a.png")),
            ("other/a.jpg", Some("a.png")),
            ("b.png", Some("b.JPG")),
            ("c.png", Some("c.png")),
            ("deep/d.png", Some("deep/d.png")),
            ("d.png", None),
            ("e.png", None),
        ];
        for (name, expected) in cases {
            assert_eq!(of(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn transparency_is_a_mask() {
        let folder = tempfile::tempdir().unwrap();
        let alpha = |x: u32| (x * 80) as u8;
        image::RgbaImage::from_fn(4, 2, |x, _| image::Rgba([9, 9, 9, alpha(x)]))
            .save(folder.path().join("a.png"))
            .unwrap();
        let masks = Masks { folder: None, inverted: false, floor: 0.0 };
        let row = [80, 160, 240].map(|a: u8| f32::from(a) / 255.0);
        assert_eq!(weights(folder.path(), &masks).unwrap(), [row, row].concat());
        RgbImage::new(4, 2).save(folder.path().join("a.png")).unwrap();
        assert_eq!(weights(folder.path(), &masks).unwrap(), [1.0; 6]);
    }

    #[test]
    fn colours_are_weighed_as_pillow_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.png");
        RgbImage::from_pixel(1, 1, image::Rgb([10, 200, 90])).save(&path).unwrap();
        let mask = Mask { path, of_alpha: false, inverted: false, floor: 0.0 };
        // Image.new("RGB", (1, 1), (10, 200, 90)).convert("L").getpixel((0, 0)) of Pillow.
        assert_eq!(super::grey(&mask).unwrap().get_pixel(0, 0)[0], 131);
    }

    #[test]
    fn a_broken_mask_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.png");
        std::fs::write(&path, "no picture").unwrap();
        let mask = Some(Mask { path, of_alpha: false, inverted: false, floor: 0.0 });
        let error = load_mask(&Item { mask, ..tests::item() }).unwrap_err().to_string();
        assert!(error.contains("m.png is not a usable image"), "{error}");
    }
}
