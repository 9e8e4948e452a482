//! How often `last.safetensors` is written, so that little is lost if the process is killed without warning.

/// The first save is done by this share of the budget after the training began.
const FIRST_BY_SHARE: f64 = 0.05;
/// Time that saving may take while training, as a share of it.
const SAVING_SHARE: f64 = 0.01;
/// Longest stretch that may be lost where saves are cheap, as a share of the budget ...
const LOST_SHARE: f64 = 0.05;
/// ... and in seconds, which also holds without a deadline.
const LOST_S: f64 = 600.0;

/// Seconds between two saves: a stretch whose loss is bearable, or longer if saving would then cost over 1 % of the
/// time.
pub(super) fn interval_s(budget_s: Option<f64>, save_s: f64) -> f64 {
    let bearable_s = budget_s.map_or(LOST_S, |budget_s| (budget_s * LOST_SHARE).min(LOST_S));
    bearable_s.max(save_s / SAVING_SHARE)
}

/// The moment after the start of training at which the first save should begin, so that it ends by 5 % of the budget.
pub(super) fn first_after_s(budget_s: Option<f64>, save_s: f64, step_s: f64) -> f64 {
    let by_s = interval_s(budget_s, 0.0).min(budget_s.map_or(LOST_S, |b| b * FIRST_BY_SHARE));
    // A save can only begin between two steps, so the step that would run past the moment counts too.
    (by_s - 1.25 * save_s - step_s).max(0.2 * by_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_saves_come_often_and_dear_ones_seldom() {
        assert_eq!(interval_s(Some(120.0), 0.01), 6.0);
        assert_eq!(interval_s(Some(7200.0), 1.0), 360.0);
        assert_eq!(interval_s(Some(40_000.0), 1.0), 600.0);
        assert_eq!(interval_s(Some(7200.0), 20.0), 2000.0);
        assert_eq!(interval_s(None, 0.1), 600.0);
    }

    #[test]
    fn the_first_save_ends_within_five_percent() {
        for (budget_s, save_s, step_s) in [(120.0, 0.05, 0.2), (7200.0, 20.0, 3.0), (60.0, 1.0, 0.5)]
        {
            let begins_s = first_after_s(Some(budget_s), save_s, step_s);
            assert!(begins_s + step_s + save_s <= 0.05 * budget_s);
        }
    }
}
