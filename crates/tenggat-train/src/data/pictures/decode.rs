//! Image files in, pixels out: the one place where files of any origin are decoded.
//!
//! A file may be anything. What is no regular file, too large, cut short or damaged is an error that names
//! the file; no file makes the program wait, use memory without bounds, or stop.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::limits::MOST_PIXELS;
use super::{Error, Result, file, jpeg, orientation};

/// Most bytes that a decoder may ask for; enough for `MOST_PIXELS` of four channels of 16 bits.
const MOST_BYTES: u64 = 8 * MOST_PIXELS + (64 << 20);

/// Most bytes of a file.
const LARGEST_FILE: u64 = 1 << 30;

/// Width and height of an image that is turned upright; reads the header alone.
///
/// # Errors
/// The file cannot be read or is no image.
pub(super) fn size(path: &Path) -> Result<(usize, usize)> {
    let file =
        file::open_at_most(path, LARGEST_FILE).map_err(|source| Error::Read { path: path.into(), source })?;
    let ((width, height), orientation) = guarded(path, || {
        header(path, BufReader::new(file)).map(|(decoder, way)| (decoder.dimensions(), way))
    })?;
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let turned = matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH);
    let (width, height) = if turned { (height, width) } else { (width, height) };
    Ok((width as usize, height as usize))
}

/// An image turned upright by its orientation.
///
/// # Errors
/// The file cannot be read or is no whole image.
pub(crate) fn upright(path: &Path) -> Result<DynamicImage> {
    let (mut image, orientation) = whole(path)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// An image as its pixels are stored, whatever orientation the file tells.
///
/// # Errors
/// As [`upright`].
pub(crate) fn as_stored(path: &Path) -> Result<DynamicImage> {
    Ok(whole(path)?.0)
}

fn whole(path: &Path) -> Result<(DynamicImage, Orientation)> {
    let bytes = file::read(path, LARGEST_FILE).map_err(|source| Error::Read { path: path.into(), source })?;
    guarded(path, || {
        let (decoder, orientation) = header(path, Cursor::new(&bytes[..]))?;
        if image::guess_format(&bytes).is_ok_and(|format| format == ImageFormat::Jpeg) {
            jpeg::check(&bytes).map_err(|damage| Error::picture(path, damage))?;
        }
        let image = DynamicImage::from_decoder(decoder).map_err(|e| Error::picture(path, e))?;
        Ok((image, orientation))
    })
}

/// A decoder that has read the header, and the orientation.
fn header<'a, R: BufRead + Seek + 'a>(
    path: &Path,
    mut reader: R,
) -> Result<(impl ImageDecoder + 'a, Orientation)> {
    let unread = |source| Error::Read { path: path.into(), source };
    let mut start = Vec::new();
    (&mut reader).take(32).read_to_end(&mut start).map_err(unread)?;
    let format = format_of(&start).map_err(|reason| Error::picture(path, reason))?;
    let texts = if format == ImageFormat::Png {
        Some(orientation::of_png(&mut reader).map_err(unread)?)
    } else {
        None
    };
    reader.seek(SeekFrom::Start(0)).map_err(unread)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_BYTES);
    let mut sized = ImageReader::with_format(reader, format);
    sized.limits(limits.clone());
    let mut decoder = sized.into_decoder().map_err(|e| Error::picture(path, e))?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(Error::picture(path, "it has no pixels"));
    }
    if pixels > MOST_PIXELS {
        let most = MOST_PIXELS / 1_000_000;
        return Err(Error::picture(path, format!("{width} × {height} pixels are more than {most} million")));
    }
    limits.reserve(decoder.total_bytes()).map_err(|e| Error::picture(path, e))?;
    decoder.set_limits(limits).map_err(|e| Error::picture(path, e))?;
    let orientation = orientation::of(&mut decoder, texts);
    Ok((decoder, orientation))
}

/// The kind of an image by its first bytes, whatever its name says.
fn format_of(start: &[u8]) -> Result<ImageFormat, String> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    match image::guess_format(start) {
        Ok(format @ (Bmp | Gif | Jpeg | Png | Tiff | WebP)) => Ok(format),
        Ok(other) => Err(format!("{other:?} is a format that tenggat does not read")),
        Err(_) if start.get(4..8) == Some(b"ftyp") => {
            Err("HEIC is a format that tenggat does not read".into())
        }
        Err(_) if start.is_empty() => Err("it is empty".into()),
        Err(_) => Err("it is not an image".into()),
    }
}

thread_local! {
    /// Whether this thread is inside of a decoder whose panics become errors.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder. One that panics has met a file that its authors did not think of (the one of TIFF does so
/// with tiles of several planes); that is this file's error, and nothing is printed about it.
fn guarded<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                others(info);
            }
        }));
    });
    IS_GUARDED.set(true);
    let done = catch_unwind(AssertUnwindSafe(decode));
    IS_GUARDED.set(false);
    done.unwrap_or_else(|_| Err(Error::picture(path, "the decoder fails on it")))
}

#[cfg(test)]
mod tests;
