//! TensorBoard event files: numbers by step, for `log_dir`.
//!
//! A file is a row of records (length, checksum, data, checksum), each an `Event` protocol buffer. Source:
//! TensorFlow `tensorflow/core/lib/io/record_writer.h`, `core/util/event.proto`,
//! `core/framework/summary.proto`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes one event file.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    path: PathBuf,
}

impl TensorBoard {
    /// Starts a file in `folder`, which is made if need be. Numbers of later steps than `steps` that other
    /// files of the folder have no longer count: a run that goes on does those steps again.
    ///
    /// # Errors
    /// The folder or file cannot be written.
    pub fn create(folder: &Path, steps: u64) -> io::Result<TensorBoard> {
        std::fs::create_dir_all(folder)?;
        let seconds = now_s() as u64;
        let name = |n: u32| folder.join(format!("events.out.tfevents.{seconds}.tenggat.{n}"));
        let path = (0..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0));
        let mut board = TensorBoard { file: File::create(&path)?, path };
        board.write(0, &text(3, "brain.Event:2"))?;
        if steps > 0 {
            // SessionLog.status = START.
            board.write(steps, &bytes(7, &varint_field(1, 1)))?;
        }
        Ok(board)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds numbers of a step, by name. They are handed to the system at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let value = |&(tag, value): &(&str, f64)| {
            let mut own = text(1, tag);
            own.extend(key(2, FIXED_32));
            own.extend((value as f32).to_le_bytes());
            bytes(1, &own)
        };
        let summary: Vec<u8> = values.iter().flat_map(value).collect();
        self.write(step, &bytes(5, &summary))
    }

    /// Adds an image, encoded as PNG, JPEG or another format that browsers show, of so many columns and
    /// rows.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn image(
        &mut self,
        step: u64,
        tag: &str,
        encoded: &[u8],
        (width, height): (u32, u32),
    ) -> io::Result<()> {
        let mut image = varint_field(1, u64::from(height));
        image.extend(varint_field(2, u64::from(width)));
        // RGB.
        image.extend(varint_field(3, 3));
        image.extend(bytes(4, encoded));
        let value = [text(1, tag), bytes(4, &image)].concat();
        self.write(step, &bytes(5, &bytes(1, &value)))
    }

    fn write(&mut self, step: u64, what: &[u8]) -> io::Result<()> {
        let mut event = key(1, FIXED_64).to_vec();
        event.extend(now_s().to_le_bytes());
        event.extend(varint_field(2, step));
        event.extend(what);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.write_all(&record)
    }
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED_32: u8 = 5;

/// Number and wire type of a field; numbers stay below 16.
fn key(field: u8, kind: u8) -> [u8; 1] {
    [field << 3 | kind]
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn varint_field(field: u8, value: u64) -> Vec<u8> {
    [&key(field, VARINT)[..], &varint(value)].concat()
}

fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
    [&key(field, LENGTH)[..], &varint(content.len() as u64), content].concat()
}

fn text(field: u8, content: &str) -> Vec<u8> {
    bytes(field, content.as_bytes())
}

/// CRC-32C, turned and shifted so that checksums of checksums do not cancel.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's polynomial, bits reversed; byte by byte, as pictures are megabytes.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc: u32, &byte| (crc >> 8) ^ CRC_OF_BYTE[usize::from(crc as u8 ^ byte)])
}

/// What a byte adds to the checksum.
static CRC_OF_BYTE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Events of a file: step, and what follows it.
    fn read(path: &Path) -> Vec<(u64, Vec<u8>)> {
        let file = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&file[..], Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(after[..4], masked_crc(length).to_le_bytes());
            let event = &after[4..4 + n];
            assert_eq!(after[4 + n..8 + n], masked_crc(event).to_le_bytes());
            rest = &after[8 + n..];
            // Field 1, a double; field 2, a varint.
            assert_eq!((event[0], event[9]), (0x09, 0x10));
            let end = 10 + event[10..].iter().position(|b| b & 0x80 == 0).unwrap();
            let step = event[10..=end].iter().rev().fold(0, |n, b| n << 7 | u64::from(b & 0x7f));
            events.push((step, event[end + 1..].to_vec()));
        }
        events
    }

    /// The check value of the CRC catalogue.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn numbers_are_records_of_events() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(&folder.path().join("run"), 0).unwrap();
        board.scalars(300, &[("loss/loss", 0.25), ("lr", 1e-4)]).unwrap();
        let events = read(board.path());
        assert_eq!(events[0], (0, b"\x1a\x0dbrain.Event:2".to_vec()));
        let loss = [&b"\x0a\x10\x0a\x09loss/loss\x15"[..], &0.25f32.to_le_bytes()].concat();
        let lr = [&b"\x0a\x09\x0a\x02lr\x15"[..], &1e-4f32.to_le_bytes()].concat();
        let summary = [&[0x2a, (loss.len() + lr.len()) as u8][..], &loss, &lr].concat();
        assert_eq!(events[1], (300, summary));
    }

    #[test]
    fn pictures_are_summaries_with_their_size() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(folder.path(), 0).unwrap();
        board.image(7, "samples/0", b"PNG", (300, 2)).unwrap();
        let image = b"\x08\x02\x10\xac\x02\x18\x03\x22\x03PNG";
        let value = [&b"\x0a\x09samples/0\x22\x0c"[..], image].concat();
        let summary = [&[0x2a, value.len() as u8 + 2, 0x0a, value.len() as u8][..], &value].concat();
        assert_eq!(read(board.path())[1], (7, summary));
    }

    #[test]
    fn a_run_that_goes_on_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let first = TensorBoard::create(folder.path(), 0).unwrap();
        let second = TensorBoard::create(folder.path(), 40).unwrap();
        assert_ne!(first.path(), second.path());
        assert_eq!(read(second.path())[1], (40, vec![0x3a, 2, 8, 1]));
    }
}
