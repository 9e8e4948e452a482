//! Bits of entropy-coded data, and the Huffman codes in them.

/// Why a scan cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The file ends.
    End,
    /// A marker comes too early.
    Marker,
    /// A value that cannot be.
    Value,
}

/// A Huffman table: length and value of the code that begins each 16 bits; a length of 0 where there is none.
pub(super) struct Table(Box<[(u8, u8)]>);

impl Table {
    /// From the number of codes of each length and their values, shortest first; `None` if there are more
    /// codes than the lengths have room for. Source: T.81, annex C.
    pub(super) fn new(counts: &[u8; 16], values: &[u8]) -> Option<Table> {
        let mut codes = vec![(0, 0); 1 << 16].into_boxed_slice();
        let mut values = values.iter();
        let mut start = 0;
        for (length, &count) in (1u8..).zip(counts) {
            let span = 1 << (16 - length);
            for &value in values.by_ref().take(usize::from(count)) {
                codes.get_mut(start..start + span)?.fill((length, value));
                start += span;
            }
        }
        Some(Table(codes))
    }
}

/// Reads bits up to the next marker.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// The next byte to load.
    at: usize,
    /// Loaded bits, the next one highest.
    buffer: u64,
    /// How many are loaded.
    left: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Bits { data, at: 0, buffer: 0, left: 0 }
    }

    fn load(&mut self) {
        while self.left <= 56 {
            let Some(&byte) = self.data.get(self.at) else { return };
            if byte == 0xff {
                if self.data.get(self.at + 1) != Some(&0) {
                    return;
                }
                self.at += 1;
            }
            self.at += 1;
            self.buffer |= u64::from(byte) << (56 - self.left);
            self.left += 8;
        }
    }

    /// Takes `n` bits, at most 16.
    pub(super) fn take(&mut self, n: u32) -> Result<u32, Stop> {
        if self.left < n {
            self.load();
        }
        if self.left < n {
            return Err(self.stopped());
        }
        let value = (self.buffer >> 32 >> 16 >> (16 - n)) as u32;
        self.drop(n);
        Ok(value)
    }

    /// Takes one code.
    #[inline]
    pub(super) fn code(&mut self, table: &Table) -> Result<u8, Stop> {
        if self.left < 16 {
            self.load();
        }
        let (length, value) = table.0[(self.buffer >> 48) as usize];
        if u32::from(length) > self.left {
            return Err(self.stopped());
        }
        if length == 0 {
            return Err(if self.left < 16 { self.stopped() } else { Stop::Value });
        }
        self.drop(u32::from(length));
        Ok(value)
    }

    fn drop(&mut self, n: u32) {
        self.buffer <<= n;
        self.left -= n;
    }

    /// Why there are no more bits.
    fn stopped(&self) -> Stop {
        let is_marker = self.data.get(self.at + 1).is_some_and(|&next| next != 0xff);
        if self.at >= self.data.len() || !is_marker && super::marker_from(self.data, self.at).is_none() {
            Stop::End
        } else {
            Stop::Marker
        }
    }

    /// The first byte of which no bit was taken.
    pub(super) fn position(&self) -> usize {
        let mut at = self.at;
        for _ in 0..self.left / 8 {
            at -= 1;
            if self.data[at] == 0 && at > 0 && self.data[at - 1] == 0xff {
                at -= 1;
            }
        }
        at
    }

    /// Leaves the rest of the byte, and goes behind the restart marker of this number.
    pub(super) fn restart(&mut self, number: u8) -> Result<(), Stop> {
        let at = self.position();
        let found = super::marker_from(self.data, at).ok_or(Stop::End)?;
        if self.data[found + 1] != 0xd0 + number {
            return Err(Stop::Marker);
        }
        *self = Bits { data: self.data, at: found + 2, buffer: 0, left: 0 };
        Ok(())
    }
}
