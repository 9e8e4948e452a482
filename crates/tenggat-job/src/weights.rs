//! How errors with the caption and with the empty prompt add up to one figure.

use std::fmt;
use std::str::FromStr;

/// Weights of an error with captions and of one with the empty prompt; they add up to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErrorWeights {
    captioned: f64,
}

/// A quarter for the captions, the rest for the empty prompt. Source: rayonlabs/G.O.D d72aed9 (2025-12-12),
/// `validator/core/constants.py`, `DIFFUSION_TEXT_GUIDED_EVAL_WEIGHT`; later notes of entrants (2026-09-23)
/// say half and half.
impl Default for ErrorWeights {
    fn default() -> Self {
        ErrorWeights { captioned: 0.25 }
    }
}

impl ErrorWeights {
    /// The share of the error with captions.
    pub fn captioned(self) -> f64 {
        self.captioned
    }

    /// The share of the error with the empty prompt.
    pub fn empty(self) -> f64 {
        1.0 - self.captioned
    }

    /// The weighted sum of both errors.
    pub fn sum(self, captioned: f64, empty: f64) -> f64 {
        self.captioned * captioned + self.empty() * empty
    }
}

/// As `1:3` is read: the captions' part and the empty prompt's, of whatever they add up to.
impl FromStr for ErrorWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let part = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        let parts = text.split_once(':').and_then(|(a, b)| Some((part(a)?, part(b)?)));
        match parts.filter(|(a, b)| a + b > 0.0 && (a + b).is_finite()) {
            Some((captioned, empty)) => Ok(ErrorWeights { captioned: captioned / (captioned + empty) }),
            None => Err(format!(
                "`{text}` is no pair of weights; write those of captioned and empty prompts, such as 1:3 or 0.5:0.5"
            )),
        }
    }
}

impl fmt::Display for ErrorWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough digits for any share of small whole numbers, and none that only rounding made.
        let round = |share: f64| (share * 1e4).round() / 1e4;
        write!(f, "{}:{}", round(self.captioned), round(self.empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_shares_of_their_sum() {
        for (text, captioned) in
            [("1:3", 0.25), ("0.25:0.75", 0.25), ("1:1", 0.5), (" 2 : 0 ", 1.0), ("0:1", 0.0)]
        {
            let weights: ErrorWeights = text.parse().unwrap();
            assert_eq!((weights.captioned(), weights.empty()), (captioned, 1.0 - captioned), "{text}");
        }
        let weights = ErrorWeights::default();
        assert_eq!((weights.sum(1.0, 2.0), weights.to_string().as_str()), (1.75, "0.25:0.75"));
        assert_eq!("1:2".parse::<ErrorWeights>().unwrap().to_string(), "0.3333:0.6667");
    }

    #[test]
    fn what_are_no_weights_is_refused_with_an_example() {
        for text in ["", "1", "1:", ":1", "0:0", "-1:2", "nan:1", "inf:1", "1:2:3", "a:b", "1e308:1e308"] {
            assert!(text.parse::<ErrorWeights>().unwrap_err().contains("1:3"), "{text}");
        }
    }
}
