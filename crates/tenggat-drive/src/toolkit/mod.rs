//! ostris/ai-toolkit, driven through its own control channel: nothing of its tree is changed.

mod channel;
mod job;
mod saves;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime};

use tenggat_plan::Clock;

use crate::disk::{self, Room};
use crate::error::{Error, Result};
use crate::gpu;
use crate::lora::{self, Checked, LAST, ModelKeys, NotWhole};
use crate::process::Process;
use crate::state::Home;
use crate::trainer::{Ask, Delivery, Exit, Look, Session, Stage, Trainer, Trouble};
use crate::words::Tail;

pub use job::{Deliver, ToolkitJob, Wishes};
pub use saves::{Save, Saves};

use channel::{Channel, JOB_ID, JOB_ID_VARIABLE, Row};

/// Where ai-toolkit is, and what runs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Installation {
    /// The checkout: the folder with `run.py`.
    pub folder: PathBuf,
    /// The Python that has its packages.
    pub python: PathBuf,
}

impl Installation {
    /// Finds ai-toolkit: the folder given, or `AI_TOOLKIT`, or the present folder, or `ai-toolkit` there,
    /// beside it or at home; and Python: the one given, or the folder's own environment, or `python3`.
    ///
    /// # Errors
    /// The places that were looked at.
    pub fn find(folder: Option<&Path>, python: Option<&Path>) -> Result<Installation, String> {
        let named =
            folder.map(Path::to_path_buf).or_else(|| std::env::var_os("AI_TOOLKIT").map(PathBuf::from));
        let usual = || {
            let mut places: Vec<PathBuf> = [".", "ai-toolkit", "../ai-toolkit"].map(PathBuf::from).to_vec();
            places.extend(std::env::home_dir().map(|home| home.join("ai-toolkit")));
            places.push("/app/ai-toolkit".into());
            places
        };
        let places = named.map_or_else(usual, |folder| vec![folder]);
        let is_it = |folder: &&PathBuf| folder.join("run.py").is_file() && folder.join("toolkit").is_dir();
        let Some(folder) = places.iter().find(is_it) else {
            let looked: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            return Err(format!(
                "ai-toolkit (a folder with `run.py` and `toolkit`) was not found in {}; name it with \
                 --trainer-dir",
                looked.join(", ")
            ));
        };
        let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
        let own =
            ["venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe", ".venv/Scripts/python.exe"];
        let own = own.iter().map(|p| folder.join(p)).find(|p| p.is_file());
        let python = python.map(Path::to_path_buf).or(own).unwrap_or_else(|| "python3".into());
        Ok(Installation { folder, python })
    }
}

/// Bytes that should be free whatever saves take: logs, caches, the database.
const LEAST_ROOM: u64 = 64 << 20;

/// A drive's ai-toolkit.
pub struct AiToolkit<'a> {
    installation: Installation,
    job: ToolkitJob,
    saves: Saves,
    home: &'a Home,
    clock: &'a dyn Clock,
    /// The published file.
    last: PathBuf,
    log: PathBuf,
    channel: Option<Channel>,
    process: Option<Process>,
    tail: Tail,
    row: Row,
    /// Whether it was ever seen to train in this session.
    trains: bool,
    started: SystemTime,
    spoilt: Option<PathBuf>,
    extra: Option<PathBuf>,
    publication: Option<Publication>,
    model: Option<Arc<ModelKeys>>,
}

/// A save that is being published, on a thread of its own: one that a slow disk holds up must not hold up the
/// end.
struct Publication {
    save: Save,
    began: Instant,
    done: Receiver<Result<Checked, NotWhole>>,
}

impl Publication {
    fn begin(save: Save, to: PathBuf, model: Option<Arc<ModelKeys>>) -> Self {
        let (sender, done) = mpsc::channel();
        let from = save.path.clone();
        let publish = move || lora::publish_fitting(&from, &to, model.as_deref());
        std::thread::spawn(move || sender.send(publish()));
        Publication { save, began: Instant::now(), done }
    }
}

impl<'a> AiToolkit<'a> {
    /// For a job whose run folder is `home`'s.
    pub fn new(installation: Installation, job: ToolkitJob, home: &'a Home, clock: &'a dyn Clock) -> Self {
        let log = home.file("trainer.log");
        AiToolkit {
            saves: job.saves(),
            last: job.folder.join(LAST),
            tail: Tail::new(&log),
            installation,
            job,
            home,
            clock,
            log,
            channel: None,
            process: None,
            row: Row::default(),
            trains: false,
            started: SystemTime::now(),
            spoilt: None,
            extra: None,
            publication: None,
            model: None,
        }
    }

    /// Has LoRAs published only if every key fits a layer of this model.
    pub fn fits(&mut self, model: Option<Arc<ModelKeys>>) {
        self.model = model;
    }

    /// The trainer's output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The number of the trainer's process, if one was started.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    fn exit(&self, status: std::process::ExitStatus) -> Exit {
        let (trouble, words) = self.tail.trouble();
        if self.row.status == "completed" || status.success() && self.row.status != "stopped" {
            return Exit { completed: true, trouble: Trouble::None, words: String::new() };
        }
        if self.row.status == "stopped" {
            return Exit { completed: false, trouble: Trouble::None, words: "it was stopped".into() };
        }
        if killed(status) {
            return Exit { completed: false, trouble: Trouble::Killed, words: status.to_string() };
        }
        // Its own word for what went wrong is better than a line of its output.
        let said = self.row.info.trim();
        let own = (self.row.status == "error" && !said.is_empty())
            .then(|| said.chars().take(300).collect::<String>());
        let trouble = own.as_deref().and_then(crate::words::recognise).unwrap_or(trouble);
        let words = own.unwrap_or(words);
        let words = format!("{words} ({status}; the log is {})", self.log.display());
        Exit { completed: false, trouble, words }
    }

    /// Removes the save that was asked for before this one: the job's own saves are what the user wants to
    /// find.
    fn tidy(&mut self, newest: &Save) {
        let asked_by_job = self.job.save_every > 0 && newest.steps.is_multiple_of(self.job.save_every);
        let numbered = self.saves.numbered(newest.steps) == newest.path;
        if let Some(old) = self.extra.take().filter(|old| *old != newest.path) {
            // One that stays costs room and nothing else.
            let _ = fs::remove_file(old);
        }
        if numbered && !asked_by_job {
            self.extra = Some(newest.path.clone());
        }
    }
}

#[cfg(unix)]
fn killed(status: std::process::ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(9) || status.code() == Some(137)
}

#[cfg(not(unix))]
fn killed(_status: std::process::ExitStatus) -> bool {
    false
}

/// What a row's words mean. Source: ai-toolkit, the calls of `update_status` and `print_and_status_update`.
fn stage(info: &str, trains: bool) -> Stage {
    let info = info.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| info.contains(word));
    if says(&["saving"]) {
        Stage::Saving
    } else if says(&["generating", "sampling"]) {
        Stage::Sampling
    } else if info == "training" || trains {
        Stage::Training
    } else if says(&["quantiz", "quantis"]) {
        Stage::Quantising
    } else if says(&["dataset", "caching"]) {
        Stage::Caching
    } else {
        Stage::Loading
    }
}

impl Trainer for AiToolkit<'_> {
    fn now_s(&self) -> f64 {
        self.clock.now_s()
    }

    fn wait(&mut self, seconds: f64) {
        std::thread::sleep(Duration::from_secs_f64(seconds.clamp(0.0, 1.0)));
    }

    fn start(&mut self, session: &Session) -> Result<()> {
        self.process = None;
        let folder = self.job.trainer_folder().to_path_buf();
        fs::create_dir_all(&folder).map_err(|e| Error::file("make the folder", &folder, e))?;
        self.saves.prepare(&self.last, &self.home.file("unfinished"))?;
        let database = self.home.file("control.db");
        let database = std::path::absolute(&database).map_err(|e| Error::file("find", &database, e))?;
        self.channel = Some(Channel::create(&database)?);
        let job = self.home.file("job.json");
        let text = format!("{:#}\n", self.job.for_session(session, &database));
        fs::write(&job, text).map_err(|e| Error::file("write", &job, e))?;
        let job = std::path::absolute(&job).map_err(|e| Error::file("find", &job, e))?;
        (self.row, self.trains, self.spoilt) = (Row::default(), false, None);
        self.tail = Tail::new(&self.log);
        self.started = SystemTime::now();
        let mut command = Command::new(&self.installation.python);
        command.arg(self.installation.folder.join("run.py")).arg(job);
        command.env(JOB_ID_VARIABLE, JOB_ID);
        let started = Process::start(&mut command, &self.log).map_err(|source| Error::Start {
            program: self.installation.python.display().to_string(),
            source,
            advice: "name ai-toolkit's Python with --python",
        })?;
        self.process = Some(started);
        Ok(())
    }

    fn look(&mut self) -> Look {
        // The end is looked for first: what the row says then is all that it will say.
        let ended = self.process.as_mut().and_then(Process::ended);
        if let Some(row) = self.channel.as_ref().and_then(Channel::read) {
            self.row = row;
        }
        self.tail.follow();
        let stage = stage(&self.row.info, self.trains);
        self.trains |= stage == Stage::Training;
        let bar = self.tail.bar;
        Look {
            stage,
            step: self.trains.then_some(self.row.step).filter(|_| self.row.status == "running"),
            save_pending: self.row.save_now,
            loss: bar.and_then(|b| b.loss),
            lr: bar.and_then(|b| b.lr),
            exit: ended.map(|status| self.exit(status)),
        }
    }

    fn ask(&mut self, ask: Ask) {
        let channel = self.channel.as_ref();
        // A row that cannot be written now is written at the next try; at the worst stronger means follow.
        match ask {
            Ask::Save => drop(channel.map(Channel::ask_save)),
            Ask::Stop => drop(channel.map(Channel::ask_stop)),
            Ask::Interrupt => self.process.iter_mut().for_each(Process::interrupt),
            Ask::Kill => self.process.iter_mut().for_each(Process::kill),
        }
    }

    fn deliver(&mut self, beyond: u64, until_s: f64) -> Delivery {
        let publication = match self.publication.take() {
            Some(under_way) => under_way,
            None => {
                // Clocks of file systems are coarse.
                let since = self.started - Duration::from_secs(2);
                let Some(save) = self.saves.newest(beyond, since) else { return Delivery::Nothing };
                Publication::begin(save, self.last.clone(), self.model.clone())
            }
        };
        let left_s = (until_s - self.clock.now_s()).clamp(0.0, 1e6);
        let done = match publication.done.recv_timeout(Duration::from_secs_f64(left_s)) {
            Ok(done) => done,
            Err(_) => {
                self.publication = Some(publication);
                return Delivery::Nothing;
            }
        };
        let save = publication.save;
        match done {
            Ok(_) => {
                self.tidy(&save);
                let seconds = publication.began.elapsed().as_secs_f64();
                Delivery::Delivered { path: self.last.clone(), steps: save.steps, seconds }
            }
            Err(e) if e.may_grow() => Delivery::Nothing,
            Err(_) if self.spoilt.as_ref() == Some(&save.path) => Delivery::Nothing,
            Err(e) => {
                self.spoilt = Some(save.path.clone());
                Delivery::Spoilt { path: save.path, why: e.to_string() }
            }
        }
    }

    fn room(&mut self) -> Option<Room> {
        let folder = self.job.trainer_folder();
        let free = disk::free_bytes(folder)?;
        let (whole, _) = self.saves.all();
        let save = whole.iter().filter_map(|save| fs::metadata(&save.path).ok()).map(|m| m.len()).max();
        let optimiser = fs::metadata(folder.join("optimizer.pt")).map_or(0, |m| m.len());
        // The trainer's file, the copy that is published, and the optimiser's state, which some systems keep
        // until the new one is there.
        let needed = (2 * save.unwrap_or(0)).saturating_add(optimiser).max(LEAST_ROOM);
        Some(Room { folder: folder.into(), free, needed })
    }

    fn make_room(&mut self) -> u64 {
        let aside = self.home.file("unfinished");
        let mut freed = disk::bytes_in(&aside);
        if fs::remove_dir_all(&aside).is_err() {
            freed -= disk::bytes_in(&aside).min(freed);
        }
        let published = lora::peek(&self.last).ok().and_then(|checked| checked.steps).unwrap_or(0);
        freed + self.saves.remove_beyond(self.job.keep, published)
    }

    fn clues(&mut self) -> Vec<String> {
        gpu::clues()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_stages() {
        for (info, expected) in [
            ("", Stage::Loading),
            ("Starting", Stage::Loading),
            ("Loading transformer", Stage::Loading),
            ("Quantizing Transformer", Stage::Quantising),
            ("Loading dataset", Stage::Caching),
            ("Generating images - 2/10", Stage::Sampling),
            ("Training", Stage::Training),
            ("Saving model", Stage::Saving),
        ] {
            assert_eq!(stage(info, false), expected, "{info}");
        }
        assert_eq!(stage("Job stopped", true), Stage::Training);
    }
}
