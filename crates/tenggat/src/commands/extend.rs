//! `tenggat extend`: moves the deadline of a run in progress.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use tenggat_runs::{Run, State};
use tenggat_train::run::deadline::{self, Move};

use crate::output::say;
use crate::when::{after, moment, unix};

/// How long to wait for the run's answer: the loop looks between two steps.
const WAIT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// `tenggat extend`.
#[derive(Debug, Args)]
pub struct ExtendArgs {
    /// Folder of the run.
    pub run: PathBuf,
    /// +30m for later, -10m for earlier, or a time such as 2026-12-01T18:00:00+07:00.
    #[arg(value_name = "MOVE", allow_hyphen_values = true)]
    pub by: Move,
}

/// Leaves the request in the run's folder and waits for it to be taken up.
pub fn extend(args: &ExtendArgs) -> anyhow::Result<()> {
    let folder = &args.run;
    // A drive's own folder is there before the trainer has written anything.
    if !folder.join("config.yaml").is_file() && !folder.join(tenggat_drive::FOLDER).is_dir() {
        bail!(
            "{} is not a run folder: it has neither config.yaml nor {}",
            folder.display(),
            tenggat_drive::FOLDER
        );
    }
    let mut run = Run::new(folder);
    run.refresh();
    let overview = run.overview();
    if overview.state != State::Running {
        bail!(
            "no run is under way in {} ({}); to train on there, give `tenggat train` a longer budget",
            folder.display(),
            overview.state.name()
        );
    }
    refuse_the_past(args.by, overview.deadline_unix_s, Timestamp::now())?;
    let request = folder.join(deadline::REQUEST);
    deadline::request(folder, args.by).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            anyhow::anyhow!("an earlier request is still waiting: {}", request.display())
        }
        _ => anyhow::Error::from(e).context(format!("cannot write {}", request.display())),
    })?;
    let began = Instant::now();
    while began.elapsed() < WAIT {
        if !deadline::is_pending(folder) {
            say!("the run moves its deadline: {}", args.by);
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
    say!(
        "asked the run to move its deadline: {}. It has not answered within {} s: it looks for requests \
         between steps, and no longer after the last one. The request stays in {}",
        args.by,
        WAIT.as_secs(),
        request.display()
    );
    Ok(())
}

/// A deadline that has passed is most likely a slip, such as hours for minutes, and would end the run.
fn refuse_the_past(by: Move, deadline_unix_s: Option<f64>, now: Timestamp) -> anyhow::Result<()> {
    let target = match by {
        Move::By(seconds) => deadline_unix_s.map(|deadline_s| after(unix(deadline_s), seconds)),
        Move::To(target) => Some(target),
    };
    match target {
        Some(target) if target <= now => bail!(
            "the deadline would be {}, which has passed; to end the run now, interrupt it (Ctrl-C)",
            moment(target)
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_in_the_past_is_refused() {
        let now = unix(1_800_000_000.0);
        let refused = |by: &str, deadline_s| refuse_the_past(by.parse().unwrap(), deadline_s, now).is_err();
        let in_an_hour = Some(1_800_003_600.0);
        assert!(refused("-10h", in_an_hour) && refused("-1h", in_an_hour) && !refused("-10m", in_an_hour));
        assert!(refused("2020-01-01T00:00:00Z", None) && !refused("2100-01-01T00:00:00Z", None));
        // Nobody knows of the deadline: the run will.
        assert!(!refused("-10h", None));
    }
}
