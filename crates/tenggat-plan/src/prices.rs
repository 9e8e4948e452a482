//! Prices of rented cards: a dated table, and one of the user's own in the same form.

use serde::{Deserialize, Serialize};

use crate::gpu::Gpu;

/// What a provider charges for an hour of a card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Provider.
    pub provider: String,
    /// Card, as the catalogue names it.
    pub gpu: String,
    /// US dollars per hour.
    pub usd_per_hour: f64,
    /// On what terms: `on demand`, `interruptible`.
    #[serde(default)]
    pub terms: String,
    /// When it was read: `2026-03`.
    #[serde(default)]
    pub date: String,
    /// Where it was read.
    #[serde(default)]
    pub source: String,
}

/// A table of prices that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line} of the prices: {problem}; expected provider,gpu,usd_per_hour and optionally \
     terms,date,source"
)]
pub struct PriceError {
    /// Line of the file, the heading being the first.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// The table that comes with the program. Prices move from week to week; each line has its date.
const TABLE: &str = include_str!("../data/prices.csv");
/// Dollars per hour that no single card costs.
const MOST_USD_PER_HOUR: f64 = 1000.0;

impl Offer {
    /// The offers that come with the program.
    pub fn known() -> Vec<Self> {
        // A test reads the table, so that it cannot be malformed here.
        Self::read_all(TABLE).unwrap_or_default()
    }

    /// Reads a table of prices: comma-separated, with a heading.
    ///
    /// # Errors
    /// [`PriceError`] at the first line that lacks a column, names a card that the catalogue does not have,
    /// or has a price that is no price.
    pub fn read_all(text: &str) -> Result<Vec<Self>, PriceError> {
        let mut reader =
            csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(text.as_bytes());
        let mut offers = Vec::new();
        for (at, offer) in reader.deserialize::<Self>().enumerate() {
            let line = at as u64 + 2;
            let wrong = |problem: String| PriceError { line, problem };
            let mut offer = offer.map_err(|e| wrong(e.to_string()))?;
            offer.gpu = Gpu::find(&offer.gpu).map_err(|e| wrong(e.to_string()))?.name.clone().into_owned();
            if !(offer.usd_per_hour > 0.0 && offer.usd_per_hour < MOST_USD_PER_HOUR) {
                return Err(wrong(format!("{} USD per hour", offer.usd_per_hour)));
            }
            offers.push(offer);
        }
        Ok(offers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_whole_and_dated() {
        let offers = Offer::read_all(TABLE).unwrap();
        assert_eq!(offers.len(), TABLE.lines().count() - 1);
        for offer in &offers {
            assert!(offer.date.starts_with("20") && offer.source.starts_with("https://"), "{offer:?}");
            assert!((0.05..20.0).contains(&offer.usd_per_hour), "{offer:?}");
        }
    }

    #[test]
    fn a_table_of_ones_own_needs_three_columns() {
        let offers = Offer::read_all("provider,gpu,usd_per_hour\nmine,4090,0.25\n").unwrap();
        assert_eq!((offers[0].gpu.as_str(), offers[0].usd_per_hour), ("RTX 4090", 0.25));
        let said = |line: &str| {
            Offer::read_all(&format!("provider,gpu,usd_per_hour\n{line}\n")).unwrap_err().to_string()
        };
        assert!(said("mine,9090,1").contains("no GPU `9090`"));
        assert!(said("mine,4090,-1").contains("-1 USD"));
        assert!(said("mine,4090,cheap").contains("line 2"));
        assert!(Offer::read_all("gpu,price\n4090,1\n").is_err());
    }
}
