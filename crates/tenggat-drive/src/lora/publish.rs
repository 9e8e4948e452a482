//! Putting a checked copy of a trainer's file under a name that is always whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use super::check::{Checked, NotWhole, check_into, peek};
use super::keys::ModelKeys;

/// Start of the names of unfinished copies.
const PREFIX: &str = ".tenggat-unfinished-";

/// Copies `from` to `to` while checking it: written beside, flushed to the disk, renamed into place. Whenever
/// the process is killed, `to` is the old file or the new one, and whole.
///
/// # Errors
/// As [`check`](super::check()); `to` is then what it was.
pub fn publish(from: &Path, to: &Path) -> Result<Checked, NotWhole> {
    let folder = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Like any new file, subject to the umask; the default would shut out everybody else.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut copy = builder.tempfile_in(folder)?;
    let mut out = BufWriter::with_capacity(1 << 20, copy.as_file_mut());
    let checked = check_into(from, &mut out)?;
    out.flush()?;
    drop(out);
    copy.as_file().sync_all()?;
    copy.persist(to).map_err(|e| e.error)?;
    // The name itself is on the disk only when the folder is.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(checked)
}

/// [`publish`], unless keys of the LoRA fit no layer of this model.
///
/// # Errors
/// As [`publish`], and [`NotWhole::Unfit`].
pub fn publish_fitting(from: &Path, to: &Path, model: Option<&ModelKeys>) -> Result<Checked, NotWhole> {
    // A file that is still being written has no header to hold against anything.
    if let (Ok(_), Some(model)) = (peek(from), model) {
        model.check(from).map_err(|e| NotWhole::Unfit(e.to_string()))?;
    }
    publish(from, to)
}

/// Removes unfinished copies that a killed process left in a folder.
pub(crate) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            // One that stays does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(value: f32) -> Vec<u8> {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    }

    #[test]
    fn what_is_whole_is_published_and_what_is_not_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) =
            (folder.path().join("a_000000001.safetensors"), folder.path().join("last.safetensors"));
        fs::write(&from, file(1.0)).unwrap();
        publish(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), file(1.0));
        for bad in [file(f32::NAN), file(2.0)[..60].to_vec(), Vec::new()] {
            fs::write(&from, bad).unwrap();
            publish(&from, &to).unwrap_err();
            assert_eq!(fs::read(&to).unwrap(), file(1.0));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside");
    }
}
