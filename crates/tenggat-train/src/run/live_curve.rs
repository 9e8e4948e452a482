//! `loss.png` of a run under way, drawn now and then on a thread of its own.

use std::path::PathBuf;
use std::thread::JoinHandle;

use crate::outcome::report::Point;

/// Seconds between two drawings. One takes about 0.2 s of one core.
const EVERY_S: f64 = 60.0;
/// Of longer runs only so many steps are drawn while they run: the copy is made between two steps.
const MOST_POINTS: usize = 20_000;

/// The drawing under way, if any.
#[derive(Debug, Default)]
pub(super) struct LiveCurve {
    drawn_s: f64,
    thread: Option<JoinHandle<()>>,
}

/// What is drawn.
pub(super) struct Drawing {
    pub title: String,
    pub subtitle: String,
    pub points: Vec<Point>,
    pub resumes: Vec<u64>,
    pub path: PathBuf,
}

impl LiveCurve {
    /// Whether a drawing is due.
    pub fn is_due(&self, now_s: f64) -> bool {
        now_s - self.drawn_s >= EVERY_S && self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Begins to draw. A picture that cannot be drawn now is drawn at the end, which says why not.
    pub fn draw(&mut self, now_s: f64, drawing: Drawing, draw: fn(&Drawing)) {
        self.drawn_s = now_s;
        let thread = std::thread::Builder::new().name("loss curve".into());
        self.thread = thread.spawn(move || draw(&drawing)).ok();
    }

    /// Waits for the drawing under way, so that a later one is not replaced by it.
    pub fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there has been told, and costs a picture.
            let _ = thread.join();
        }
    }
}

/// At most [`MOST_POINTS`] of the steps, the newest one included.
pub(super) fn thinned(points: &[Point]) -> Vec<Point> {
    let every = points.len().div_ceil(MOST_POINTS).max(1);
    let offset = points.len().saturating_sub(1) % every;
    points.iter().skip(offset).step_by(every).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn points(count: u64) -> Vec<Point> {
        (1..=count).map(|step| Point { step, loss: 0.5, lr: 1e-4 }).collect()
    }

    #[test]
    fn a_curve_is_drawn_once_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.png");
        let drawing = |text: &str| Drawing {
            title: text.into(),
            subtitle: String::new(),
            points: points(3),
            resumes: Vec::new(),
            path: path.clone(),
        };
        let draw: fn(&Drawing) = |drawing| fs::write(&drawing.path, &drawing.title).unwrap();
        let mut live = LiveCurve::default();
        assert!(!live.is_due(59.0) && live.is_due(60.0));
        live.draw(60.0, drawing("first"), draw);
        assert!(!live.is_due(119.0));
        live.finish();
        assert!(live.is_due(120.0));
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
    }

    #[test]
    fn thinning_keeps_the_newest_step() {
        assert_eq!(thinned(&points(7)).len(), 7);
        assert!(thinned(&[]).is_empty());
        let thin = thinned(&points(45_001));
        assert!(thin.len() <= MOST_POINTS && thin.len() > MOST_POINTS / 2);
        assert_eq!(thin.last().unwrap().step, 45_001);
    }
}
