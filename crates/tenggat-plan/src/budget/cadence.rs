//! How often `last.safetensors` is written, so that little is lost if the process is killed without warning.

/// The first save is done by this share of the budget after the training began.
const FIRST_BY_SHARE: f64 = 0.05;
/// Unforeseen ends per budget that the interval is chosen for: one run in five.
const ENDS_PER_BUDGET: f64 = 0.2;
/// Shortest interval, as a share of the budget.
const SHORTEST_SHARE: f64 = 0.02;
/// Without a budget, the first save comes this many seconds after training began.
const FIRST_BY_S: f64 = 60.0;
/// Longest stretch whose loss is bearable, in seconds ...
const BEARABLE_S: f64 = 600.0;
/// ... unless saving that often would take more than this share of the time.
const SAVING_SHARE: f64 = 0.01;

/// Seconds between two saves.
///
/// Saves of `s` seconds every `t` cost `s / t` of the time, and an end at a random moment loses `t / 2`. With
/// `h` such ends per budget `b` the sum is least at `t = √(2·s·b / h)` (J. W. Young, "A first order
/// approximation to the optimum checkpoint interval", 1974).
pub(super) fn interval_s(budget_s: Option<f64>, save_s: f64) -> f64 {
    let bearable_s = BEARABLE_S.max(save_s / SAVING_SHARE);
    match budget_s {
        Some(budget_s) => {
            (2.0 * save_s * budget_s / ENDS_PER_BUDGET).sqrt().min(bearable_s).max(SHORTEST_SHARE * budget_s)
        }
        None => bearable_s,
    }
}

/// Seconds after the start of training at which the first save should begin, so that it ends by 5 % of the
/// budget.
pub(super) fn first_after_s(budget_s: Option<f64>, save_s: f64, step_s: f64) -> f64 {
    let by_s = budget_s.map_or(FIRST_BY_S, |b| (b * FIRST_BY_SHARE).min(BEARABLE_S));
    // A save can only begin between two steps, so the step that would run past the moment counts too.
    (by_s - 1.25 * save_s - step_s).max(0.2 * by_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_saves_come_often_and_dear_ones_seldom() {
        let interval = |budget_s, save_s| interval_s(budget_s, save_s).round();
        assert_eq!(interval(Some(120.0), 0.05), 8.0);
        assert_eq!(interval(Some(7200.0), 1.0), 268.0);
        assert_eq!(interval(Some(7200.0), 20.0), 1200.0);
        assert_eq!(interval(Some(28_000.0), 4.0), 600.0);
        assert_eq!(interval(Some(28_000.0), 0.0), 560.0);
        assert_eq!(interval(None, 0.1), 600.0);
        assert_eq!(interval(None, 20.0), 2000.0);
    }

    #[test]
    fn the_first_save_ends_within_five_percent() {
        for (budget_s, save_s, step_s) in [(120.0, 0.05, 0.2), (7200.0, 20.0, 3.0), (60.0, 1.0, 0.5)] {
            let begins_s = first_after_s(Some(budget_s), save_s, step_s);
            assert!(begins_s + step_s + save_s <= 0.05 * budget_s);
        }
        assert_eq!(first_after_s(None, 0.8, 1.0), 58.0);
    }

    #[test]
    fn the_first_save_leaves_room_for_a_step_and_a_slow_save() {
        // 5 % of 1000 s, less a save that takes a quarter longer, less a step.
        assert!((first_after_s(Some(1000.0), 4.0, 3.0) - (50.0 - 5.0 - 3.0)).abs() < 1e-12);
        // 5 % of ten hours would be too long to lose; where a save takes longer than that, it does not come
        // at once.
        assert!((first_after_s(Some(36_000.0), 0.0, 0.0) - 600.0).abs() < 1e-12);
        assert!((first_after_s(Some(1000.0), 100.0, 3.0) - 10.0).abs() < 1e-12);
    }
}
