//! What is asked of a run that is under way, above all another deadline: small files in its folder, which the
//! loop looks for and answers.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use tenggat_plan::{Budget, format_duration, parse_duration_s};
use tenggat_runs::Request;

use super::event::Event;

/// Name of the file that holds a request.
pub const REQUEST: &str = "deadline.request";

/// Seconds of the run's clock between two looks at the folder.
const LOOK_EVERY_S: f64 = 1.0;

/// A request to move the deadline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Move {
    /// Later by this many seconds, or earlier if negative.
    By(f64),
    /// To this point in time.
    To(Timestamp),
}

/// A text that does not say where to move the deadline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` does not say where to move the deadline; write +30m for later, -10m for earlier, or a time such \
     as 18:00 or 2026-12-01T18:00:00+07:00"
)]
pub struct ParseMoveError(String);

impl FromStr for Move {
    type Err = ParseMoveError;

    fn from_str(text: &str) -> Result<Self, ParseMoveError> {
        let text = text.trim();
        let wrong = || ParseMoveError(text.to_owned());
        let signed = [('+', 1.0), ('-', -1.0), ('−', -1.0)];
        match signed.iter().find_map(|(sign, factor)| Some((text.strip_prefix(*sign)?, factor))) {
            Some((duration, factor)) => {
                parse_duration_s(duration).map(|s| Move::By(factor * s)).map_err(|_| wrong())
            }
            None => crate::job::parse_local_moment(text).map(Move::To).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Move::By(s) if *s < 0.0 => write!(f, "{} earlier", format_duration(-s)),
            Move::By(s) => write!(f, "{} later", format_duration(*s)),
            Move::To(moment) => write!(f, "to {moment}"),
        }
    }
}

/// Leaves a request in the folder of a run; [`is_pending`] says whether it still waits.
///
/// # Errors
/// One is pending already, or the file cannot be written.
pub fn request(folder: &Path, asked: Move) -> io::Result<()> {
    if is_pending(folder) {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let text = match asked {
        Move::By(s) => format!("{}{:.3}s\n", if s < 0.0 { '-' } else { '+' }, s.abs()),
        Move::To(moment) => format!("{moment}\n"),
    };
    crate::files::atomic::write(&folder.join(REQUEST), text.as_bytes())
}

/// Whether a request waits to be taken up.
pub fn is_pending(folder: &Path) -> bool {
    folder.join(REQUEST).exists()
}

/// The loop's side: looks for requests about once a second.
pub(super) struct Requests {
    folder: PathBuf,
    looked_s: f64,
    is_shortened: bool,
}

/// What is asked for besides another deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub save: bool,
    pub sample: bool,
    pub stop: bool,
}

impl Requests {
    /// For a run that starts: what an earlier run left unanswered in the folder is removed.
    pub fn new(folder: &Path) -> Self {
        // Most often there is nothing to remove.
        let _ = fs::remove_file(folder.join(REQUEST));
        for request in Request::ALL {
            tenggat_runs::takes(folder, request);
        }
        Requests { folder: folder.to_path_buf(), looked_s: 0.0, is_shortened: false }
    }

    /// Whether the run was ever given less time than it had.
    pub fn is_shortened(&self) -> bool {
        self.is_shortened
    }

    /// Looks in another folder from now on: the run's was renamed.
    pub fn moved_to(&mut self, folder: &Path) {
        self.folder = folder.to_path_buf();
    }

    /// Answers requests if it is time to look: moves the deadline and tells. Returns what else is asked for.
    pub fn answer(&mut self, budget: &mut Budget, now_s: f64, show: &mut dyn FnMut(Event)) -> Asked {
        if now_s - self.looked_s < LOOK_EVERY_S {
            return Asked::default();
        }
        self.looked_s = now_s;
        self.answer_move(budget, now_s, show);
        let is_asked = |request| tenggat_runs::takes(&self.folder, request);
        Asked {
            save: is_asked(Request::Save),
            sample: is_asked(Request::Sample),
            stop: is_asked(Request::Stop),
        }
    }

    /// Moves the deadline if that is asked for.
    fn answer_move(&mut self, budget: &mut Budget, now_s: f64, show: &mut dyn FnMut(Event)) {
        let path = self.folder.join(REQUEST);
        let Ok(bytes) = fs::read(&path) else { return };
        let text = String::from_utf8_lossy(&bytes);
        // A request that stays would be answered again and again.
        if let Err(e) = fs::remove_file(&path) {
            show(Event::Warning(format!("ignored the request in {}: {e}", path.display())));
            return;
        }
        let before_s = budget.deadline_s();
        let asked = match text.parse() {
            Err(e) => return show(Event::Warning(format!("{REQUEST}: {e}"))),
            Ok(asked) => asked,
        };
        let target_s = match asked {
            Move::By(seconds) => before_s.map(|before_s| before_s + seconds),
            Move::To(moment) => Some(now_s + moment.duration_since(Timestamp::now()).as_secs_f64()),
        };
        // Most likely a slip: there are other ways to end a run.
        if target_s.is_some_and(|target_s| target_s <= now_s) {
            return show(Event::Warning(format!(
                "the deadline stays: {asked} has passed already; stop the run to end it now"
            )));
        }
        let Some(deadline_s) = target_s.and_then(|target_s| budget.set_deadline(now_s, target_s)) else {
            let text = "the run has no deadline to move; give a point in time instead of a duration";
            return show(Event::Warning(text.into()));
        };
        self.is_shortened |= before_s.is_none_or(|before_s| deadline_s < before_s);
        show(Event::DeadlineMoved { deadline_s, by_s: before_s.map(|before_s| deadline_s - before_s) });
        show(Event::Forecast(budget.forecast(now_s)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_plan::BudgetConfig;

    fn budget(deadline_s: Option<f64>) -> Budget {
        let steps = deadline_s.is_none().then_some(10);
        Budget::new(BudgetConfig { deadline_s, steps, ..BudgetConfig::default() }).unwrap()
    }

    fn answers(requests: &mut Requests, budget: &mut Budget, now_s: f64) -> Vec<Event> {
        let mut events = Vec::new();
        requests.answer(budget, now_s, &mut |event| events.push(event));
        events
    }

    #[test]
    fn moves_are_read_as_people_write_them() {
        assert_eq!("+30m".parse(), Ok(Move::By(1800.0)));
        assert_eq!(" -1h30m ".parse(), Ok(Move::By(-5400.0)));
        let moment = "2030-01-02T03:04:05Z";
        assert_eq!(moment.parse(), Ok(Move::To(moment.parse().unwrap())));
        for wrong in ["30m", "+30", "later", "", "+-3m"] {
            assert!(wrong.parse::<Move>().unwrap_err().to_string().contains("+30m"), "{wrong}");
        }
        assert_eq!(Move::By(-90.0).to_string(), "1 min 30 s earlier");
    }

    #[test]
    fn a_request_is_followed_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut budget = budget(Some(100.0));
        let mut requests = Requests::new(folder.path());
        request(folder.path(), Move::By(50.0)).unwrap();
        assert_eq!(request(folder.path(), Move::By(1.0)).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(answers(&mut requests, &mut budget, 0.5).is_empty(), "not yet time to look");
        let events = answers(&mut requests, &mut budget, 1.5);
        assert!(matches!(
            events[..],
            [Event::DeadlineMoved { deadline_s: 150.0, by_s: Some(50.0) }, Event::Forecast(_)]
        ));
        assert!(!is_pending(folder.path()));
        assert!(answers(&mut requests, &mut budget, 3.0).is_empty());
        assert_eq!(budget.deadline_s(), Some(150.0));
    }

    #[test]
    fn a_deadline_that_has_passed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (mut budget, mut requests) = (budget(Some(100.0)), Requests::new(folder.path()));
        let past = Timestamp::now() - jiff::SignedDuration::from_secs(60);
        for (n, asked) in [Move::By(-36000.0), Move::By(-99.0), Move::To(past)].into_iter().enumerate() {
            request(folder.path(), asked).unwrap();
            let events = answers(&mut requests, &mut budget, 2.0 + 2.0 * n as f64);
            let [Event::Warning(text)] = &events[..] else { panic!("{events:?}") };
            assert!(text.contains("stays"), "{text}");
            assert_eq!((budget.deadline_s(), requests.is_shortened()), (Some(100.0), false));
        }
        request(folder.path(), Move::By(-50.0)).unwrap();
        answers(&mut requests, &mut budget, 10.0);
        assert_eq!((budget.deadline_s(), requests.is_shortened()), (Some(50.0), true));
    }

    #[test]
    fn a_folder_that_was_renamed_is_looked_into() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut budget, mut requests) = (budget(Some(100.0)), Requests::new(folder.path()));
        requests.moved_to(other.path());
        request(other.path(), Move::By(50.0)).unwrap();
        assert_eq!(answers(&mut requests, &mut budget, 2.0).len(), 2);
        assert_eq!(budget.deadline_s(), Some(150.0));
    }

    #[test]
    fn saves_samples_and_the_end_are_asked_for_once() {
        let folder = tempfile::tempdir().unwrap();
        let ask = |request| tenggat_runs::ask(folder.path(), request).unwrap();
        ask(Request::Stop);
        let (mut budget, mut requests) = (budget(Some(100.0)), Requests::new(folder.path()));
        let mut asked = |now_s| requests.answer(&mut budget, now_s, &mut |event| panic!("{event:?}"));
        assert_eq!(asked(2.0), Asked::default(), "left by an earlier run");
        ask(Request::Save);
        ask(Request::Sample);
        assert_eq!(asked(2.5), Asked::default(), "not yet time to look");
        assert_eq!(asked(3.5), Asked { save: true, sample: true, stop: false });
        ask(Request::Stop);
        assert_eq!(asked(5.0), Asked { stop: true, ..Asked::default() });
        assert_eq!(asked(7.0), Asked::default());
    }

    #[test]
    fn a_run_without_a_deadline_takes_a_moment_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut budget = budget(None);
        let mut requests = Requests::new(folder.path());
        request(folder.path(), Move::By(50.0)).unwrap();
        assert!(matches!(answers(&mut requests, &mut budget, 2.0)[..], [Event::Warning(_)]));
        let moment = Timestamp::now() + jiff::SignedDuration::from_secs(60);
        request(folder.path(), Move::To(moment)).unwrap();
        answers(&mut requests, &mut budget, 4.0);
        let deadline_s = budget.deadline_s().unwrap();
        assert!((60.0..64.5).contains(&deadline_s), "{deadline_s}");
    }

    #[test]
    fn nonsense_and_leftovers_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(REQUEST), "+1h").unwrap();
        let (mut budget, mut requests) = (budget(Some(100.0)), Requests::new(folder.path()));
        assert!(answers(&mut requests, &mut budget, 2.0).is_empty(), "left by an earlier run");
        for (n, nonsense) in [&b"soon"[..], b"", b"+1h\xff", b"\0"].iter().enumerate() {
            fs::write(folder.path().join(REQUEST), nonsense).unwrap();
            let events = answers(&mut requests, &mut budget, 4.0 + 2.0 * n as f64);
            assert!(matches!(events[..], [Event::Warning(_)]), "{nonsense:?}");
            assert!(!is_pending(folder.path()));
        }
        assert_eq!(budget.deadline_s(), Some(100.0));
    }
}
