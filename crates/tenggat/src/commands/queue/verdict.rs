//! What becomes of an entry whose process has ended.

use std::path::Path;

use tenggat_queue::{Entry, State};
use tenggat_runs::{Outcome, Run};

use super::child::End;

/// Times that the process of an entry may be killed before it counts as failed.
const MOST_CRASHES: u32 = 3;

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It has ended.
    Ended(State, Option<String>),
    /// Its process was cut off; the same command resumes the run.
    CutOff {
        /// Whether it was killed under the eyes of its parent, rather than with it.
        seen: bool,
    },
}

/// What becomes of an entry, from the end of its process and from what the run wrote.
pub fn verdict(entry: &Entry, end: End, log: &Path) -> Verdict {
    let mut run = Run::new(Path::new(&entry.run));
    run.refresh();
    // Ends of earlier runs in the same folder do not count.
    let began = entry.began_unix_s.unwrap_or(0.0);
    let ended = run.history().ended.as_ref().filter(|ended| ended.unix_s >= began);
    if let Some(ended) = ended {
        return match ended.outcome {
            Outcome::Done => Verdict::Ended(State::Done, None),
            Outcome::Stopped => Verdict::Ended(State::Stopped, Some("stopped on request".into())),
            Outcome::Failed => Verdict::Ended(State::Failed, ended.error.clone().or_else(|| complaint(log))),
        };
    }
    match end {
        End::Unseen => Verdict::CutOff { seen: false },
        End::Exited(status) => match status.code() {
            Some(0) => Verdict::Ended(State::Done, None),
            Some(code) => {
                let reason = complaint(log).unwrap_or_else(|| format!("it ended with status {code}"));
                Verdict::Ended(State::Failed, Some(reason))
            }
            None => Verdict::CutOff { seen: true },
        },
    }
}

/// Why an entry whose process was killed so often is given up, if it is.
pub fn given_up(crashes: u32) -> Option<String> {
    (crashes >= MOST_CRASHES).then(|| format!("its process was killed {crashes} times"))
}

/// The last error in a log.
fn complaint(log: &Path) -> Option<String> {
    let bytes = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(1 << 16)..]).into_owned();
    text.lines().rev().find_map(|line| line.strip_prefix("error: ").map(str::to_owned))
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use tenggat_queue::{NewEntry, Queue};

    use super::*;

    fn claimed(run: &Path) -> Entry {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path()).unwrap();
        let run = run.to_str().unwrap().into();
        queue.add(&NewEntry { run, lane: "cpu".into(), ..NewEntry::default() }, 0.0).unwrap();
        queue.claim("cpu", 1.8e9).unwrap().unwrap()
    }

    fn ends(run: &Path, time: &str, outcome: &str) {
        let line = |seq, event: &str| {
            format!("{{\"v\":1,\"seq\":{seq},\"time\":\"{time}\",\"at_s\":1.0,{event}}}\n")
        };
        let ended = format!(r#""event":"ended","outcome":"{outcome}","steps":9"#);
        let text = line(0, r#""event":"started","program":"train","deadline_s":300.0"#) + &line(1, &ended);
        fs::write(run.join("events.jsonl"), text).unwrap();
    }

    #[test]
    fn the_run_itself_says_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (entry, log) = (claimed(folder.path()), folder.path().join("1.log"));
        let after = "2027-01-15T08:10:00Z";
        for (outcome, state) in
            [("done", State::Done), ("stopped", State::Stopped), ("failed", State::Failed)]
        {
            ends(folder.path(), after, outcome);
            let found = verdict(&entry, End::Unseen, &log);
            assert!(matches!(found, Verdict::Ended(found, _) if found == state), "{found:?}");
        }
        // That was an earlier run.
        ends(folder.path(), "2027-01-15T07:50:00Z", "done");
        assert_eq!(verdict(&entry, End::Unseen, &log), Verdict::CutOff { seen: false });
    }

    #[test]
    fn otherwise_the_status_says_it() {
        let folder = tempfile::tempdir().unwrap();
        let (entry, log) = (claimed(folder.path()), folder.path().join("1.log"));
        fs::write(&log, "warning: a\nerror: no such model\nmore\n").unwrap();
        let of = |raw| verdict(&entry, End::Exited(ExitStatus::from_raw(raw)), &log);
        assert_eq!(of(0), Verdict::Ended(State::Done, None));
        assert_eq!(of(1 << 8), Verdict::Ended(State::Failed, Some("no such model".into())));
        assert_eq!(of(9), Verdict::CutOff { seen: true });
        assert!(given_up(2).is_none() && given_up(3).unwrap().contains("3 times"));
    }
}
