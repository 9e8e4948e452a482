//! What is asked of a run from outside: small files in its folder, which the run looks for and removes.

use std::fs;
use std::io;
use std::path::Path;

/// What can be asked besides another deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Write the newest LoRA now, and go on.
    Save,
    /// Generate the samples of the job now, and go on.
    Sample,
    /// Save what was trained and end.
    Stop,
}

impl Request {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Save, Self::Sample, Self::Stop];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Save => "save",
            Self::Sample => "sample",
            Self::Stop => "stop",
        }
    }

    /// Name of the file that asks for it.
    pub fn file(self) -> &'static str {
        match self {
            Self::Save => "save.request",
            Self::Sample => "sample.request",
            Self::Stop => "stop.request",
        }
    }
}

/// Asks a run; asking twice is asking once.
///
/// # Errors
/// The file cannot be written.
pub fn ask(folder: &Path, request: Request) -> io::Result<()> {
    fs::write(folder.join(request.file()), "")
}

/// Asks a run to move its deadline: by `+30m`, `-10m`, or to a moment.
///
/// # Errors
/// An earlier request was not taken up yet, or the file cannot be written.
pub fn ask_move(folder: &Path, to: &str) -> io::Result<()> {
    // Written whole before it has its name.
    let (path, beside) = (folder.join("deadline.request"), folder.join(".deadline.request.new"));
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::write(&beside, format!("{to}\n"))?;
    fs::rename(&beside, &path)
}

/// The run's side: whether it was asked, which is forgotten by that.
pub fn takes(folder: &Path, request: Request) -> bool {
    fs::remove_file(folder.join(request.file())).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        for request in Request::ALL {
            assert!(!takes(folder.path(), request));
            ask(folder.path(), request).unwrap();
            ask(folder.path(), request).unwrap();
            assert!(folder.path().join(request.file()).exists());
            assert!(takes(folder.path(), request) && !takes(folder.path(), request));
        }
        assert!(ask(&folder.path().join("none"), Request::Save).is_err());
    }
}
