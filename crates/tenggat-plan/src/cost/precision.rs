//! How frozen weights are stored, and what that weighs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Storage of the frozen weights, by the names of the job file's `qtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8-bit floats with one scale per output channel (`qfloat8`, `float8`).
    Float8,
    /// 8-bit integers with one scale per output channel.
    Int8,
    /// 4-bit codes of the quantiles of a normal distribution in groups of 64, as bitsandbytes stores them;
    /// not of tenggat.
    Nf4,
    /// 2 to 7 bits in groups of 64 with scale and zero point.
    Uint(u8),
}

/// Inputs that share a scale under [`Precision::Uint`].
const GROUP: f64 = 64.0;
/// Bytes per group: a bfloat16 scale and a zero point of one byte.
const GROUP_BYTES: f64 = 3.0;
/// Bytes per group of [`Precision::Nf4`]: a 32-bit scale.
const NF4_SCALE_BYTES: f64 = 4.0;

impl Precision {
    /// All kinds that tenggat stores, finest first.
    pub const ALL: [Self; 10] = [
        Self::F32,
        Self::Bf16,
        Self::Float8,
        Self::Int8,
        Self::Uint(7),
        Self::Uint(6),
        Self::Uint(5),
        Self::Uint(4),
        Self::Uint(3),
        Self::Uint(2),
    ];

    /// Bytes per weight without scales.
    pub fn bytes_per_weight(self) -> f64 {
        match self {
            Self::F32 => 4.0,
            Self::Bf16 => 2.0,
            Self::Float8 | Self::Int8 => 1.0,
            Self::Nf4 => 0.5,
            Self::Uint(bits) => f64::from(bits) / 8.0,
        }
    }

    /// Bytes of scales and zero points per weight, in matrices with `inputs` columns.
    pub fn scale_bytes_per_weight(self, inputs: f64) -> f64 {
        match self {
            Self::F32 | Self::Bf16 => 0.0,
            Self::Float8 | Self::Int8 => 2.0 / inputs.max(1.0),
            Self::Nf4 => NF4_SCALE_BYTES / GROUP,
            Self::Uint(_) => GROUP_BYTES / GROUP,
        }
    }

    /// Whether weights must be expanded before a bf16 product.
    pub fn is_quantised(self) -> bool {
        !matches!(self, Self::F32 | Self::Bf16)
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.pad("f32"),
            Self::Bf16 => f.pad("bf16"),
            Self::Float8 => f.pad("float8"),
            Self::Int8 => f.pad("int8"),
            Self::Nf4 => f.pad("nf4"),
            Self::Uint(bits) => f.pad(&format!("uint{bits}")),
        }
    }
}

/// A storage type that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown weight type `{0}`; use f32, bf16, qfloat8, float8, int8, nf4 or uint2 to uint7")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    /// Reads a `qtype`; the part after `|`, which names an accuracy recovery adapter, is not looked at.
    fn from_str(text: &str) -> Result<Self, UnknownPrecision> {
        let name = text.split('|').next().unwrap_or_default().trim().to_lowercase();
        match name.as_str() {
            "f32" | "fp32" | "float32" => Ok(Self::F32),
            // ai-toolkit leaves weights alone under `uint8`.
            "bf16" | "bfloat16" | "uint8" => Ok(Self::Bf16),
            "qfloat8" | "float8" | "fp8" => Ok(Self::Float8),
            "int8" | "qint8" => Ok(Self::Int8),
            "nf4" => Ok(Self::Nf4),
            _ => name
                .strip_prefix("uint")
                .and_then(|bits| bits.parse().ok())
                .filter(|bits| (2..=7).contains(bits))
                .map(Self::Uint)
                .ok_or_else(|| UnknownPrecision(text.trim().to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::ModelDims;

    #[test]
    fn three_bits_weigh_what_upstream_measured() {
        let weights = ModelDims::QWEN_IMAGE.block_weights();
        let uint3 = Precision::Uint(3);
        assert!((weights * uint3.bytes_per_weight() / 1e9 - 7.64).abs() < 0.01);
        assert!((weights * uint3.scale_bytes_per_weight(3072.0) / 1e9 - 0.96).abs() < 0.01);
    }

    #[test]
    fn names_of_job_files() {
        assert_eq!("uint3|ostris/accuracy_recovery_adapters/x.safetensors".parse(), Ok(Precision::Uint(3)));
        assert_eq!("qfloat8".parse(), Ok(Precision::Float8));
        assert_eq!("uint8".parse(), Ok(Precision::Bf16));
        for wrong in ["uint9", "uint1", "uint", "", "nf5", "uint300"] {
            assert!(wrong.parse::<Precision>().is_err(), "{wrong}");
        }
    }
}
