//! Sets of other families: the folder that `TENGGAT_GOLDEN_FAMILIES` names, else archives, unpacked once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// Folder of a family's set, such as `flux`.
pub fn folder(family: &str) -> PathBuf {
    match std::env::var_os("TENGGAT_GOLDEN_FAMILIES") {
        Some(all) => PathBuf::from(all).join(family),
        None => unpacked(family).join(family),
    }
}

/// Where the committed archive of a family lies unpacked, under a name that its bytes give.
fn unpacked(family: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let archives = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/families");
    let archive = Path::new(archives).join(format!("{family}.zip"));
    let bytes = fs::read(&archive).unwrap_or_else(|e| panic!("{}: {e}", archive.display()));
    let digest: String = Sha256::digest(&bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = target.join(format!("{family}-{digest}"));
    if folder.is_dir() {
        return folder;
    }
    let fresh = tempfile::tempdir_in(target).expect("temporary folder");
    let file = File::open(&archive).expect("archive");
    let mut archive = zip::ZipArchive::new(file).expect("a zip archive");
    archive.extract(fresh.path()).expect("archive unpacks");
    let fresh = fresh.keep();
    // Whoever comes second, in another process, finds the folder there.
    if fs::rename(&fresh, &folder).is_err() {
        fs::remove_dir_all(&fresh).expect("temporary folder removed");
        assert!(folder.is_dir(), "{}", folder.display());
    }
    folder
}
