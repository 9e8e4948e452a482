//! Numbers on the command line and the ranges that make sense. The parser puts the flag's name before these
//! messages.

/// Threads: more than any machine has cores.
pub const MOST_THREADS: usize = 1024;
/// Rank of a LoRA: above this it is no smaller than what it adapts.
pub const MOST_RANK: usize = 4096;
/// Steps of a sampler.
pub const MOST_SAMPLER_STEPS: usize = 10_000;
/// Steps of a training or a measurement.
pub const MOST_STEPS: u64 = 1_000_000_000;

/// A whole number from `low` to `high`, both included.
pub fn whole<T>(low: u64, high: u64) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: TryFrom<u64>,
{
    move |text| {
        let number = text.parse::<u64>().ok().filter(|n| (low..=high).contains(n));
        number
            .and_then(|n| T::try_from(n).ok())
            .ok_or_else(|| format!("expected a whole number from {low} to {high}"))
    }
}

/// A number from `low` to `high`, both included.
pub fn number(low: f64, high: f64) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse::<f64>() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(format!("expected a number from {low} to {high}")),
    }
}

/// A learning rate. Source of the upper end: optimisers that find their own rate take 1 as a factor.
pub fn learning_rate(text: &str) -> Result<f64, String> {
    number(0.0, 10.0)(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_ranges_of_the_jobs_keys() {
        for (key, most) in [
            ("network.linear", MOST_RANK as f64),
            ("tenggat.threads", MOST_THREADS as f64),
            ("sample.sample_steps", MOST_SAMPLER_STEPS as f64),
            ("train.steps", MOST_STEPS as f64),
        ] {
            let range = tenggat_train::job::range(key).unwrap();
            assert!(range.contains(most) && !range.contains(most + 1.0), "{key}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(whole::<usize>(1, 9)("9"), Ok(9));
        for wrong in ["0", "10", "-1", "4294967296", "18446744073709551616", "1.5", "", "x"] {
            assert!(whole::<usize>(1, 9)(wrong).unwrap_err().contains("from 1 to 9"), "{wrong}");
        }
        assert!(whole::<u8>(0, 1000)("300").is_err());
        assert_eq!(number(-1.0, 1.0)("-0.5"), Ok(-0.5));
        for wrong in ["nan", "inf", "-inf", "1e300", "1.1", ""] {
            assert!(number(-1.0, 1.0)(wrong).is_err(), "{wrong}");
        }
    }
}
