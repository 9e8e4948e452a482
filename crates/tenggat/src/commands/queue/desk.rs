//! What the page asks about jobs that are not in the queue yet.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tenggat_queue::{Folder, Program, Queue};
use tenggat_serve::{Checked, NewJob};
use tenggat_train::job::{Job, parse_local_moment};

use super::add::{Terms, add};
use crate::device::Choice;

/// How long a check may take before it is given up: somebody waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most bytes that are read of what a check says.
const MOST_SAID: u64 = 1 << 16;

/// Checks jobs and puts them into the queue.
#[derive(Debug)]
pub struct Desk {
    pub folder: Folder,
    pub device: Choice,
}

impl tenggat_serve::Desk for Desk {
    fn check(&self, job: &str) -> Checked {
        self.checked(job).unwrap_or_else(|e| Checked { ok: false, lines: vec![format!("error: {e:#}")] })
    }

    fn add(&self, new: &NewJob) -> Result<i64, String> {
        self.added(new).map_err(|e| format!("{e:#}"))
    }
}

impl Desk {
    /// What `tenggat check` says, in a process of its own: it decodes images, and is ended if that takes
    /// long.
    fn checked(&self, job: &str) -> anyhow::Result<Checked> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("job.yaml");
        fs::write(&path, job)?;
        // Most of what one types is wrong at first, which needs no process to be known.
        let variable = |name: &str| std::env::var(name).ok();
        if let Err(e) = Job::from_file(&path, None, &variable) {
            return Ok(Checked { ok: false, lines: lines(&e.to_string(), &path) });
        }
        let said = folder.path().join("said");
        let out = fs::File::create(&said)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("check")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if began.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                break None;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let mut bytes = Vec::new();
        fs::File::open(&said)?.take(MOST_SAID).read_to_end(&mut bytes)?;
        let mut lines = lines(&String::from_utf8_lossy(&bytes), &path);
        if status.is_none() {
            lines.push(format!("not all images were looked at within {} s", PATIENCE.as_secs()));
        }
        // What was not looked at is looked at by the run.
        Ok(Checked { ok: status.is_none_or(|status| status.success()), lines })
    }

    fn added(&self, new: &NewJob) -> anyhow::Result<i64> {
        let checked = self.checked(&new.job)?;
        ensure!(checked.ok, "{}", checked.lines.join("\n"));
        let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let budget_s = given(&new.budget).map(|text| tenggat_plan::parse_duration_s(&text)).transpose()?;
        let by = given(&new.by).map(|text| parse_local_moment(&text)).transpose();
        let by = by.map_err(|e| anyhow::anyhow!(e))?;
        let variable = |name: &str| std::env::var(name).ok();
        let (job, _) = Job::from_str(&new.job, Path::new("job.yaml"), None, &variable)?;
        let path = self.keep(&job.name, &new.job)?;
        let terms = Terms { budget_s, by, name: None, program: Program::Train, device: self.device };
        let mut queue = Queue::open(self.folder.path())?;
        let added = add(&mut queue, std::slice::from_ref(&path), &terms);
        if added.is_err() {
            let _ = fs::remove_file(&path);
        }
        added?.first().copied().context("nothing was added")
    }

    /// Writes a job file of its own for a job.
    fn keep(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.jobs();
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let plain = |c: char| if c.is_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
        let name: String = name.chars().take(60).map(plain).collect();
        for number in 1.. {
            let path = folder.join(format!("{name}-{number}.yaml"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    file.write_all(text.as_bytes())?;
                    file.sync_all()?;
                    return Ok(path);
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("cannot write {}", path.display())),
            }
        }
        unreachable!("some number is free")
    }
}

/// Lines without the folder that only the check knows.
fn lines(text: &str, path: &Path) -> Vec<String> {
    let folder = path.parent().unwrap_or(path).display().to_string() + "/";
    text.lines()
        .map(|line| line.replace(&folder, "").trim_end().to_owned())
        .filter(|l| !l.is_empty())
        .collect()
}
