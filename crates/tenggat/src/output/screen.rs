//! A screen that is drawn again and again, and small pictures made of letters.

use std::sync::atomic::{AtomicBool, Ordering};

use console::Term;

use super::escape;
use super::sink::{self, Stream};

/// Set once standard output could not be written to.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// Columns of standard output, if it is a terminal.
pub fn width() -> Option<usize> {
    draws_on_stdout().then(|| usize::from(Term::stdout().size().1).max(20))
}

/// Columns of the terminal that bars are drawn on.
pub fn bar_width() -> usize {
    usize::from(Term::stderr().size().1).max(20)
}

/// Whether standard output is a terminal that can be drawn on.
#[expect(clippy::disallowed_methods, reason = "it writes nothing")]
pub fn draws_on_stdout() -> bool {
    use std::io::IsTerminal;
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Shows a text in the place of the one before.
pub fn screen(text: &str) {
    let rows = usize::from(Term::stdout().size().0).max(5);
    let fitting: String =
        escape::block(text).lines().take(rows - 1).map(|l| format!("{l}\u{1b}[K\n")).collect();
    // Drawn over and cleared below: clearing first would flicker.
    if sink::write_through(Stream::Out, &format!("\u{1b}[H{fitting}\u{1b}[J")).is_err() {
        UNREAD.store(true, Ordering::Relaxed);
    }
}

/// Notes that nobody reads standard output any more.
pub(super) fn set_unread() {
    UNREAD.store(true, Ordering::Relaxed);
}

/// Whether whoever read standard output is gone.
pub fn is_unread() -> bool {
    UNREAD.load(Ordering::Relaxed)
}

/// A curve in one line, of as many letters at most. Values that are no numbers are blanks.
pub fn sparkline(values: &[f32], most: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    if values.is_empty() || most == 0 {
        return String::new();
    }
    let cells = most.min(values.len());
    let mean = |n: usize| {
        let part = &values[n * values.len() / cells..(n + 1) * values.len() / cells];
        let finite = part.iter().filter(|v| v.is_finite());
        let (sum, count) = finite.fold((0.0, 0u32), |(sum, n), v| (sum + f64::from(*v), n + 1));
        (count > 0).then(|| sum / f64::from(count))
    };
    let means: Vec<Option<f64>> = (0..cells).map(mean).collect();
    let known = means.iter().flatten();
    let (low, high) = known.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let level = |value: f64| {
        let share = if high > low { (value - low) / (high - low) } else { 0.0 };
        LEVELS[((share * 7.0).round() as usize).min(7)]
    };
    means.into_iter().map(|mean| mean.map_or(' ', level)).collect()
}

#[cfg(test)]
mod tests {
    use super::sparkline;

    #[test]
    fn a_curve_is_drawn_from_its_lowest_to_its_highest_value() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[7.0, 7.0, f32::NAN, 7.0], 4), "▁▁ ▁");
        assert_eq!(sparkline(&[0.0, 2.0, 4.0, 6.0], 2), "▁█");
        assert_eq!(sparkline(&[], 5), "");
        assert_eq!(sparkline(&[f32::NAN], 5), " ");
    }
}
