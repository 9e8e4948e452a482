//! Picture files: their size, and their pixels as the VAE takes them.

use std::path::Path;

use fast_image_resize as fir;
use image::{RgbImage, imageops};

use super::limits::MOST_PIXELS;
use super::{Error, Item, Result, decode};

/// Width and height of a picture after its orientation; reads the header alone.
///
/// # Errors
/// The file cannot be read or is no picture.
pub fn size(path: &Path) -> Result<(usize, usize)> {
    decode::size(path)
}

/// Pixels of a training picture, `[height, width, 3]` of the item's crop, red first, from −1 to 1. See
/// [`load_bytes`].
///
/// # Errors
/// The file cannot be read or is no whole picture.
pub fn load_pixels(item: &Item) -> Result<Vec<f32>> {
    let bytes = load_bytes(item)?;
    Ok(bytes.into_iter().map(|b| f32::from(b) / 255.0 * 2.0 - 1.0).collect())
}

/// The same pixels as bytes.
///
/// Turned upright, made RGB (transparency is left out, not blended), mirrored, resized with
/// Pillow's antialiased bicubic filter (a = −0.5), cut. Source: ai-toolkit `toolkit/dataloader_mixins.py`,
/// `load_and_process_image`.
///
/// # Errors
/// The file cannot be read or is no whole picture.
pub fn load_bytes(item: &Item) -> Result<Vec<u8>> {
    let mut picture = open(&item.path)?;
    if item.flip_x {
        imageops::flip_horizontal_in_place(&mut picture);
    }
    if item.flip_y {
        imageops::flip_vertical_in_place(&mut picture);
    }
    let crop = item.crop;
    let scaled = resize(picture, crop.scaled, Filter::Bicubic)
        .map_err(|reason| Error::Picture { path: item.path.clone(), reason })?;
    let row = scaled.width() as usize * 3;
    let bytes = scaled.as_raw();
    let mut pixels = Vec::with_capacity(crop.width * crop.height * 3);
    for y in crop.y..crop.y + crop.height {
        let start = y * row + crop.x * 3;
        pixels.extend_from_slice(&bytes[start..start + crop.width * 3]);
    }
    Ok(pixels)
}

/// A whole picture at the size of its bucket, which may change its proportions a little: width and height,
/// and its RGB bytes.
///
/// # Errors
/// The file cannot be read or is no whole picture.
pub fn load_whole(path: &Path, resolution: usize) -> Result<((usize, usize), Vec<u8>)> {
    let picture = open(path)?;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let size = super::bucket(width, height, resolution, super::DIVISIBLE_BY);
    let scaled = resize(picture, size, Filter::Bicubic).map_err(|reason| Error::picture(path, reason))?;
    Ok((size, scaled.into_raw()))
}

/// The picture, upright, as RGB.
pub(super) fn open(path: &Path) -> Result<RgbImage> {
    Ok(decode::upright(path)?.into_rgb8())
}

/// Antialiased filters of Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// `BICUBIC`.
    Bicubic,
    /// `LANCZOS`.
    Lanczos,
}

/// Whether a size is one that there is memory for. A picture of one row would otherwise become as high as a
/// bucket, and as many times wider.
pub(super) fn can_be_resized_to((width, height): (usize, usize)) -> bool {
    width.checked_mul(height).is_some_and(|pixels| pixels as u64 <= MOST_PIXELS)
}

/// Resizes as Pillow does.
///
/// # Errors
/// The size is one that there is no memory for.
pub(crate) fn resize(
    picture: RgbImage,
    (width, height): (usize, usize),
    filter: Filter,
) -> std::result::Result<RgbImage, String> {
    if !can_be_resized_to((width, height)) {
        return Err(format!("it is too long and narrow: {width} × {height} after resizing"));
    }
    let (w, h) = (width as u32, height as u32);
    if picture.dimensions() == (w, h) {
        return Ok(picture);
    }
    let (from_w, from_h) = picture.dimensions();
    let source = fir::images::Image::from_vec_u8(from_w, from_h, picture.into_raw(), fir::PixelType::U8x3)
        .map_err(|e| e.to_string())?;
    let mut scaled = fir::images::Image::new(w, h, fir::PixelType::U8x3);
    let filter = match filter {
        Filter::Bicubic => fir::FilterType::CatmullRom,
        Filter::Lanczos => fir::FilterType::Lanczos3,
    };
    let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter));
    fir::Resizer::new().resize(&source, &mut scaled, &options).map_err(|e| e.to_string())?;
    RgbImage::from_raw(w, h, scaled.into_vec()).ok_or_else(|| "resizing lost pixels".into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::super::{Crop, tests};
    use super::*;

    fn pattern(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([0, 1, 2].map(|c| ((x * 37 + y * 59 + c * 101 + x * y * 7) % 256) as u8))
        })
    }

    /// `Image.resize(size, Image.BICUBIC)` of Pillow 12 on the same pattern: single values and the sum of
    /// all. Both libraries round their filters to fixed point, at different widths, hence the 1.
    #[test]
    fn resizing_is_pillows() {
        let cases = [
            (
                (50, 40),
                (34, 28),
                366_185,
                [(0, 0, [25, 131, 158]), (5, 3, [141, 110, 150]), (1, 26, [174, 67, 177])],
            ),
            (
                (10, 9),
                (16, 15),
                90_086,
                [(0, 0, [0, 94, 214]), (5, 3, [83, 73, 205]), (15, 14, [6, 147, 247])],
            ),
        ];
        for ((w, h), to, sum, values) in cases {
            let resized = resize(pattern(w, h), to, Filter::Bicubic).unwrap();
            for (x, y, expected) in values {
                let got = resized.get_pixel(x, y).0;
                assert!(
                    got.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) <= 1),
                    "{x} {y}: {got:?} {expected:?}"
                );
            }
            let got: u64 = resized.as_raw().iter().map(|&b| u64::from(b)).sum();
            assert!(got.abs_diff(sum) < sum / 2000, "{got} {sum}");
        }
    }

    fn item(path: &Path, crop: Crop) -> Item {
        Item { path: path.into(), crop, ..tests::item() }
    }

    #[test]
    fn pixels_are_cut_scaled_and_mirrored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let picture = pattern(8, 6);
        picture.save(&path).unwrap();
        let crop = Crop { scaled: (8, 6), x: 1, y: 2, width: 4, height: 3 };
        let value = |x: u32, y: u32, c: usize| f32::from(picture.get_pixel(x, y)[c]) / 255.0 * 2.0 - 1.0;
        let plain = load_pixels(&item(&path, crop)).unwrap();
        assert_eq!(plain.len(), 4 * 3 * 3);
        assert_eq!((plain[0], plain[5]), (value(1, 2, 0), value(2, 2, 2)));
        assert_eq!(plain[(2 * 4 + 3) * 3 + 1], value(4, 4, 1));
        let mirrored = Item { flip_x: true, flip_y: true, ..item(&path, crop) };
        assert_eq!(load_pixels(&mirrored).unwrap()[0], value(8 - 1 - 1, 6 - 1 - 2, 0));
        assert!(plain.iter().all(|v| (-1.0..=1.0).contains(v)));
    }

    /// An orientation of 6 says: turn right by a quarter.
    #[test]
    fn exif_orientation_is_honoured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("turned.jpg");
        let left_white = RgbImage::from_fn(32, 16, |x, _| image::Rgb([if x < 16 { 255 } else { 0 }; 3]));
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
        encoder.write_image(left_white.as_raw(), 32, 16, ExtendedColorType::Rgb8).unwrap();
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(size(&path).unwrap(), (16, 32));
        let pixels =
            load_pixels(&item(&path, Crop { scaled: (16, 32), x: 0, y: 0, width: 16, height: 32 })).unwrap();
        let (top, bottom) = (pixels[(2 * 16 + 8) * 3], pixels[(29 * 16 + 8) * 3]);
        assert!(top > 0.9 && bottom < -0.9, "{top} {bottom}");
    }

    #[test]
    fn other_kinds_of_pixels_become_rgb() {
        let folder = tempfile::tempdir().unwrap();
        let crop = Crop { scaled: (2, 2), x: 0, y: 0, width: 2, height: 2 };
        let grey = folder.path().join("grey16.png");
        image::ImageBuffer::<image::Luma<u16>, _>::from_pixel(2, 2, image::Luma([65535]))
            .save(&grey)
            .unwrap();
        assert_eq!(load_pixels(&item(&grey, crop)).unwrap(), [1.0; 12]);
        let clear = folder.path().join("clear.png");
        image::RgbaImage::from_pixel(2, 2, image::Rgba([255, 0, 255, 0])).save(&clear).unwrap();
        assert_eq!(load_pixels(&item(&clear, crop)).unwrap()[..3], [1.0, -1.0, 1.0]);
    }

    /// Colours in the middle of the four quarters, as `Image.open(…).convert("RGB")` of Pillow has them.
    /// Decoders of lossy formats may differ by a few levels.
    #[test]
    fn kinds_of_files_are_read_as_pillow_reads_them() {
        let colours = [[200, 40, 40], [40, 180, 60], [50, 60, 210], [230, 220, 120]];
        let grey = [88, 124, 74, 212].map(|g| [g; 3]);
        let cases = [
            ("palette.png", colours, 0),
            ("lossless.webp", colours, 0),
            ("grey_alpha.png", grey, 0),
            ("cmyk.jpg", colours, 2),
            ("lossy.webp", [[199, 40, 39], [42, 179, 60], [51, 60, 210], [231, 220, 119]], 3),
            ("grey.jpg", grey, 2),
            ("progressive.jpg", [[203, 39, 40], [41, 179, 58], [50, 59, 212], [230, 221, 120]], 3),
        ];
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pictures");
        for (name, expected, tolerance) in cases {
            let picture = open(&folder.join(name)).unwrap();
            assert_eq!(picture.dimensions(), (32, 16), "{name}");
            for ((x, y), colour) in [(4, 4), (28, 4), (4, 12), (28, 12)].into_iter().zip(expected) {
                let got = picture.get_pixel(x, y).0;
                let near = got.iter().zip(colour).all(|(&a, b): (&u8, u8)| a.abs_diff(b) <= tolerance);
                assert!(near, "{name} at {x}, {y}: {got:?}, expected {colour:?}");
            }
        }
    }

    #[test]
    fn no_picture_is_resized_without_bounds() {
        let row = RgbImage::new(200_000, 1);
        let crop = Crop::to_bucket(200_000, 1, 1024);
        let error = resize(row, crop.scaled, Filter::Bicubic).map(drop).unwrap_err();
        assert!(error.starts_with("it is too long and narrow: 6400000 × 32"), "{error}");
        assert!(!can_be_resized_to((usize::MAX, 2)) && can_be_resized_to((12_000, 9_000)));
    }

    #[test]
    fn sixteen_bits_become_eight() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep.png");
        let deep = [0x0102, 0x80ff, 0xfffe];
        image::ImageBuffer::<image::Rgb<u16>, _>::from_pixel(2, 2, image::Rgb(deep)).save(&path).unwrap();
        let got = open(&path).unwrap().get_pixel(1, 1).0;
        // 65535 levels become 255: the nearest of them.
        assert_eq!(got, deep.map(|v: u16| (f64::from(v) / 257.0).round() as u8));
    }

    #[test]
    fn broken_pictures_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half.png");
        let mut whole = Vec::new();
        pattern(64, 64).write_to(&mut std::io::Cursor::new(&mut whole), image::ImageFormat::Png).unwrap();
        std::fs::File::create(&path).unwrap().write_all(&whole[..whole.len() / 2]).unwrap();
        assert_eq!(size(&path).unwrap(), (64, 64));
        let crop = Crop { scaled: (64, 64), x: 0, y: 0, width: 64, height: 64 };
        assert!(load_pixels(&item(&path, crop)).unwrap_err().to_string().contains("half.png"));
        let text = folder.path().join("text.jpg");
        std::fs::write(&text, "not a picture").unwrap();
        assert!(size(&text).unwrap_err().to_string().contains("text.jpg"));
        assert!(size(&folder.path().join("none.png")).unwrap_err().to_string().contains("none.png"));
    }
}
