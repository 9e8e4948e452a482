//! Which layers of a block carry an adapter, by its streams.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether image and text have matrices of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Streams {
    /// Image and text run through matrices of their own and meet in the attention.
    Two,
    /// One sequence of both.
    One,
}

/// Which layers of a block carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Targets {
    /// Every linear layer, modulation included.
    All,
    /// Attention and MLP of every stream.
    AttentionAndMlp,
    /// Attention of every stream.
    Attention,
    /// Attention of the image stream alone; in blocks of one stream, their attention.
    ImageAttention,
}

impl Targets {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::All, Self::AttentionAndMlp, Self::Attention, Self::ImageAttention];

    pub(crate) fn has_modulation(self) -> bool {
        self == Self::All
    }

    /// Streams whose attention carries adapters, as a number.
    pub(crate) fn streams_of_attention(self, streams: Streams) -> f64 {
        match (streams, self) {
            (Streams::Two, Self::All | Self::AttentionAndMlp | Self::Attention) => 2.0,
            _ => 1.0,
        }
    }

    /// Streams whose MLP carries adapters, as a number.
    pub(crate) fn streams_of_mlp(self, streams: Streams) -> f64 {
        match (self, streams) {
            (Self::All | Self::AttentionAndMlp, Streams::Two) => 2.0,
            (Self::All | Self::AttentionAndMlp, Streams::One) => 1.0,
            _ => 0.0,
        }
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::All => "all",
            Self::AttentionAndMlp => "attention-and-mlp",
            Self::Attention => "attention",
            Self::ImageAttention => "image-attention",
        })
    }
}

/// Targets that are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown targets `{0}`; use all, attention-and-mlp, attention or image-attention")]
pub struct UnknownTargets(String);

impl FromStr for Targets {
    type Err = UnknownTargets;

    fn from_str(text: &str) -> Result<Self, UnknownTargets> {
        let wanted = text.trim().to_lowercase();
        Self::ALL
            .into_iter()
            .find(|targets| targets.to_string() == wanted)
            .ok_or_else(|| UnknownTargets(text.trim().to_owned()))
    }
}
