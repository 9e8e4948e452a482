//! Spoilt inputs without a fuzzer: the same number gives the same mutation.

/// Pieces that spoil a text or a header.
const PIECES: [&[u8]; 20] = [
    b"0",
    b"-1",
    b"1e400",
    b"18446744073709551615",
    b"9223372036854775808",
    b"4294967297",
    b"null",
    b"[]",
    b"{}",
    b"\"",
    b"'",
    b":",
    b"[[[[[[[[",
    b"\n",
    b"\0",
    b"\x1b[2J",
    b"\xff\xfe",
    "\u{e9}".as_bytes(),
    b"../",
    b"${X}",
];

/// Numbers at which readers of binary headers go wrong.
const NUMBERS: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, i64::MAX as u64, u64::MAX];

/// Marsaglia's xorshift generator.
struct Random(u64);

impl Random {
    fn new(number: u64) -> Self {
        Random(0x9e37_79b9_7f4a_7c15 ^ (number + 1).wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// A number below `n`, 0 if that is 0.
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let (a, b) = (self.below(bytes.len() + 1), self.below(bytes.len() + 1));
        let (from, to) = (a.min(b), a.max(b));
        match self.below(9) {
            0 if from < bytes.len() => bytes[from] ^= 1 << self.below(8),
            1 if from < bytes.len() => bytes[from] = self.below(256) as u8,
            2 => bytes.truncate(from),
            3 => drop(bytes.drain(from..to.min(from + 16))),
            4 => {
                let piece = bytes[from..to.min(from + 64)].to_vec();
                bytes.splice(from..from, piece);
            }
            5 => {
                let piece = PIECES[self.below(PIECES.len())];
                let end = (from + [0, 1, piece.len()][self.below(3)]).min(bytes.len());
                bytes.splice(from..end, piece.iter().copied());
            }
            6 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let width = [1, 2, 4, 8][self.below(4)].min(bytes.len() - from);
                let big = self.below(2) == 0;
                let digits = if big { number.to_be_bytes() } else { number.to_le_bytes() };
                let digits = if big { &digits[8 - width..] } else { &digits[..width] };
                bytes[from..from + width].copy_from_slice(digits);
            }
            7 => {
                let at = self.below(other.len() + 1);
                bytes.truncate(from);
                bytes.extend_from_slice(&other[at..]);
            }
            _ => self.number_in_text(bytes),
        }
    }

    /// Makes a number that is written in digits another one.
    fn number_in_text(&mut self, bytes: &mut Vec<u8>) {
        let starts: Vec<usize> = (0..bytes.len())
            .filter(|&i| bytes[i].is_ascii_digit() && (i == 0 || !bytes[i - 1].is_ascii_digit()))
            .collect();
        let Some(&start) = starts.get(self.below(starts.len())) else { return };
        let len = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = NUMBERS[self.below(NUMBERS.len())].to_string();
        bytes.splice(start..start + len, number.into_bytes());
    }
}

/// Where the JSON of a safetensors file lies in it, if it begins at `at`.
fn header(bytes: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    let start = at + 8;
    let length = u64::from_le_bytes(bytes.get(at..start)?.try_into().ok()?);
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (bytes.get(start..end)?.first() == Some(&b'{')).then_some(start..end)
}

/// The mutation of a number: one of the seeds, spoilt in one to four places. Half of those of safetensors
/// files are spoilt in their header, whose length is put right again, for a wrong one hides everything else.
///
/// # Panics
/// There are no seeds.
pub fn mutation(number: u64, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut random = Random::new(number);
    let mut bytes = seeds[random.below(seeds.len())].clone();
    let other = &seeds[number as usize % seeds.len()];
    let places = 1 + random.below(4);
    let header = header(&bytes, 0).or_else(|| header(&bytes, 1)).filter(|_| random.below(2) == 0);
    if let Some(range) = header {
        let mut json = bytes[range.clone()].to_vec();
        (0..places).for_each(|_| random.mutate(&mut json, &other[..other.len().min(range.end)]));
        let length = (json.len() as u64).to_le_bytes();
        bytes.splice(range.clone(), json);
        bytes[range.start - 8..range.start].copy_from_slice(&length);
    } else {
        (0..places).for_each(|_| random.mutate(&mut bytes, other));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_gives_the_same_mutation() {
        let seeds = [b"{\"a\": 12}".to_vec(), [&9u64.to_le_bytes()[..], b"{\"a\": 12}data"].concat()];
        let all: Vec<_> = (0..500).map(|n| mutation(n, &seeds)).collect();
        assert_eq!(all, (0..500).map(|n| mutation(n, &seeds)).collect::<Vec<_>>());
        // Most differ from the seeds and from one another, and headers keep their length.
        let mut different = all.clone();
        different.sort();
        different.dedup();
        assert!(different.len() > 250, "{}", different.len());
        assert!(all.iter().filter(|bytes| header(bytes, 0).is_some()).count() > 100);
    }
}
