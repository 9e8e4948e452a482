//! Test pictures as the contest's scorer prepares them.

use std::path::Path;

use image::RgbImage;
use tenggat_models::qwen_image::geometry::TOKEN_PX;

use crate::data::pictures::{self, Error, Filter, Result};
use crate::measure::score::Picture;

/// Every picture under a folder with the caption beside it, sorted by path: the long side made `long_side`
/// (Lanczos), the middle cut to sides that are multiples of 16. Pictures are not turned by their EXIF
/// orientation: the scorer does not. Source: rayonlabs/G.O.D `validator/evaluation/image_test_data.py`.
///
/// # Errors
/// A picture cannot be read, is too long and narrow, or has no caption; or there is none.
pub fn test_pictures(folder: &Path, long_side: usize) -> Result<Vec<Picture>> {
    let pictures: Vec<Picture> =
        pictures::pictures(folder)?.iter().map(|path| read(path, long_side)).collect::<Result<_>>()?;
    if pictures.is_empty() {
        return Err(Error::Empty { path: folder.into(), bad: Vec::new() });
    }
    Ok(pictures)
}

fn read(path: &Path, long_side: usize) -> Result<Picture> {
    let (size, rgb) = scaled(path, long_side)?;
    let caption = pictures::read_caption(path, ".txt")?.filter(|caption| !caption.trim().is_empty());
    let Some(caption) = caption else {
        return Err(Error::Uncaptioned { path: path.into() });
    };
    Ok(Picture { caption, size, rgb })
}

/// One picture as the scorer sees it: width and height, and its bytes `[h, w, 3]`.
pub(super) fn scaled(path: &Path, long_side: usize) -> Result<((usize, usize), Vec<u8>)> {
    let unusable = |reason: String| Error::Picture { path: path.into(), reason };
    let picture = pictures::as_stored(path)?.into_rgb8();
    let scaled = scaled_size(picture.width() as usize, picture.height() as usize, long_side);
    let size = (scaled.0 / TOKEN_PX * TOKEN_PX, scaled.1 / TOKEN_PX * TOKEN_PX);
    if size.0 == 0 || size.1 == 0 {
        return Err(unusable(format!("it is too long and narrow: {} x {} at that size", scaled.0, scaled.1)));
    }
    let scaled = pictures::resize(picture, scaled, Filter::Lanczos).map_err(&unusable)?;
    Ok((size, middle(&scaled, size)))
}

/// Sizes as the scorer computes them, in double precision, cut off.
fn scaled_size(width: usize, height: usize, long_side: usize) -> (usize, usize) {
    let (w, h, long) = (width as f64, height as f64, long_side as f64);
    if width > height { (long_side, (h / w * long) as usize) } else { ((w / h * long) as usize, long_side) }
}

fn middle(picture: &RgbImage, (width, height): (usize, usize)) -> Vec<u8> {
    let (left, top) = ((picture.width() as usize - width) / 2, (picture.height() as usize - height) / 2);
    let row = 3 * picture.width() as usize;
    let rows = picture.as_raw().chunks_exact(row.max(1)).skip(top).take(height);
    rows.flat_map(|pixels| pixels[3 * left..3 * (left + width)].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_scorers() {
        assert_eq!(scaled_size(1920, 1080, 1024), (1024, 576));
        assert_eq!(scaled_size(1000, 1333, 1024), (768, 1024));
        assert_eq!(scaled_size(500, 500, 1024), (1024, 1024));
    }

    #[test]
    fn pictures_are_scaled_and_cut_and_need_captions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        RgbImage::from_fn(100, 60, |x, _| image::Rgb([x as u8, 0, 9])).save(&path).unwrap();
        let error = test_pictures(folder.path(), 64).unwrap_err().to_string();
        assert!(error.contains("a.txt"), "{error}");
        std::fs::write(folder.path().join("a.txt"), "a fox").unwrap();
        let pictures = test_pictures(folder.path(), 64).unwrap();
        // 64 × 38, cut to 64 × 32.
        assert_eq!(pictures[0].size, (64, 32));
        assert_eq!(pictures[0].rgb.len(), 3 * 64 * 32);
        assert_eq!(pictures[0].caption, "a fox");
        assert!(pictures[0].rgb.chunks_exact(3).all(|p| p[1] == 0 && p[2] == 9));
        assert!(test_pictures(&folder.path().join("none"), 64).is_err());
    }
}
