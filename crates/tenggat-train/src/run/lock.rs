//! One run per folder: an advisory lock on a file in it, which also holds a note of who runs there and for
//! how long.
//!
//! The system releases the lock when the process ends, however it ends. The file lies inside of the folder,
//! so that it goes with it when the folder is renamed; whoever has locked it makes sure that the folder still
//! holds that very file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use tenggat_plan::{Clock, WallClock};
use xxhash_rust::xxh3::xxh3_128;

use super::{Error, Result};

/// Its name in the run's folder.
pub const LOCK: &str = "run.lock";

/// Time between two notes of what was spent.
const BEAT: Duration = Duration::from_millis(200);
/// Bytes of a note: of one length, so that a newer one covers an older one.
const NOTE_BYTES: usize = 400;
/// How often locking is tried again on a folder that is renamed meanwhile.
const TRIES: usize = 10;
/// Whoever looks whether a run is under way holds the lock for a moment: it is tried again so often, after so
/// long.
const LOOKED_AT: (usize, Duration) = (5, Duration::from_millis(20));

/// Seconds since 1970.
pub(super) fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What the holder of a lock says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    process: u32,
    started_unix_s: f64,
    deadline_unix_s: Option<f64>,
    /// Hash of the job's text.
    job: String,
    /// Seconds on the run's clock, a moment ago.
    spent_s: f64,
    /// Steps in the LoRA that was delivered, if the run has come to its end.
    delivered: Option<u64>,
    /// Whether its last samples, scores and reports were still missing.
    #[serde(default)]
    is_closing: bool,
}

impl Note {
    fn new(job: &str) -> Note {
        Note {
            process: std::process::id(),
            started_unix_s: unix_s(),
            deadline_unix_s: None,
            job: format!("{:032x}", xxh3_128(job.as_bytes())),
            spent_s: 0.0,
            delivered: None,
            is_closing: false,
        }
    }

    /// Seconds that the last run here has spent.
    pub fn spent_s(&self) -> f64 {
        self.spent_s
    }

    /// Whether this was the text of its job.
    pub fn is_of(&self, job: &str) -> bool {
        self.job == Note::new(job).job
    }

    /// Steps in the LoRA that the last run delivered.
    pub fn delivered(&self) -> Option<u64> {
        self.delivered
    }

    /// Whether the last run was cut off between the delivery of its LoRA and its end.
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    fn read(file: &File) -> Option<Note> {
        let mut bytes = Vec::new();
        file.take(NOTE_BYTES as u64).read_to_end(&mut bytes).ok()?;
        let note: Note = serde_json::from_slice(&bytes).ok()?;
        (note.spent_s.is_finite() && note.spent_s >= 0.0).then_some(note)
    }

    /// Writes the note over the one before, in one call.
    fn write(&self, file: &File) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.resize(NOTE_BYTES - 1, b' ');
        bytes.push(b'\n');
        #[cfg(unix)]
        let written = std::os::unix::fs::FileExt::write_at(file, &bytes, 0)?;
        #[cfg(windows)]
        let written = std::os::windows::fs::FileExt::seek_write(file, &bytes, 0)?;
        if written < bytes.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}

/// Where the folder of a run is now.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    /// Where it was.
    Here,
    /// Somebody renamed it to this.
    Moved(PathBuf),
    /// It, or the lock in it, was removed or replaced.
    Gone,
}

/// The lock of a folder; dropping it releases it.
#[derive(Debug)]
pub struct RunLock {
    folder: PathBuf,
    /// `None` where files cannot be locked.
    file: Option<Arc<File>>,
    before: Option<Note>,
    note: Arc<Mutex<Note>>,
    beating: Option<(Sender<()>, JoinHandle<()>)>,
}

impl RunLock {
    /// Locks a folder, creating it if necessary, for a job with this text. A file system without locks is
    /// only a warning.
    ///
    /// # Errors
    /// [`Error::Locked`]: another run is under way there. The folder cannot be made.
    pub fn acquire(folder: &Path, job: &str, warn: &mut dyn FnMut(String)) -> Result<RunLock> {
        crate::files::atomic::make_folder(folder).map_err(|e| Error::file("make the folder", folder, e))?;
        let path = folder.join(LOCK);
        let note = Arc::new(Mutex::new(Note::new(job)));
        let lock = |file, before| RunLock { folder: folder.to_path_buf(), file, before, note, beating: None };
        let mut without = |e: io::Error| {
            warn(format!(
                "{} cannot be locked ({e}); make sure that no other run uses the folder",
                path.display()
            ));
        };
        for _ in 0..TRIES {
            let file = match open(&path) {
                Ok(file) => file,
                // The folder was renamed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    crate::files::atomic::make_folder(folder)
                        .map_err(|e| Error::file("make the folder", folder, e))?;
                    continue;
                }
                Err(e) => {
                    without(e);
                    return Ok(lock(None, None));
                }
            };
            match try_lock(&file) {
                Ok(()) if is_at(&file, &path) => {
                    let before = Note::read(&file);
                    return Ok(lock(Some(Arc::new(file)), before));
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Locked(describe(folder, Note::read(&file))));
                }
                Err(TryLockError::Error(e)) => {
                    without(e);
                    return Ok(lock(None, None));
                }
            }
        }
        Err(Error::Locked(describe(folder, None)))
    }

    /// What the run before this one noted.
    pub(super) fn before(&self) -> Option<&Note> {
        self.before.as_ref()
    }

    /// From now on notes the time spent; the run's clock reads `spent_s` now.
    pub fn start(&mut self, spent_s: f64, deadline_in_s: Option<f64>) {
        self.tell_deadline(deadline_in_s);
        self.own().spent_s = spent_s;
        let Some(file) = self.file.clone() else { return };
        let (note, clock) = (Arc::clone(&self.note), WallClock::start());
        let (stop, stopped) = mpsc::channel();
        // If a note cannot be written, only its information is lost.
        let beat = move || {
            let mut note = own(&note);
            note.spent_s = spent_s + clock.now_s();
            let _ = note.write(&file);
        };
        beat();
        let thread = std::thread::Builder::new().name("run.lock".into()).spawn(move || {
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                beat();
            }
            beat();
        });
        self.beating = thread.ok().map(|thread| (stop, thread));
    }

    /// Notes when the run has to be done, in seconds from now.
    pub fn tell_deadline(&self, in_s: Option<f64>) {
        self.own().deadline_unix_s = in_s.map(|s| unix_s() + s);
    }

    /// Notes that the LoRA of this many steps was delivered; the phases after it are still missing.
    pub fn tell_delivered(&self, steps: u64) {
        self.tell(|note| (note.delivered, note.is_closing) = (Some(steps), true));
    }

    /// Notes that the run has ended.
    pub fn tell_closed(&self) {
        self.tell(|note| note.is_closing = false);
    }

    fn tell(&self, change: impl FnOnce(&mut Note)) {
        let mut note = self.own();
        change(&mut note);
        if let Some(file) = &self.file {
            let _ = note.write(file);
        }
    }

    /// Withdraws the noted time: the run failed before it did anything.
    pub fn forget(&mut self) {
        self.stop();
        let mut note = self.own();
        note.spent_s = 0.0;
        if let Some(file) = &self.file {
            let _ = note.write(file);
        }
    }

    /// Looks where the folder is.
    pub(super) fn place(&self) -> Place {
        let Some(file) = &self.file else {
            return if self.folder.is_dir() { Place::Here } else { Place::Gone };
        };
        if is_at(file, &self.folder.join(LOCK)) {
            return Place::Here;
        }
        match path_of(file).filter(|path| is_at(file, path)) {
            Some(path) => path.parent().map_or(Place::Gone, |folder| Place::Moved(folder.to_path_buf())),
            None => Place::Gone,
        }
    }

    /// Notes that the folder was renamed.
    pub fn moved_to(&mut self, folder: &Path) {
        self.folder = folder.to_path_buf();
    }

    /// Locks another folder in place of this one, which is gone; the note goes on.
    ///
    /// # Errors
    /// As [`RunLock::acquire`].
    pub fn replace(&mut self, folder: &Path, job: &str, warn: &mut dyn FnMut(String)) -> Result<()> {
        let mut lock = RunLock::acquire(folder, job, warn)?;
        self.stop();
        let note = self.own().clone();
        let deadline_in_s = note.deadline_unix_s.map(|s| s - unix_s());
        lock.own().started_unix_s = note.started_unix_s;
        lock.start(note.spent_s, deadline_in_s);
        *self = lock;
        Ok(())
    }

    /// Removes the file of the lock; for a folder that was moved aside.
    pub fn remove(self, folder: &Path) {
        // Left behind it would do no harm.
        let _ = std::fs::remove_file(folder.join(LOCK));
    }

    fn own(&self) -> MutexGuard<'_, Note> {
        own(&self.note)
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.beating.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        self.stop();
        // A child that another thread is just starting holds a copy of the file until it runs its own
        // program: closing ours would not end the lock.
        if let Some(file) = &self.file {
            let _ = file.unlock();
        }
    }
}

fn own(note: &Mutex<Note>) -> MutexGuard<'_, Note> {
    note.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the file of a lock, creating it if necessary; another user's may be locked without being written.
fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    match opened {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => File::open(path).map_err(|_| e),
        other => other,
    }
}

/// Locks a file, also one that somebody is just looking at.
fn try_lock(file: &File) -> std::result::Result<(), TryLockError> {
    let (times, pause) = LOOKED_AT;
    for _ in 1..times {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(pause),
            done => return done,
        }
    }
    file.try_lock()
}

/// Whether this name is that of the open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(ours), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Windows does not let folders be renamed in which a file is open.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// The present name of an open file, where the system knows it.
#[cfg(target_os = "linux")]
fn path_of(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

#[cfg(not(target_os = "linux"))]
fn path_of(_: &File) -> Option<PathBuf> {
    None
}

/// The message for somebody who starts a second run.
fn describe(folder: &Path, note: Option<Note>) -> String {
    let folder = folder.display();
    let Some(note) = note else { return format!("a run is under way in {folder}") };
    let time = |unix_s: f64| {
        let moment = Timestamp::from_millisecond((unix_s * 1e3) as i64).unwrap_or_default();
        let zoned = moment.to_zoned(TimeZone::system());
        let today = Timestamp::now().to_zoned(TimeZone::system()).date();
        zoned.strftime(if zoned.date() == today { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" }).to_string()
    };
    let deadline = note.deadline_unix_s.map_or("no deadline".into(), |s| format!("deadline {}", time(s)));
    format!(
        "a run is under way in {folder}: process {}, since {}, {deadline}",
        note.process,
        time(note.started_unix_s)
    )
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;

    use super::*;

    fn acquire(folder: &Path) -> Result<RunLock> {
        RunLock::acquire(folder, "job", &mut |text| panic!("{text}"))
    }

    #[test]
    fn one_run_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("deep/run");
        let mut lock = acquire(&folder).unwrap();
        lock.start(5.0, Some(60.0));
        let told = acquire(&folder).unwrap_err().to_string();
        assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
        assert!(told.contains("since ") && told.contains("deadline "), "{told}");
        drop(lock);
        let lock = acquire(&folder).unwrap();
        let before = lock.before().unwrap();
        assert!((5.0..35.0).contains(&before.spent_s()));
        assert!(before.is_of("job") && !before.is_of("another job") && before.delivered().is_none());
    }

    #[test]
    fn whoever_looks_whether_a_run_is_under_way_keeps_none_from_beginning() {
        let folder = tempfile::tempdir().unwrap();
        drop(acquire(folder.path()).unwrap());
        let looking = File::open(folder.path().join(LOCK)).unwrap();
        looking.try_lock_shared().unwrap();
        let looked = std::thread::spawn(move || {
            std::thread::sleep(LOOKED_AT.1);
            looking.unlock().unwrap();
        });
        acquire(folder.path()).unwrap();
        looked.join().unwrap();
    }

    #[test]
    fn what_is_spent_and_delivered_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let mut lock = acquire(folder.path()).unwrap();
        lock.start(1000.0, None);
        std::thread::sleep(3 * BEAT);
        // As after a kill: the process is gone, and its last note stands.
        let note = Note::read(&File::open(folder.path().join(LOCK)).unwrap()).unwrap();
        assert!(note.spent_s >= 1000.2, "{note:?}");
        lock.tell_delivered(7);
        assert!(lock.own().is_closing());
        lock.tell_closed();
        drop(lock);
        let mut lock = acquire(folder.path()).unwrap();
        assert_eq!(lock.before().unwrap().delivered(), Some(7));
        lock.start(2000.0, None);
        lock.forget();
        drop(lock);
        assert_eq!(acquire(folder.path()).unwrap().before().unwrap().spent_s(), 0.0);
    }

    #[test]
    fn a_note_that_is_spoilt_is_none() {
        let folder = tempfile::tempdir().unwrap();
        for spoilt in [&b""[..], b"{", b"\xff\xff", b"{\"process\":1}"] {
            fs::write(folder.path().join(LOCK), spoilt).unwrap();
            assert!(acquire(folder.path()).unwrap().before().is_none());
        }
    }

    #[test]
    fn a_folder_that_is_renamed_or_removed_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, other) = (parent.path().join("run"), parent.path().join("other"));
        let mut lock = acquire(&folder).unwrap();
        assert_eq!(lock.place(), Place::Here);
        fs::rename(&folder, &other).unwrap();
        // A second run may begin where the first was.
        let second = acquire(&folder).unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(lock.place(), Place::Moved(other.canonicalize().unwrap()));
            lock.moved_to(&other);
            assert_eq!(lock.place(), Place::Here);
        }
        fs::remove_dir_all(&other).unwrap();
        assert_eq!(lock.place(), Place::Gone);
        assert!(matches!(lock.replace(&folder, "job", &mut |_| {}), Err(Error::Locked(_))));
        drop(second);
        lock.replace(&folder, "job", &mut |_| {}).unwrap();
        assert_eq!(lock.place(), Place::Here);
        // The file alone is removed.
        fs::remove_file(folder.join(LOCK)).unwrap();
        assert_eq!(lock.place(), Place::Gone);
    }

    /// Whoever has opened the file of a folder that is then moved aside has locked nothing.
    #[test]
    fn a_lock_in_a_folder_that_was_moved_aside_counts_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let lock = acquire(&folder).unwrap();
        let late = open(&folder.join(LOCK)).unwrap();
        fs::rename(&folder, parent.path().join("run.old-1")).unwrap();
        drop(lock);
        late.try_lock().unwrap();
        assert!(!is_at(&late, &folder.join(LOCK)));
        assert!(acquire(&folder).is_ok());
    }
}
