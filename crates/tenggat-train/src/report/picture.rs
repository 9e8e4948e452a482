//! Pictures from tensors to files.

use std::io;
use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage};
use tenggat_tensor::Tensor;

use crate::atomic;

/// A picture that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tensor holds no such picture.
    #[error("no picture {index} in a tensor of shape {shape:?}; expected [n, height, width, 3]")]
    Shape {
        /// Which picture was asked for.
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

/// Picture `index` of `[n, height, width, 3]` in [−1, 1]; values outside are cut off. The nearest of 256 levels.
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

/// Writes picture `index` of `[n, height, width, 3]` in [−1, 1], atomically; PNG, JPEG or WebP by the file's extension.
///
/// # Errors
/// The tensor has no such picture, the extension is another one, or the file cannot be written.
pub fn save_picture(pictures: &Tensor, index: usize, path: &Path) -> Result<(), Error> {
    save_rgb(&to_rgb(pictures, index)?, path)
}

/// [`save_picture`] of bytes.
///
/// # Errors
/// As there.
pub fn save_rgb(picture: &RgbImage, path: &Path) -> Result<(), Error> {
    let format = match ImageFormat::from_path(path) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => format,
        _ => {
            let reason = "the extension is none of png, jpg, jpeg and webp".into();
            return Err(Error::Encode { path: path.into(), reason });
        }
    };
    let mut bytes = io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, format)
        .map_err(|e| Error::Encode { path: path.into(), reason: e.to_string() })?;
    atomic::write(path, bytes.get_ref()).map_err(|source| Error::Write { path: path.into(), source })
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
}
