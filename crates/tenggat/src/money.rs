//! Money as a limit of time: what a machine costs an hour and what a run may cost make another deadline.

use clap::Args;

use crate::limit::Limited;
use crate::output::say;
use tenggat_plan::format_duration;

/// What a run may cost.
#[derive(Debug, Clone, Args)]
pub struct Money {
    /// Most that the run may cost, in the currency of --price-per-hour; this limits its time too. Earlier
    /// starts of a run that resumes count as for --budget; with an earlier --deadline, and for a task, each
    /// start counts by itself.
    #[arg(long, value_name = "AMOUNT", requires = "price_per_hour", value_parser = amount)]
    pub max_cost: Option<f64>,
    /// What the machine costs per hour.
    #[arg(long, value_name = "PRICE", value_parser = amount)]
    pub price_per_hour: Option<f64>,
}

/// A positive amount of money.
fn amount(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_start_matches(['$', '€', '£']).parse::<f64>().ok();
    number
        .filter(|n| n.is_finite() && *n > 0.0)
        .ok_or_else(|| format!("`{text}` is not an amount of money; write a positive number such as 2.49"))
}

impl Money {
    /// Seconds on the run's clock that the money lasts; `None` without a limit.
    pub fn lasts_s(&self) -> Option<f64> {
        Some(self.max_cost? / self.price_per_hour? * 3600.0)
    }

    /// What this many seconds cost, if a price is known.
    pub fn cost(&self, seconds: f64) -> Option<f64> {
        Some(self.price_per_hour? * seconds / 3600.0)
    }

    /// Moves a deadline to where the money ends, if that is earlier; gives one to a run that has none.
    pub fn limit(&self, limited: &mut Limited) {
        let Some(lasts_s) = self.lasts_s() else { return };
        if limited.deadline_s.is_none_or(|deadline_s| lasts_s < deadline_s) {
            limited.deadline_s = Some(lasts_s);
            limited.is_moment = false;
            say!("{:<14} the money lasts for {}", "limit", format_duration(lasts_s));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_plan::WallClock;

    fn limited(deadline_s: Option<f64>) -> Limited {
        Limited { clock: WallClock::start(), deadline_s, is_moment: true }
    }

    #[test]
    fn money_is_time() {
        let money = Money { max_cost: Some(5.0), price_per_hour: Some(2.5) };
        assert_eq!((money.lasts_s(), money.cost(1800.0)), (Some(7200.0), Some(1.25)));
        for (deadline_s, expected) in [(None, 7200.0), (Some(9000.0), 7200.0), (Some(600.0), 600.0)] {
            let mut limited = limited(deadline_s);
            money.limit(&mut limited);
            assert_eq!(limited.deadline_s, Some(expected));
        }
        let free = Money { max_cost: None, price_per_hour: Some(2.5) };
        assert_eq!((free.lasts_s(), free.cost(3600.0)), (None, Some(2.5)));
    }

    #[test]
    fn amounts_are_positive_numbers() {
        assert_eq!((amount("2.49"), amount("$5")), (Ok(2.49), Ok(5.0)));
        for wrong in ["0", "-1", "free", "nan", "inf", ""] {
            assert!(amount(wrong).is_err(), "{wrong}");
        }
    }
}
