//! `tenggat extend`: moves the deadline of a run in progress.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use tenggat_train::run::deadline::{self, Move};

use crate::output::say;

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
    let request = folder.join(deadline::REQUEST);
    deadline::request(folder, args.by).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => anyhow::anyhow!(
            "an earlier request is still waiting; if the run has ended, remove {}",
            request.display()
        ),
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
