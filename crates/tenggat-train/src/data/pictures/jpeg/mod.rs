//! Whether a JPEG file holds all of its image data.
//!
//! Decoders fill what is missing with grey and say nothing, so that half an image would be trained on. This
//! walks the file as a decoder does, up to the entropy-coded values, and computes no pixels. Source: ITU-T
//! T.81, annexes B (the markers), F (sequential) and G (progressive).
//!
//! Pillow, which ai-toolkit's images go through, refuses the same files, and lets pass some whose last values
//! are zeros or of another file. Here every value must be one that an encoder writes, and the marker of the
//! end must come. What lies behind that marker (previews, films of phones, padding) is no damage.

mod bits;
mod scan;

use super::limits::MOST_PIXELS;
use bits::{Stop, Table};
use scan::{Component, Scan};

/// What is wrong with a JPEG file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    /// Less data than the image has.
    #[error("it is cut short")]
    Cut,
    /// Data that cannot be.
    #[error("its data are damaged at byte {0}")]
    At(usize),
}

/// More scans than any encoder writes would only cost time.
const MOST_SCANS: usize = 256;

/// Looks through the whole file. Kinds of JPEG that are not known here are left to the decoder.
///
/// # Errors
/// The image data are cut short or damaged.
pub(super) fn check(bytes: &[u8]) -> Result<(), Damage> {
    let mut walk = Walk { bytes, at: 0, frame: None, tables: Default::default(), interval: 0, scans: 0 };
    loop {
        let marker = walk.next_marker()?;
        match marker {
            // Starts, restarts and the like carry nothing.
            0x01 | 0xd0..=0xd8 => {}
            0xd9 => return walk.end(),
            0xc0..=0xc2 => walk.start_frame(marker == 0xc2)?,
            // Lossless, hierarchical and arithmetic coding.
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcf => return Ok(()),
            0xc4 => walk.define_tables()?,
            0xdd => {
                let at = walk.at;
                let &[high, low, ..] = walk.segment()? else { return Err(Damage::At(at)) };
                walk.interval = usize::from(u16::from_be_bytes([high, low]));
            }
            0xda => walk.scan()?,
            _ => drop(walk.segment()?),
        }
    }
}

/// What the header of the image says.
struct Frame {
    progressive: bool,
    components: Vec<Component>,
    /// MCUs of a scan of all components, along each side.
    mcus: (usize, usize),
}

/// The way through a file.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    frame: Option<Frame>,
    /// Huffman tables of DC and of AC values.
    tables: [[Option<Table>; 4]; 2],
    /// MCUs between restarts; 0: no restarts.
    interval: usize,
    scans: usize,
}

impl<'a> Walk<'a> {
    /// Goes behind the next marker and returns its code.
    fn next_marker(&mut self) -> Result<u8, Damage> {
        let found = marker_from(self.bytes, self.at).ok_or(Damage::Cut)?;
        self.at = found + 2;
        Ok(self.bytes[found + 1])
    }

    /// The payload of the segment that begins here; goes behind it.
    fn segment(&mut self) -> Result<&'a [u8], Damage> {
        let start = self.at;
        let &[high, low] = self.bytes.get(start..start + 2).ok_or(Damage::Cut)? else {
            return Err(Damage::Cut);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 2 {
            return Err(Damage::At(start));
        }
        self.at = start + length;
        self.bytes.get(start + 2..self.at).ok_or(Damage::Cut)
    }

    fn start_frame(&mut self, progressive: bool) -> Result<(), Damage> {
        let wrong = Damage::At(self.at);
        let &[_, h1, h0, w1, w0, count, ref rest @ ..] = self.segment()? else { return Err(wrong) };
        let height = usize::from(u16::from_be_bytes([h1, h0]));
        let width = usize::from(u16::from_be_bytes([w1, w0]));
        let listed = rest.as_chunks::<3>().0.iter().take(usize::from(count));
        let sides: Vec<(u8, usize, usize)> =
            listed.map(|&[id, s, _]| (id, usize::from(s >> 4), usize::from(s & 15))).collect();
        let is_sane = sides.iter().all(|(_, h, v)| (1..=4).contains(h) && (1..=4).contains(v));
        let pixels = width * height;
        let is_sized = pixels > 0 && pixels as u64 <= MOST_PIXELS;
        if self.frame.is_some() || !is_sized || !is_sane || !(1..=4).contains(&sides.len()) {
            return Err(wrong);
        }
        let most = |side: fn(&(u8, usize, usize)) -> usize| sides.iter().map(side).max().unwrap_or(1);
        let (h_most, v_most) = (most(|s| s.1), most(|s| s.2));
        let mcus = (width.div_ceil(8 * h_most), height.div_ceil(8 * v_most));
        let component = |&(id, h, v): &(u8, usize, usize)| {
            let own = ((width * h).div_ceil(8 * h_most), (height * v).div_ceil(8 * v_most));
            Component::new(id, (h, v), own, mcus, progressive)
        };
        let components = sides.iter().map(component).collect();
        self.frame = Some(Frame { progressive, components, mcus });
        Ok(())
    }

    fn define_tables(&mut self) -> Result<(), Damage> {
        let wrong = Damage::At(self.at);
        let mut rest = self.segment()?;
        while let &[place, ref after @ ..] = rest {
            let (counts, after) = after.split_first_chunk::<16>().ok_or(wrong)?;
            let values = counts.iter().map(|&n| usize::from(n)).sum();
            let (values, after) = after.split_at_checked(values).ok_or(wrong)?;
            let (kind, number) = (usize::from(place >> 4), usize::from(place & 15));
            let slot = self.tables.get_mut(kind).and_then(|of_kind| of_kind.get_mut(number)).ok_or(wrong)?;
            *slot = Some(Table::new(counts, values).ok_or(wrong)?);
            rest = after;
        }
        Ok(())
    }

    /// Reads a scan.
    fn scan(&mut self) -> Result<(), Damage> {
        let wrong = Damage::At(self.at);
        let header = self.segment()?;
        self.scans += 1;
        let frame = self.frame.as_mut().filter(|_| self.scans <= MOST_SCANS).ok_or(wrong)?;
        let scan = Scan::parse(header, &frame.components, &self.tables, frame.progressive).ok_or(wrong)?;
        let read = scan.read(&self.bytes[self.at..], &mut frame.components, frame.mcus, self.interval);
        self.at += read.map_err(|(stop, at)| match stop {
            Stop::End => Damage::Cut,
            Stop::Marker | Stop::Value => Damage::At(self.at + at),
        })?;
        let found = marker_from(self.bytes, self.at).ok_or(Damage::Cut)?;
        let is_filling = self.bytes[self.at..found].iter().all(|&byte| byte == 0xff);
        // Some encoders leave a few bytes before the end of the image.
        if is_filling || self.bytes[found + 1] == 0xd9 { Ok(()) } else { Err(Damage::At(self.at)) }
    }

    /// The marker of the end: every component must have come.
    fn end(&self) -> Result<(), Damage> {
        let is_whole = |frame: &Frame| frame.components.iter().all(|component| component.seen);
        if self.frame.as_ref().is_some_and(is_whole) { Ok(()) } else { Err(Damage::Cut) }
    }
}

/// Where the next marker begins, at `at` or behind it: 0xff and a byte that is neither filling nor stuffing.
fn marker_from(bytes: &[u8], at: usize) -> Option<usize> {
    let pairs = bytes.get(at..)?.windows(2);
    pairs.into_iter().position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff)).map(|i| at + i)
}

#[cfg(test)]
mod tests;
