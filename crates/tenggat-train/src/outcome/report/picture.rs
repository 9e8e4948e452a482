//! Pictures from tensors to files.

use std::io;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageFormat, RgbImage};
use tenggat_tensor::Tensor;

use crate::files::atomic;

/// A picture that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tensor holds no such picture.
    #[error("no picture {index} in a tensor of shape {shape:?}; expected [n, height, width, 3]")]
    Shape {
        /// The requested image.
        index: usize,
        /// Shape of the tensor.
        shape: Vec<usize>,
    },
    /// The values could not be read from the device.
    #[error(transparent)]
    Tensor(#[from] tenggat_tensor::Error),
    /// The file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The picture could not be drawn or encoded.
    #[error("cannot make {}: {reason}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// Picture `index` of `[n, height, width, 3]` in [−1, 1]; values outside are cut off. The nearest of 256
/// levels.
///
/// # Errors
/// The tensor has another shape or no such picture.
pub fn to_rgb(pictures: &Tensor, index: usize) -> Result<RgbImage, Error> {
    let wrong = || Error::Shape { index, shape: pictures.shape().to_vec() };
    let &[n, height, width, 3] = pictures.shape() else { return Err(wrong()) };
    if index >= n {
        return Err(wrong());
    }
    let values = pictures.to_f32()?;
    let size = height * width * 3;
    let bytes = values[index * size..(index + 1) * size]
        .iter()
        .map(|v| ((v.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8)
        .collect();
    RgbImage::from_raw(width as u32, height as u32, bytes).ok_or_else(wrong)
}

/// Writes picture `index` of `[n, height, width, 3]` in [−1, 1], atomically; PNG, JPEG or WebP by the file's
/// extension.
///
/// # Errors
/// The tensor has no such picture, the extension is another one, or the file cannot be written.
pub fn save_picture(pictures: &Tensor, index: usize, path: &Path) -> Result<(), Error> {
    save_rgb(&to_rgb(pictures, index)?, path)
}

/// The same with a text that says what it was made with, where viewers look for it: PNG's text chunk
/// `parameters`, the EXIF user comment of the others.
///
/// # Errors
/// As there.
pub fn save_picture_with(pictures: &Tensor, index: usize, path: &Path, text: &str) -> Result<(), Error> {
    save(&to_rgb(pictures, index)?, path, Some(text))
}

/// [`save_picture`] of bytes.
///
/// # Errors
/// As there.
pub fn save_rgb(picture: &RgbImage, path: &Path) -> Result<(), Error> {
    save(picture, path, None)
}

fn save(picture: &RgbImage, path: &Path, text: Option<&str>) -> Result<(), Error> {
    let format = match ImageFormat::from_path(path) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => format,
        _ => {
            let reason = "the extension is none of png, jpg, jpeg and webp".into();
            return Err(Error::Encode { path: path.into(), reason });
        }
    };
    let encode = |reason: String| Error::Encode { path: path.into(), reason };
    let bytes = match format {
        ImageFormat::Png => png(picture, text).map_err(|e| encode(e.to_string()))?,
        _ => with_comment(picture, format, text).map_err(|e| encode(e.to_string()))?,
    };
    atomic::write(path, &bytes).map_err(|source| Error::Write { path: path.into(), source })
}

fn png(picture: &RgbImage, text: Option<&str>) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    match text {
        None => {}
        // What Latin-1 can spell goes where every reader looks.
        Some(text) if text.chars().all(|c| u32::from(c) < 256) => {
            encoder.add_text_chunk(PARAMETERS.into(), text.into())?;
        }
        Some(text) => encoder.add_itxt_chunk(PARAMETERS.into(), text.into())?,
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// Name of the text chunk that web interfaces read.
const PARAMETERS: &str = "parameters";

fn with_comment(
    picture: &RgbImage,
    format: ImageFormat,
    text: Option<&str>,
) -> Result<Vec<u8>, image::ImageError> {
    fn encode(
        mut encoder: impl ImageEncoder,
        picture: &RgbImage,
        text: Option<&str>,
    ) -> Result<(), image::ImageError> {
        if let Some(text) = text {
            encoder.set_exif_metadata(user_comment(text)).map_err(image::ImageError::Unsupported)?;
        }
        let (width, height) = picture.dimensions();
        encoder.write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8)
    }
    let mut bytes = io::Cursor::new(Vec::new());
    match format {
        ImageFormat::WebP => encode(WebPEncoder::new_lossless(&mut bytes), picture, text)?,
        _ => encode(JpegEncoder::new_with_quality(&mut bytes, QUALITY), picture, text)?,
    }
    Ok(bytes.into_inner())
}

/// Quality of JPEG files.
const QUALITY: u8 = 95;

/// EXIF data with nothing but a user comment in UTF-16: a header, the directory that points to the EXIF
/// directory, and that one with the tag 0x9286. Source: Exif 2.32, 4.6.5.
fn user_comment(text: &str) -> Vec<u8> {
    let comment: Vec<u8> =
        b"UNICODE\0".iter().copied().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let mut exif = b"MM\0*\0\0\0\x08".to_vec();
    let mut directory = |tag: u16, kind: u16, count: u32, value: u32| {
        exif.extend(1u16.to_be_bytes());
        exif.extend(tag.to_be_bytes());
        exif.extend(kind.to_be_bytes());
        exif.extend(count.to_be_bytes());
        exif.extend(value.to_be_bytes());
        exif.extend(0u32.to_be_bytes());
    };
    // Each directory takes 18 bytes.
    directory(0x8769, 4, 1, 8 + 18);
    directory(0x9286, 7, comment.len() as u32, 8 + 18 + 18);
    exif.extend(comment);
    exif
}

#[cfg(test)]
mod tests {
    use tenggat_tensor::{DType, Device};

    use super::*;

    fn tensor() -> Tensor {
        let values: Vec<f64> = (0..2 * 2 * 3 * 3).map(|i| i as f64 / 18.0 - 1.0).collect();
        Tensor::from_f64(&Device::cpu(), DType::F32, &values, &[2, 2, 3, 3]).unwrap()
    }

    #[test]
    fn values_become_the_nearest_level() {
        let values = [-1.0, -2.0, 1.0, 2.0, 0.0, -0.999];
        let t = Tensor::from_f64(&Device::cpu(), DType::F32, &values, &[1, 1, 2, 3]).unwrap();
        assert_eq!(to_rgb(&t, 0).unwrap().into_raw(), [0, 0, 255, 255, 128, 0]);
        let second = to_rgb(&tensor(), 1).unwrap();
        assert_eq!((second.dimensions(), second.get_pixel(0, 0)[0]), ((3, 2), 128));
    }

    #[test]
    fn files_are_written_by_extension() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "a.jpg", "a.webp"] {
            let path = folder.path().join(name);
            save_picture(&tensor(), 1, &path).unwrap();
            let read = image::ImageReader::open(&path).unwrap().with_guessed_format().unwrap();
            assert_eq!(read.format(), ImageFormat::from_path(name).ok(), "{name}");
            assert_eq!(read.decode().unwrap().into_rgb8().dimensions(), (3, 2));
        }
        let error = save_picture(&tensor(), 0, &folder.path().join("a.gif")).unwrap_err().to_string();
        assert!(error.contains("none of png"), "{error}");
        assert!(matches!(save_picture(&tensor(), 2, &folder.path().join("a.png")), Err(Error::Shape { .. })));
    }

    #[test]
    fn files_say_what_they_were_made_with() {
        use image::ImageDecoder;
        let folder = tempfile::tempdir().unwrap();
        let text = "a füchs\nSteps: 20, Seed: 7";
        let path = |name: &str| folder.path().join(name);
        save_picture_with(&tensor(), 1, &path("a.png"), text).unwrap();
        let decoder = png::Decoder::new(io::BufReader::new(std::fs::File::open(path("a.png")).unwrap()));
        let reader = decoder.read_info().unwrap();
        let chunk = &reader.info().uncompressed_latin1_text[0];
        assert_eq!((chunk.keyword.as_str(), chunk.text.as_str()), ("parameters", text));
        save_picture_with(&tensor(), 1, &path("b.png"), "狐").unwrap();
        let decoder = png::Decoder::new(io::BufReader::new(std::fs::File::open(path("b.png")).unwrap()));
        let reader = decoder.read_info().unwrap();
        assert_eq!(reader.info().utf8_text[0].get_text().unwrap(), "狐");
        let expected: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for name in ["a.jpg", "a.webp"] {
            save_picture_with(&tensor(), 1, &path(name), text).unwrap();
            let read = image::ImageReader::open(path(name)).unwrap();
            let exif = read.into_decoder().unwrap().exif_metadata().unwrap().unwrap();
            assert!(exif.ends_with(&[b"UNICODE\0", &expected[..]].concat()), "{name}");
        }
    }
}
