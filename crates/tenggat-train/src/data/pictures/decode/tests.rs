//! Files of every kind: turned upright, limited, and damaged in thousands of ways.

use std::path::PathBuf;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use proptest::prelude::*;

use super::*;

/// 96 × 32 pixels, no two alike nearby.
fn pattern() -> RgbImage {
    RgbImage::from_fn(96, 32, |x, y| image::Rgb([(2 * x) as u8, (7 * y) as u8, (x * y % 251) as u8]))
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    pattern().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// EXIF data that say: turn right by a quarter.
fn turned() -> Vec<u8> {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([6, 0, 0, 0, 0, 0, 0, 0]);
    exif
}

const XMP: &str = "<x:xmpmeta><rdf:Description tiff:Orientation=\"6\"/></x:xmpmeta>";

fn jpeg(exif: Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new(&mut bytes);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(pattern().as_raw(), 96, 32, ExtendedColorType::Rgb8).unwrap();
    bytes
}

/// A WebP file with one more chunk behind its image.
fn webp(kind: &[u8; 4], content: &[u8], flag: u8) -> Vec<u8> {
    let mut simple = Cursor::new(Vec::new());
    image::codecs::webp::WebPEncoder::new_lossless(&mut simple)
        .write_image(pattern().as_raw(), 96, 32, ExtendedColorType::Rgb8)
        .unwrap();
    let image = simple.into_inner()[12..].to_vec();
    let mut body = b"WEBPVP8X\x0a\0\0\0".to_vec();
    body.extend([flag, 0, 0, 0, 95, 0, 0, 31, 0, 0]);
    body.extend(image);
    body.extend(kind);
    body.extend((content.len() as u32).to_le_bytes());
    body.extend(content);
    body.resize(body.len().next_multiple_of(2), 0);
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    // CRC-32 as PNG has it, a bit at a time.
    let crc = [&kind[..], content].concat().iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    });
    [&(content.len() as u32).to_be_bytes()[..], kind, content, &(!crc).to_be_bytes()].concat()
}

/// A PNG file with one more chunk, before the image data or behind them.
fn png(kind: &[u8; 4], content: &[u8], behind: bool) -> Vec<u8> {
    let mut bytes = encoded(ImageFormat::Png);
    let at = if behind { bytes.len() - 12 } else { 33 };
    bytes.splice(at..at, chunk(kind, content));
    bytes
}

fn raw_profile() -> Vec<u8> {
    let digits: String = turned().iter().map(|byte| format!("{byte:02x}")).collect();
    let (first, second) = digits.split_at(20);
    format!("Raw profile type exif\0\nexif\n      {}\n{first}\n{second}\n", turned().len()).into_bytes()
}

fn file(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("a.png");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// `ImageOps.exif_transpose` of Pillow 13 makes each of these 32 × 96.
#[test]
fn every_way_to_tell_the_orientation_is_read() {
    let prefixed = [b"Exif\0\0", &turned()[..]].concat();
    let unicode = [b"XML:com.adobe.xmp\0\0\0\0\0", XMP.as_bytes()].concat();
    let app1 = {
        let mut bytes = encoded(ImageFormat::Jpeg);
        let content = [b"http://ns.adobe.com/xap/1.0/\0", XMP.as_bytes()].concat();
        let length = (content.len() as u16 + 2).to_be_bytes();
        bytes.splice(2..2, [&[0xff, 0xe1], &length[..], &content].concat());
        bytes
    };
    let cases = [
        ("JPEG, EXIF", jpeg(turned())),
        ("JPEG, XMP", app1),
        ("WebP, EXIF", webp(b"EXIF", &turned(), 8)),
        ("WebP, EXIF with its name", webp(b"EXIF", &prefixed, 8)),
        ("WebP, XMP", webp(b"XMP ", XMP.as_bytes(), 4)),
        ("PNG, EXIF", png(b"eXIf", &turned(), false)),
        ("PNG, EXIF with its name", png(b"eXIf", &prefixed, false)),
        ("PNG, EXIF behind the image", png(b"eXIf", &turned(), true)),
        ("PNG, XMP", png(b"iTXt", &unicode, false)),
        ("PNG, XMP behind the image", png(b"iTXt", &unicode, true)),
        ("PNG, raw profile", png(b"tEXt", &raw_profile(), false)),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (what, bytes) in cases {
        let path = file(&folder, &bytes);
        assert_eq!(size(&path).unwrap(), (32, 96), "{what}");
        let image = upright(&path).unwrap();
        assert_eq!((image.width(), image.height()), (32, 96), "{what}");
        assert_eq!(as_stored(&path).unwrap().width(), 96, "{what}");
        // The first pixel goes to the upper right.
        let corner = image.into_rgb8().get_pixel(31, 0).0;
        let near = corner.iter().zip(pattern().get_pixel(0, 0).0).all(|(&a, b)| a.abs_diff(b) < 40);
        assert!(near, "{what}: {corner:?}");
    }
    // EXIF data count before XMP, even if they say that nothing is to be turned.
    let mut upright_exif = turned();
    upright_exif[18] = 1;
    let mut both = png(b"iTXt", &unicode, false);
    both.splice(33..33, chunk(b"eXIf", &upright_exif));
    assert_eq!(size(&file(&folder, &both)).unwrap(), (96, 32));
}

#[test]
fn kinds_are_told_by_content_and_read() {
    let folder = tempfile::tempdir().unwrap();
    // Few enough colours for a GIF.
    let drawn = RgbImage::from_fn(96, 32, |x, y| image::Rgb([(x / 16 * 40) as u8, (y / 8 * 60) as u8, 9]));
    for format in [ImageFormat::Gif, ImageFormat::Tiff, ImageFormat::Bmp, ImageFormat::WebP] {
        let mut bytes = Cursor::new(Vec::new());
        drawn.write_to(&mut bytes, format).unwrap();
        let path = file(&folder, &bytes.into_inner());
        assert!(upright(&path).unwrap().into_rgb8() == drawn, "{format:?}");
    }
    let cases: [(&[u8], &str); 5] = [
        (b"", "it is empty"),
        (b"<html>404</html>", "it is not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is a format that tenggat does not read"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "is a format that tenggat does not read"),
        (b"qoif\0\0\0\0\0\0\0\0\0\0\0\0", "Qoi is a format that tenggat does not read"),
    ];
    for (bytes, expected) in cases {
        let error = upright(&file(&folder, bytes)).unwrap_err().to_string();
        assert!(error.contains("a.png") && error.contains(expected), "{error}");
    }
}

/// The header of a grey PNG file of any size, with data for a few rows.
fn grey_png(width: u32, height: u32) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let data = [0x78, 0x01, 0x03, 0, 0, 0, 0, 1];
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", &data), &chunk(b"IEND", &[])]
        .concat()
}

#[test]
fn sizes_beyond_the_limit_are_refused_before_memory_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for (width, height) in [(100_000, 100_000), (20_000, 20_000), (1, u32::MAX >> 1), (13_378, 13_378)] {
        let path = file(&folder, &grey_png(width, height));
        let errors = [size(&path).map(drop), upright(&path).map(drop), as_stored(&path).map(drop)];
        for error in errors {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("a.png") && error.contains("178 million"), "{width} × {height}: {error}");
        }
    }
    // 13 377² is just below.
    assert_eq!(size(&file(&folder, &grey_png(13_377, 13_377))).unwrap(), (13_377, 13_377));
    // A JPEG header of 65 535 × 65 535, and a GIF's.
    let mut large = encoded(ImageFormat::Jpeg);
    let frame = large.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    large[frame + 5..frame + 9].fill(0xff);
    assert!(upright(&file(&folder, &large)).is_err());
    let mut large = encoded(ImageFormat::Gif);
    large[6..10].fill(0xff);
    assert!(upright(&file(&folder, &large)).unwrap_err().to_string().contains("178 million"));
}

/// A decoder would read all of it to find the header.
#[test]
fn files_beyond_any_image_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, &encoded(ImageFormat::Jpeg));
    std::fs::File::options().append(true).open(&path).unwrap().set_len((1 << 30) + 1).unwrap();
    for error in [size(&path).map(drop), upright(&path).map(drop)] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("a.png") && error.contains("larger than 1024 MB"), "{error}");
    }
}

/// One file of each kind that the program reads.
fn samples() -> Vec<Vec<u8>> {
    let fixture = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pictures");
        std::fs::read(folder.join(name)).unwrap()
    };
    let mut samples: Vec<Vec<u8>> =
        ["cmyk.jpg", "grey.jpg", "progressive.jpg", "grey_alpha.png", "palette.png", "lossy.webp"]
            .map(fixture)
            .to_vec();
    samples.extend([ImageFormat::Gif, ImageFormat::Tiff, ImageFormat::Bmp].map(encoded));
    samples.extend([jpeg(turned()), webp(b"EXIF", &turned(), 8), png(b"tEXt", &raw_profile(), true)]);
    samples
}

/// Nothing but an image or an error may come of it; the guard would hide a panic, so it is gone round.
fn decode(bytes: &[u8]) {
    let path = Path::new("a.png");
    let Ok((decoder, orientation)) = header(path, Cursor::new(bytes)) else { return };
    if jpeg::check(bytes).is_err() && image::guess_format(bytes).is_ok_and(|f| f == ImageFormat::Jpeg) {
        return;
    }
    if let Ok(mut image) = DynamicImage::from_decoder(decoder) {
        image.apply_orientation(orientation);
        assert!(u64::from(image.width()) * u64::from(image.height()) <= MOST_PIXELS);
    }
}

#[test]
fn thousands_of_damaged_files_are_images_or_errors() {
    let mut state = 1u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    for sample in samples() {
        for round in 0..250 {
            let mut bytes = sample.clone();
            match round % 5 {
                0 => bytes.truncate(next(sample.len())),
                1 => bytes[next(sample.len())..].fill(0),
                2 => {
                    let (from, to) = (next(sample.len()), next(sample.len()));
                    let part = sample[from.min(to)..from.max(to)].to_vec();
                    let at = next(sample.len());
                    bytes.splice(at..at, part);
                }
                _ => {
                    for _ in 0..1 + next(8) {
                        // Headers decide more than the rest.
                        let reach = if next(2) == 0 { 64 } else { sample.len() };
                        let at = next(sample.len().min(reach));
                        bytes[at] = [0, 0xff, 0x7f, 1 << next(8), next(256) as u8][next(5)];
                    }
                }
            }
            decode(&bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_behind_any_start_are_an_image_or_an_error(
        kind in 0usize..12,
        keep in 0usize..200,
        rest in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let sample = &samples()[kind];
        decode(&[&sample[..keep.min(sample.len())], &rest].concat());
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for error in [size(&pipe).map(drop), upright(&pipe).map(drop)] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("pipe.png") && error.contains("not a regular file"), "{error}");
    }
}
/// The panic of another thread is still told: the hook is the program's.
#[test]
fn a_decoder_that_panics_is_an_error_without_a_word() {
    let path = Path::new("a.tiff");
    let error = guarded(path, || -> Result<()> { panic!("a case that nobody thought of") }).unwrap_err();
    assert!(error.to_string().contains("a.tiff is not a usable image: the decoder fails on it"));
    assert!(!IS_GUARDED.get());
    assert!(guarded(path, || Ok(7)).is_ok_and(|value| value == 7));
}
