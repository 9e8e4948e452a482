//! Orders that reach a drive through files in its run's folder.

use std::path::{Path, PathBuf};

use tenggat_runs::Request;

/// Requests to move the deadline, as `tenggat extend` leaves them in the run's folder, to save, and to stop.
pub(crate) struct Orders {
    folder: PathBuf,
    path: PathBuf,
    looked_s: f64,
    /// Whether somebody asked for a save; whoever answers resets it.
    pub wants_save: bool,
    /// Whether somebody asked for the end.
    pub wants_stop: bool,
}

impl Orders {
    /// For a drive that begins: what an earlier one left unanswered is removed.
    pub(crate) fn new(folder: &Path) -> Self {
        let path = folder.join("deadline.request");
        let _ = std::fs::remove_file(&path);
        for request in Request::ALL {
            tenggat_runs::takes(folder, request);
        }
        Orders { folder: folder.to_path_buf(), path, looked_s: 0.0, wants_save: false, wants_stop: false }
    }

    /// Seconds by which somebody asks the deadline to be moved, if anybody does.
    pub(crate) fn moved_by_s(&mut self, now_s: f64, deadline_s: f64) -> Option<f64> {
        if now_s - self.looked_s < 1.0 {
            return None;
        }
        self.looked_s = now_s;
        self.wants_save |= tenggat_runs::takes(&self.folder, Request::Save);
        self.wants_stop |= tenggat_runs::takes(&self.folder, Request::Stop);
        let text = std::fs::read_to_string(&self.path).ok()?;
        // One that stays would be answered again and again.
        std::fs::remove_file(&self.path).ok()?;
        let text = text.trim();
        if let Some(later) = text.strip_prefix('+') {
            return tenggat_plan::parse_duration_s(later).ok();
        }
        if let Some(earlier) = text.strip_prefix(['-', '−']) {
            return tenggat_plan::parse_duration_s(earlier).ok().map(|s| -s);
        }
        let moment: jiff::Timestamp = text.parse().ok()?;
        let left_s = moment.duration_since(jiff::Timestamp::now()).as_secs_f64();
        Some(now_s + left_s - deadline_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_and_the_end_can_be_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        tenggat_runs::ask(folder.path(), Request::Stop).unwrap();
        let mut orders = Orders::new(folder.path());
        orders.moved_by_s(2.0, 99.0);
        assert!(!orders.wants_stop, "left by an earlier drive");
        tenggat_runs::ask(folder.path(), Request::Save).unwrap();
        orders.moved_by_s(4.0, 99.0);
        assert!(orders.wants_save && !orders.wants_stop);
        tenggat_runs::ask(folder.path(), Request::Stop).unwrap();
        orders.moved_by_s(6.0, 99.0);
        assert!(orders.wants_stop);
    }

    #[test]
    fn requests_are_answered_once_and_nonsense_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deadline.request");
        std::fs::write(&path, "+1h").unwrap();
        let mut orders = Orders::new(folder.path());
        assert!(!path.exists(), "what an earlier drive left is not answered");
        let later = (jiff::Timestamp::now() + std::time::Duration::from_secs(100)).to_string();
        for (i, (text, by_s)) in
            [("+30m", Some(1800.0)), ("-10s\n", Some(-10.0)), ("soon", None), (later.as_str(), Some(42.0))]
                .into_iter()
                .enumerate()
        {
            std::fs::write(&path, text).unwrap();
            let now_s = 10.0 * (i + 1) as f64;
            // A moment 100 s from now, for a deadline in 58 s.
            let moved_s = orders.moved_by_s(now_s, now_s + 58.0);
            match (moved_s, by_s) {
                (Some(moved_s), Some(by_s)) => assert!((moved_s - by_s).abs() < 5.0, "{text}: {moved_s}"),
                (moved_s, by_s) => assert_eq!(moved_s, by_s, "{text}"),
            }
            assert!(!path.exists() && orders.moved_by_s(now_s + 2.0, 99.0).is_none());
        }
    }
}
