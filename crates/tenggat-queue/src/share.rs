//! How the time until several deadlines is shared.
//!
//! Each entry gets time in proportion to what it is expected to need, but no more than its budget; what one
//! leaves goes to the others (water-filling). The first entry is held to the scarcest of the deadlines at and
//! behind it.

/// What an entry asks of the time ahead.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Claim {
    /// Its budget, seconds.
    pub most_s: Option<f64>,
    /// What it would take if nobody hurried it, seconds.
    pub expected_s: Option<f64>,
    /// Time until its deadline, seconds.
    pub left_s: Option<f64>,
}

/// Seconds that the first of several entries, which run one after another, may take; `None` if there is no
/// deadline.
pub fn share(claims: &[Claim]) -> Option<f64> {
    let weights = weights(claims);
    let of = |last: usize, left_s: f64| {
        let level = level(&claims[..=last], &weights[..=last], left_s);
        level.map_or(claims[0].most_s.unwrap_or(left_s), |level| level * weights[0])
    };
    let shares = claims.iter().enumerate().filter_map(|(last, claim)| Some(of(last, claim.left_s?)));
    let share = shares.min_by(f64::total_cmp)?;
    Some(claims[0].most_s.map_or(share, |most| share.min(most)))
}

/// What is expected of each: its own number, else its budget, else the mean of those that have one.
fn weights(claims: &[Claim]) -> Vec<f64> {
    let known = |claim: &Claim| claim.expected_s.or(claim.most_s).filter(|s| s.is_finite() && *s > 0.0);
    let all: Vec<f64> = claims.iter().filter_map(known).collect();
    let mean = if all.is_empty() { 1.0 } else { all.iter().sum::<f64>() / all.len() as f64 };
    claims.iter().map(|claim| known(claim).unwrap_or(mean)).collect()
}

/// The level `x` at which `Σ min(mostᵢ, x·weightᵢ)` is the time left; `None` if there is time for all
/// budgets.
fn level(claims: &[Claim], weights: &[f64], left_s: f64) -> Option<f64> {
    let full_at = |i: usize| claims[i].most_s.map_or(f64::INFINITY, |most| most / weights[i]);
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by(|a, b| full_at(*a).total_cmp(&full_at(*b)));
    let (mut left, mut weight) = (left_s, weights.iter().sum::<f64>());
    for i in order {
        let level = left / weight;
        if level <= full_at(i) {
            return Some(level);
        }
        left -= claims[i].most_s.unwrap_or(0.0);
        weight -= weights[i];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(most_s: impl Into<Option<f64>>, expected_s: impl Into<Option<f64>>, left_s: f64) -> Claim {
        let left_s = (left_s > 0.0).then_some(left_s);
        Claim { most_s: most_s.into(), expected_s: expected_s.into(), left_s }
    }

    #[test]
    fn without_deadlines_nothing_is_shared() {
        assert_eq!(share(&[claim(None, 5.0, 0.0), claim(60.0, None, 0.0)]), None);
    }

    #[test]
    fn alike_entries_share_alike_and_others_by_what_they_need() {
        assert_eq!(share(&[claim(None, None, 90.0); 3]), Some(30.0));
        let two = [claim(None, 10.0, 90.0), claim(None, 20.0, 90.0)];
        assert_eq!(share(&two), Some(30.0));
        // The one that nobody knows counts as the mean of the others, 15.
        assert_eq!(share(&[two[0], two[1], claim(None, None, 90.0)]), Some(20.0));
    }

    #[test]
    fn a_budget_is_kept_and_what_it_leaves_goes_to_the_others() {
        let (short, open) = (claim(10.0, None, 90.0), claim(None, None, 90.0));
        assert_eq!(share(&[short, open, open]), Some(10.0));
        assert_eq!(share(&[open, short, open]), Some(40.0));
        // Too little for all of them: also the budget is cut.
        let late = claim(None, None, 15.0);
        assert_eq!(share(&[claim(10.0, None, 0.0), late, late]), Some(5.0));
        // More than enough.
        assert_eq!(share(&[short, claim(20.0, None, 90.0)]), Some(10.0));
    }

    #[test]
    fn the_scarcest_deadline_counts() {
        let later = claim(None, None, 1000.0);
        assert_eq!(share(&[later, claim(None, None, 100.0), later]), Some(50.0));
        assert_eq!(share(&[claim(None, None, 30.0), later]), Some(30.0));
        // One without a deadline still takes its time before one that has one.
        assert_eq!(share(&[claim(None, None, 0.0), claim(None, None, 100.0)]), Some(50.0));
    }

    #[test]
    fn nonsense_is_no_panic() {
        let odd = claim(0.0, -1.0, 10.0);
        let found = share(&[odd, claim(f64::NAN, f64::INFINITY, 10.0), claim(None, 0.0, 10.0)]).unwrap();
        assert!(found <= 10.0);
    }
}
