//! Running the queue: one entry after another in each lane.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tenggat_queue::{Entry, Folder, Queue, State};
use tenggat_runs::Request;

use super::child::{End, Process};
use super::list::name;
use super::verdict::{Verdict, given_up, verdict};
use super::whereabouts::now_unix_s;
use crate::output::{say, warning};

/// Time between two looks at processes, and for new entries.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time after which a lane is tried again where the disk or the database refused.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long a process that was asked to end may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Whoever looks whether the queue is run holds its lock for a moment: it is tried again so often, after so
/// long.
const LOOKED_AT: (usize, Duration) = (5, Duration::from_millis(20));
/// A machine that shuts down asks all processes to end; this one may hear it after its children have ended.
const HEARD_WITHIN: Duration = Duration::from_millis(300);

/// Whether the queue is to end.
#[derive(Debug, Clone, Default)]
pub struct Stopping(Arc<AtomicBool>);

impl Stopping {
    /// Listens for SIGINT and SIGTERM; the second one ends this process at once, not those that it started.
    ///
    /// # Errors
    /// The system allows no handlers.
    pub fn listen() -> anyhow::Result<Stopping> {
        let stopping = Stopping::default();
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, 1, Arc::clone(&stopping.0))
                .and_then(|_| flag::register(signal, Arc::clone(&stopping.0)))
                .context("cannot install the signal handlers")?;
        }
        Ok(stopping)
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs what waits; returns when nothing is left, or, if it `stays`, when it is asked to end.
///
/// # Errors
/// Another process runs this queue, or the queue cannot be read.
pub fn run(folder: &Folder, stays: bool, stopping: &Stopping) -> anyhow::Result<()> {
    let queue = Queue::open(folder.path())?;
    let _lock = lock(folder)?;
    thread::scope(|scope| {
        let mut lanes = BTreeMap::new();
        loop {
            lanes.retain(|_, worker: &mut thread::ScopedJoinHandle<'_, ()>| !worker.is_finished());
            if stopping.is_asked() {
                // The scope waits for the workers.
                return Ok(());
            }
            for lane in queue.lanes()? {
                lanes
                    .entry(lane.clone())
                    .or_insert_with(|| scope.spawn(move || work(folder, &lane, stopping)));
            }
            if lanes.is_empty() && !stays {
                return Ok(());
            }
            thread::sleep(LOOK_EVERY);
        }
    })
}

/// The right to run a queue, for one process at a time.
fn lock(folder: &Folder) -> anyhow::Result<File> {
    let path = folder.runner_lock();
    let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    for _ in 0..LOOKED_AT.0 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(LOOKED_AT.1),
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
    bail!("another process already runs the queue in {}", folder.path().display())
}

/// Runs the entries of one lane until none is left.
fn work(folder: &Folder, lane: &str, stopping: &Stopping) {
    if let Err(error) = Lane::open(folder, lane, stopping).and_then(|mut lane| lane.run()) {
        warning!("the queue for {lane}: {error:#}; it is tried again in {} s", AGAIN_AFTER.as_secs());
        let began = Instant::now();
        while began.elapsed() < AGAIN_AFTER && !stopping.is_asked() {
            thread::sleep(LOOK_EVERY);
        }
    }
}

struct Lane<'a> {
    queue: Queue,
    folder: &'a Folder,
    name: &'a str,
    stopping: &'a Stopping,
}

impl<'a> Lane<'a> {
    fn open(folder: &'a Folder, name: &'a str, stopping: &'a Stopping) -> anyhow::Result<Self> {
        Ok(Lane { queue: Queue::open(folder.path())?, folder, name, stopping })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        while !self.stopping.is_asked() {
            // First what a kill has left behind.
            let left = self.queue.running(self.name)?.into_iter().next();
            let entry = match left {
                Some(entry) => Some(entry),
                None => self.queue.claim(self.name, now_unix_s())?,
            };
            let Some(entry) = entry else { return Ok(()) };
            self.attend(entry)?;
        }
        Ok(())
    }

    /// Sees to an entry until it has ended or must be started again.
    fn attend(&mut self, entry: Entry) -> anyhow::Result<()> {
        let wrong = || format!("entry {}", entry.id);
        let found = Process::find(self.folder, &entry).with_context(wrong)?;
        let end = match found {
            Some(mut process) => {
                say!("entry {} ({}) is still running", entry.id, name(&entry));
                self.watch(&entry, &mut process)?
            }
            None => End::Unseen,
        };
        if end == End::Unseen {
            // Its process, if it had one, was out of sight: it may have come to its end.
            if let Verdict::Ended(state, reason) = verdict(&entry, end, &self.folder.log(entry.id)) {
                return self.end(&entry, state, reason);
            }
        }
        let entry = self.queue.entry(entry.id)?;
        if entry.is_cancelled {
            return self.end(&entry, State::Cancelled, None);
        }
        if entry.state != State::Running || self.stopping.is_asked() {
            return Ok(self.queue.put_back(entry.id)?);
        }
        if entry.by_unix_s.is_some_and(|by| by <= now_unix_s()) {
            return self.end(
                &entry,
                State::Failed,
                Some("its deadline passed while nobody ran the queue".into()),
            );
        }
        self.start(&entry)
    }

    fn start(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let entry = self.queue.renew(entry.id, now_unix_s())?;
        let mut process = match Process::start(self.folder, &entry) {
            Ok(process) => process,
            Err(e) => return self.end(&entry, State::Failed, Some(format!("it cannot be started: {e}"))),
        };
        if let Some(id) = process.id() {
            self.queue.started(entry.id, id)?;
        }
        say!(
            "entry {} ({}) runs on {}; log: {}",
            entry.id,
            name(&entry),
            self.name,
            self.folder.log(entry.id).display()
        );
        let end = self.watch(&entry, &mut process)?;
        if !self.stopping.is_asked() {
            thread::sleep(HEARD_WITHIN);
        }
        let verdict = verdict(&entry, end, &self.folder.log(entry.id));
        if self.stopping.is_asked() && verdict != Verdict::Ended(State::Done, None) {
            return Ok(self.queue.put_back(entry.id)?);
        }
        match verdict {
            Verdict::Ended(state, reason) => self.end(&entry, state, reason),
            Verdict::CutOff { seen: false } => Ok(()),
            Verdict::CutOff { seen: true } => match given_up(self.queue.crashed(entry.id)?) {
                Some(reason) => self.end(&entry, State::Failed, Some(reason)),
                None => Ok(()),
            },
        }
    }

    /// Waits for the end of a process, which is asked for where the entry or the whole queue is to end.
    fn watch(&mut self, entry: &Entry, process: &mut Process) -> anyhow::Result<End> {
        let mut asked: Option<Instant> = None;
        loop {
            if let Some(end) = process.ended().with_context(|| format!("entry {}", entry.id))? {
                return Ok(end);
            }
            if self.stopping.is_asked() && asked.is_none() {
                // At once: this process may be killed before the other has ended.
                self.queue.put_back(entry.id)?;
            }
            if asked.is_none() && (self.stopping.is_asked() || self.queue.entry(entry.id)?.is_cancelled) {
                process.signal(false);
                if process.id().is_none() {
                    // It was started just before a kill, and nobody noted its number.
                    let _ = tenggat_runs::ask(Path::new(&entry.run), Request::Stop);
                }
                asked = Some(Instant::now());
            }
            if asked.is_some_and(|at| at.elapsed() > PATIENCE) {
                process.signal(true);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn end(&mut self, entry: &Entry, state: State, reason: Option<String>) -> anyhow::Result<()> {
        let is_cut_short = state == State::Stopped && self.queue.entry(entry.id)?.is_cancelled;
        let (state, reason) = if is_cut_short { (State::Cancelled, None) } else { (state, reason) };
        self.queue.end(entry.id, state, reason.as_deref(), now_unix_s())?;
        let why = reason.map_or(String::new(), |reason| format!(": {reason}"));
        let text = format!("entry {} ({}) {}{why}", entry.id, name(entry), state.name());
        if state == State::Failed {
            warning!("{text}")
        } else {
            say!("{text}")
        }
        Ok(())
    }
}
