//! Whole files pass; cut, zeroed and overwritten ones do not.

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::*;

/// A sequential JPEG with something to see everywhere.
fn sequential(width: u32, height: u32) -> Vec<u8> {
    let pixel = |x: u32, y: u32, c: u32| (x * 7 + y * 13 + c * 31 + x * y % 97) as u8;
    let pixels: Vec<u8> =
        (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| pixel(x, y, c)))).collect();
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 80)
        .write_image(&pixels, width, height, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pictures");
    std::fs::read(folder.join(name)).unwrap()
}

/// Where the first scan's data begin.
fn data_of(bytes: &[u8]) -> usize {
    let scan = bytes.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    scan + 2 + usize::from(u16::from_be_bytes([bytes[scan + 2], bytes[scan + 3]]))
}

#[test]
fn whole_files_pass() {
    for (w, h) in [(1, 1), (8, 8), (9, 7), (64, 40), (333, 127)] {
        assert_eq!(check(&sequential(w, h)), Ok(()), "{w} x {h}");
    }
    for name in ["progressive.jpg", "grey.jpg", "cmyk.jpg"] {
        assert_eq!(check(&fixture(name)), Ok(()), "{name}");
    }
}

#[test]
fn what_follows_the_end_is_no_damage() {
    let files = [sequential(64, 40), fixture("progressive.jpg")];
    for whole in files {
        let other = sequential(16, 16);
        let film = b"\0\0\0\x18ftypmp42 and so on".to_vec();
        for tail in [vec![0; 4096], vec![0xff; 3], other, film] {
            assert_eq!(check(&[&whole[..], &tail].concat()), Ok(()));
        }
        // Bytes before the marker of the end, as some cameras leave them.
        let (data, end) = whole.split_at(whole.len() - 2);
        assert_eq!(check(&[data, &[0; 5], end].concat()), Ok(()));
        assert_eq!(check(&[data, &[0xff; 5], end].concat()), Ok(()));
    }
}

#[test]
fn a_file_cut_anywhere_is_found() {
    for whole in [sequential(64, 40), fixture("progressive.jpg"), fixture("grey.jpg"), fixture("cmyk.jpg")] {
        for length in 0..whole.len() {
            assert!(check(&whole[..length]).is_err(), "{length} of {}", whole.len());
        }
    }
}

#[test]
fn a_tail_of_zeros_is_found() {
    for whole in [sequential(64, 40), fixture("progressive.jpg")] {
        for start in data_of(&whole)..whole.len() {
            let mut zeroed = whole.clone();
            zeroed[start..].fill(0);
            assert!(check(&zeroed).is_err(), "from {start} of {}", whole.len());
        }
    }
}

#[test]
fn a_tail_of_other_data_is_found() {
    let whole = sequential(333, 127);
    let start = data_of(&whole);
    let mut state = 7u32;
    let mut passed = 0;
    for round in 0..200 {
        let mut other = whole.clone();
        let from = start + (whole.len() - start) * round / 220;
        for byte in &mut other[from..] {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        passed += usize::from(check(&other).is_ok());
    }
    // Data that end by chance exactly where the image does cannot be told apart.
    assert_eq!(passed, 0);
}

#[test]
fn restart_markers_must_come_in_turn() {
    // A grey image of 8 × 24 pixels, a restart after each block; DC code 0 is "0", AC code 0 (end of block)
    // is "0".
    let file = |restarts: [u8; 2], blocks: [u8; 3]| {
        let mut bytes = vec![0xff, 0xd8];
        bytes.extend([0xff, 0xc0, 0, 11, 8, 0, 24, 0, 8, 1, 1, 0x11, 0]);
        for place in [0x00, 0x10] {
            bytes.extend([0xff, 0xc4, 0, 20, place, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        bytes.extend([0xff, 0xdd, 0, 4, 0, 1, 0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0]);
        bytes.extend([blocks[0], 0xff, restarts[0], blocks[1], 0xff, restarts[1], blocks[2], 0xff, 0xd9]);
        bytes
    };
    let block = 0b0011_1111;
    assert_eq!(check(&file([0xd0, 0xd1], [block; 3])), Ok(()));
    assert!(matches!(check(&file([0xd0, 0xd2], [block; 3])), Err(Damage::At(_))));
    assert!(matches!(check(&file([0xd1, 0xd0], [block; 3])), Err(Damage::At(_))));
    // A code that does not exist.
    assert!(matches!(check(&file([0xd0, 0xd1], [block, 0b0111_1111, block])), Err(Damage::At(_))));
}

#[test]
fn headers_that_lie_are_damage() {
    let whole = sequential(16, 16);
    let frame = whole.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        check(&bytes)
    };
    // Twice as high, no height, no component, a sampling of 0.
    assert!(with(frame + 6, 32).is_err());
    assert!(with(frame + 6, 0).is_err());
    assert!(with(frame + 9, 0).is_err());
    assert!(with(frame + 11, 0x10).is_err());
    assert!(check(b"\xff\xd8\xff\xd9").is_err());
    assert!(check(b"").is_err());
}
