//! Which way up an image is, as Pillow's `ImageOps.exif_transpose` decides it: the EXIF data first, then XMP.
//! Source: Pillow `PIL/Image.py`, `getexif`.

use std::io::{self, Read, Seek, SeekFrom};

use image::ImageDecoder;
use image::metadata::Orientation;

/// Text that PNG files keep XMP in.
const XMP: &str = "XML:com.adobe.xmp";
/// Text that ImageMagick keeps EXIF data in, as hexadecimal digits.
const RAW_PROFILE: &str = "Raw profile type exif";

/// The orientation that an image's file tells. Metadata that cannot be read tell nothing.
pub(super) fn of(decoder: &mut impl ImageDecoder, texts: Option<Texts>) -> Orientation {
    let (exif, xmp) = match texts {
        Some(texts) => (texts.exif, texts.xmp),
        None => (decoder.exif_metadata().ok().flatten(), decoder.xmp_metadata().ok().flatten()),
    };
    let told = exif.as_deref().and_then(from_exif).or_else(|| xmp.as_deref().and_then(from_xmp));
    match told {
        Some(value) => Orientation::from_exif(value).unwrap_or(Orientation::NoTransforms),
        // TIFF keeps it among the image's own tags.
        None => decoder.orientation().unwrap_or(Orientation::NoTransforms),
    }
}

/// The orientation tag of EXIF data, with or without `Exif\0\0` before them; not always one that exists.
fn from_exif(mut exif: &[u8]) -> Option<u8> {
    while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
        exif = rest;
    }
    let is_little = match exif.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes = *exif.get(at..)?.first_chunk::<2>()?;
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let long = |at: usize| {
        let bytes = *exif.get(at..)?.first_chunk::<4>()?;
        Some(if is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let folder = long(4)? as usize;
    for entry in 0..usize::from(short(folder)?) {
        let at = folder.checked_add(2 + 12 * entry)?;
        if short(at)? != 0x0112 {
            continue;
        }
        let value = match short(at + 2)? {
            1 => u32::from(*exif.get(at + 8)?),
            3 => u32::from(short(at + 8)?),
            4 => long(at + 8)?,
            _ => return None,
        };
        return Some(value.min(255) as u8);
    }
    None
}

/// The digit behind `tiff:Orientation="` or `tiff:Orientation>`.
fn from_xmp(xmp: &[u8]) -> Option<u8> {
    let name = b"tiff:Orientation";
    xmp.windows(name.len() + 3).find_map(|part| {
        let rest = part.strip_prefix(name)?;
        let digit = match rest {
            [b'=', b'"', digit] | [b'>', digit, _] => digit,
            _ => return None,
        };
        digit.is_ascii_digit().then(|| digit - b'0')
    })
}

/// What the chunks of a PNG file tell of its orientation.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Texts {
    exif: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
}

/// Longer chunks are no text.
const LONGEST: u32 = 1 << 24;

/// Reads the chunks of a PNG file that may tell the orientation; they may lie behind the image data, where
/// the decoder does not look.
///
/// # Errors
/// The file cannot be read.
pub(super) fn of_png(file: &mut (impl Read + Seek)) -> io::Result<Texts> {
    let mut start = [0; 33];
    file.seek(SeekFrom::Start(0))?;
    if file.read_exact(&mut start).is_err() {
        return Ok(Texts::default());
    }
    // A file of the same header and these chunks alone, so that the decoder unpacks them.
    let mut short = start.to_vec();
    let mut head = [0; 8];
    while file.read_exact(&mut head).is_ok() {
        let [l3, l2, l1, l0, kind @ ..] = head;
        let length = u32::from_be_bytes([l3, l2, l1, l0]);
        let is_text = matches!(&kind, b"eXIf" | b"tEXt" | b"zTXt" | b"iTXt");
        if &kind == b"IEND" {
            break;
        }
        if !is_text || length > LONGEST {
            file.seek_relative(i64::from(length) + 4)?;
            continue;
        }
        short.extend(head);
        let wanted = u64::from(length) + 4;
        if file.take(wanted).read_to_end(&mut short)? as u64 != wanted {
            break;
        }
    }
    // The decoder stops before the image data.
    short.extend([0, 0, 0, 0]);
    short.extend(b"IDAT");
    let Ok(reader) = png::Decoder::new(io::Cursor::new(short)).read_info() else {
        return Ok(Texts::default());
    };
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().map(|t| (&t.keyword, Some(t.text.clone())));
    let packed = info.compressed_latin1_text.iter().map(|t| (&t.keyword, t.get_text().ok()));
    let unicode = info.utf8_text.iter().map(|t| (&t.keyword, t.get_text().ok()));
    let texts: Vec<(&String, Option<String>)> = plain.chain(packed).chain(unicode).collect();
    let text = |name: &str| texts.iter().find(|(key, _)| *key == name).and_then(|(_, text)| text.clone());
    let exif = info.exif_metadata.as_ref().map(|exif| exif.to_vec());
    let exif = exif.or_else(|| text(RAW_PROFILE).and_then(|profile| from_digits(&profile)));
    Ok(Texts { exif, xmp: text(XMP).map(String::into_bytes) })
}

/// The bytes of a raw profile: an empty line, the name and the length stand before the digits.
fn from_digits(profile: &str) -> Option<Vec<u8>> {
    let mut digits = profile.split('\n').skip(3).flat_map(str::chars).filter(|c| !c.is_whitespace());
    let mut bytes = Vec::new();
    while let Some(high) = digits.next() {
        let value = high.to_digit(16)? << 4 | digits.next()?.to_digit(16)?;
        bytes.push(value as u8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EXIF data of one tag.
    fn exif(little: bool, tag: u16, kind: u16, value: [u8; 4]) -> Vec<u8> {
        let mut bytes =
            if little { b"II*\0\x08\0\0\0\x01\0".to_vec() } else { b"MM\0*\0\0\0\x08\0\x01".to_vec() };
        let two = |v: u16| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let four = if little { 1u32.to_le_bytes() } else { 1u32.to_be_bytes() };
        bytes.extend(two(tag));
        bytes.extend(two(kind));
        bytes.extend(four);
        bytes.extend(value);
        bytes
    }

    #[test]
    fn exif_tells_the_orientation() {
        let cases = [
            (exif(true, 0x0112, 3, [6, 0, 0, 0]), Some(6)),
            (exif(false, 0x0112, 3, [0, 8, 0, 0]), Some(8)),
            (exif(true, 0x0112, 4, [3, 0, 0, 0]), Some(3)),
            (exif(false, 0x0112, 1, [5, 0, 0, 0]), Some(5)),
            (exif(true, 0x0112, 2, [6, 0, 0, 0]), None),
            (exif(true, 0x0113, 3, [6, 0, 0, 0]), None),
            (b"II*\0\xff\xff\xff\xff".to_vec(), None),
            (b"II*\0\x08\0\0\0\xff\xff".to_vec(), None),
            (b"Exif".to_vec(), None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(from_exif(&bytes), expected, "{bytes:?}");
            assert_eq!(from_exif(&[b"Exif\0\0", &bytes[..]].concat()), expected);
        }
    }

    #[test]
    fn xmp_tells_it_in_two_ways() {
        let cases = [
            ("<a tiff:Orientation=\"6\"/>", Some(6)),
            ("<tiff:Orientation>8</tiff:Orientation>", Some(8)),
            ("<tiff:Orientation>", None),
            ("tiff:Orientation=\"x\"", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(from_xmp(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn raw_profiles_are_digits_behind_three_lines() {
        assert_eq!(from_digits("\nexif\n       4\n4578\n6966\n"), Some(b"Exif".to_vec()));
        assert_eq!(from_digits("\nexif\n       4\n457"), None);
        assert_eq!(from_digits("45 78"), Some(Vec::new()));
    }
}
