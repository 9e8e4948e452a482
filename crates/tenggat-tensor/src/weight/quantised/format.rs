//! Names and sizes of the formats.

use std::fmt;
use std::str::FromStr;

use super::uint;

/// A quantised format, by the names that job files use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `uintN`: N-bit unsigned integers in groups of 64 with scale and zero point, 2 ≤ N ≤ 7.
    Uint(u8),
    /// `qfloat8`: e4m3 floats, one scale per row, as optimum-quanto rounds them.
    QFloat8,
    /// `float8`: e4m3 floats, one scale per row, as torchao rounds them.
    Float8,
    /// `qint8`: integers in ±127, one scale per row, as optimum-quanto rounds them.
    QInt8,
    /// `int8`: integers in −128…127, one scale per row, as torchao rounds them.
    Int8,
}

impl Format {
    /// Groups of a row of `cols` weights, each with its own scale.
    pub fn groups(self, cols: usize) -> usize {
        if let Format::Uint(_) = self { cols / uint::GROUP } else { 1 }
    }

    /// Bytes of the codes of a row.
    pub fn code_bytes(self, cols: usize) -> usize {
        if let Format::Uint(bits) = self { self.groups(cols) * uint::group_bytes(bits) } else { cols }
    }

    /// Whether groups have zero points.
    pub fn has_zero_points(self) -> bool {
        matches!(self, Format::Uint(_))
    }

    /// Whether rows of `cols` weights can be stored: `uintN` needs whole groups.
    pub fn fits(self, cols: usize) -> bool {
        !matches!(self, Format::Uint(_)) || cols.is_multiple_of(uint::GROUP)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Uint(bits) => f.pad(&format!("uint{bits}")),
            Format::QFloat8 => f.pad("qfloat8"),
            Format::Float8 => f.pad("float8"),
            Format::QInt8 => f.pad("qint8"),
            Format::Int8 => f.pad("int8"),
        }
    }
}

/// A name that is no quantised format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown quantised format `{0}`; use uint2 to uint7, qfloat8, float8, qint8 or int8")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name {
            "qfloat8" => Ok(Format::QFloat8),
            "float8" => Ok(Format::Float8),
            "qint8" => Ok(Format::QInt8),
            "int8" => Ok(Format::Int8),
            _ => {
                let bits = name.strip_prefix("uint").and_then(|bits| bits.parse().ok());
                let bits = bits.filter(|bits| (2..=7).contains(bits));
                bits.map(Format::Uint).ok_or_else(|| UnknownFormat(name.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["uint2", "uint7", "qfloat8", "float8", "qint8", "int8"] {
            assert_eq!(name.parse::<Format>().unwrap().to_string(), name);
        }
        for wrong in ["uint8", "uint1", "uint", "nf4", ""] {
            assert!(wrong.parse::<Format>().unwrap_err().to_string().contains("uint2 to uint7"));
        }
    }
}
