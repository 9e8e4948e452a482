//! The process of an entry.
//!
//! Its standard input is the entry's lock file, locked. The lock lasts as long as the process does, whatever
//! becomes of the one that started it: after a kill, the next runner of the queue sees by it that the process
//! still lives.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};

use tenggat_queue::{Entry, Folder};

use crate::when;

/// A process that works on an entry.
#[derive(Debug)]
pub enum Process {
    /// This process started it.
    Own(Child),
    /// A runner that is gone started it.
    Found {
        /// Its number, where that was noted.
        id: Option<u32>,
        /// Locked by it.
        lock: File,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As its parent sees it.
    Exited(ExitStatus),
    /// Nobody knows.
    Unseen,
}

impl Process {
    /// The process that works on an entry; a new one if there is none and `start` allows it.
    ///
    /// # Errors
    /// A file cannot be opened, or the program not started.
    pub fn find(folder: &Folder, entry: &Entry) -> io::Result<Option<Process>> {
        let lock = lock_file(folder, entry.id)?;
        match lock.try_lock() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(Process::Found { id: entry.process, lock })),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Starts the process of an entry.
    ///
    /// # Errors
    /// A file cannot be opened, or the program not started.
    pub fn start(folder: &Folder, entry: &Entry) -> io::Result<Process> {
        let lock = lock_file(folder, entry.id)?;
        lock.try_lock()?;
        let log = OpenOptions::new().create(true).append(true).open(folder.log(entry.id))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments(entry)).current_dir(&entry.working_folder);
        command.stdin(Stdio::from(lock)).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C in the terminal of the queue is for the queue, which then asks its processes to end.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().map(Process::Own)
    }

    /// Its number.
    pub fn id(&self) -> Option<u32> {
        match self {
            Process::Own(child) => Some(child.id()),
            Process::Found { id, .. } => *id,
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn ended(&mut self) -> io::Result<Option<End>> {
        match self {
            Process::Own(child) => Ok(child.try_wait()?.map(End::Exited)),
            Process::Found { lock, .. } => match lock.try_lock() {
                Ok(()) => Ok(Some(End::Unseen)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(e)) => Err(e),
            },
        }
    }

    /// Asks it to save and to end, or, where that was of no use, ends it.
    pub fn signal(&self, kill: bool) {
        #[cfg(unix)]
        if let Some(id) = self.id().and_then(|id| rustix::process::Pid::from_raw(id.try_into().ok()?)) {
            let signal = if kill { rustix::process::Signal::KILL } else { rustix::process::Signal::TERM };
            // It may be gone by now.
            let _ = rustix::process::kill_process(id, signal);
        }
        #[cfg(not(unix))]
        let _ = kill;
    }
}

fn lock_file(folder: &Folder, id: i64) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).write(true).truncate(false).open(folder.entry_lock(id))
}

/// What `tenggat` is called with.
fn arguments(entry: &Entry) -> Vec<String> {
    let mut arguments =
        vec!["--device".into(), entry.device.clone(), entry.program.name().into(), entry.job.clone()];
    if let Some(name) = &entry.name {
        arguments.extend(["--name".into(), name.clone()]);
    }
    match (entry.deadline_unix_s, entry.budget_s) {
        (Some(deadline), _) => arguments.extend(["--deadline".into(), when::unix(deadline).to_string()]),
        (None, Some(budget_s)) => arguments.extend(["--budget".into(), format!("{budget_s}s")]),
        (None, None) => {}
    }
    arguments
}
