//! A trainer's process: started in a group of its own, so that Ctrl-C reaches the drive alone and it can save
//! first; and ended with the drive, so that no trainer outlives its deadline.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// The variable with the key that messages about a run are signed with. It is ours: no trainer gets it.
pub const WEBHOOK_SECRET: &str = "TENGGAT_WEBHOOK_SECRET";

/// A running or ended process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a program with its output going to a file.
    ///
    /// # Errors
    /// The system's reason.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Process> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Words should reach the file when they are said.
        command.env("PYTHONUNBUFFERED", "1").env_remove(WEBHOOK_SECRET);
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            command.process_group(0);
            hear_interrupts(command);
        }
        #[cfg(target_os = "linux")]
        die_with_parent(command);
        Ok(Process { child: command.spawn()?, status: None })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Sends its whole group what Ctrl-C would.
    pub fn interrupt(&mut self) {
        self.signal(Signal::Interrupt);
    }

    /// Asks its whole group to end.
    pub fn terminate(&mut self) {
        self.signal(Signal::Terminate);
    }

    /// Ends its whole group, whatever it does, and waits until it is gone, for at most a twentieth of a
    /// second.
    pub fn kill(&mut self) {
        // Launchers start trainers in sessions of their own, which the group's signal does not reach.
        let descendants = if self.ended().is_none() { descendants(self.child.id()) } else { Vec::new() };
        self.signal(Signal::Kill);
        descendants.into_iter().for_each(kill_one);
        for _ in 0..10 {
            if self.ended().is_some() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[cfg(unix)]
    fn signal(&mut self, signal: Signal) {
        if self.ended().is_some() {
            return;
        }
        let signal = match signal {
            Signal::Interrupt => rustix::process::Signal::INT,
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
        };
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // A group that is gone needs none.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    #[cfg(not(unix))]
    fn signal(&mut self, _signal: Signal) {
        let _ = self.child.kill();
    }
}

/// The processes below a process, as Linux tells them; none elsewhere.
fn descendants(root: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets and may hold anything.
        text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        let children = parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child);
        for child in children {
            found.push(child);
            next.push(child);
        }
    }
    found
}

#[cfg(unix)]
fn kill_one(pid: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        // One that is gone needs none.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(not(unix))]
fn kill_one(_pid: u32) {}

#[derive(Debug, Clone, Copy)]
enum Signal {
    Interrupt,
    Terminate,
    Kill,
}

/// Lets the child be interrupted. A shell without job control has what it starts with `&` ignore SIGINT, and
/// programs inherit that; a trainer that is asked to save by SIGINT would never hear of it.
#[cfg(unix)]
fn hear_interrupts(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let hear = || {
        // SAFETY: `signal` is a plain system call, allowed between fork and exec, and is given no function.
        match unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) } {
            libc::SIG_ERR => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: runs between fork and exec; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(hear) };
}

/// Has the kernel kill the child when the drive's thread is gone: a drive that is killed leaves no trainer
/// behind that would run past the deadline.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let parent = rustix::process::getpid();
    let set = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have gone before the line above.
        match rustix::process::getppid() {
            Some(now) if now == parent => Ok(()),
            _ => Err(io::Error::other("the drive is gone")),
        }
    };
    // SAFETY: runs between fork and exec; both are plain system calls that allocate nothing and take no lock.
    unsafe { command.pre_exec(set) };
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// As under `tenggat drive ... &` in a script.
    #[test]
    fn a_trainer_can_be_interrupted_even_if_we_cannot() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        // Without the child's own disposition, the shell lives on and says so.
        command.args(["-c", "kill -INT $$; exit 3"]);
        // SAFETY: a disposition without a function; the old one is restored below.
        let before = unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
        let started = Process::start(&mut command, &folder.path().join("log"));
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGINT, before) };
        let mut process = started.unwrap();
        let status = loop {
            match process.ended() {
                Some(status) => break status,
                None => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        assert_eq!(status.signal(), Some(libc::SIGINT), "{status:?}");
    }
}
