//! Which pictures a data set holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Error, Result, file};

/// Extensions of pictures, in lower case: those of ai-toolkit (`toolkit/data_loader.py`, `image_extensions`),
/// then what it passes over and the decoder reads as well.
pub(super) const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "jfif", "gif", "tif", "tiff", "bmp"];

/// Extensions of pictures that are not read, in lower case. Files of all other kinds are no pictures.
const UNREAD: [&str; 26] = [
    "heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "jpx", "psd", "svg", "ico", "tga", "exr", "hdr",
    "dng", "raw", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "pef", "srw", "xcf",
];

/// Folder of control pictures, which are no training pictures.
const CONTROLS: &str = "_controls";

/// Folders of thumbnails and the like that some systems put among pictures: Synology's, and macOS's in
/// archives.
const LITTER: [&str; 2] = ["@eaDir", "__MACOSX"];

/// Most bytes of a JSON list.
const LARGEST_LIST: u64 = 256 << 20;

/// A picture of a data set with the caption that a list gives it.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    pub path: PathBuf,
    /// Caption of a JSON list; `None`: look for a caption file.
    pub caption: Option<String>,
}

/// What a folder or list holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Pictures, sorted by path, so that a run does not depend on the file system.
    pub pictures: Vec<Found>,
    /// Pictures of kinds that are not read.
    pub unread: Vec<PathBuf>,
    /// Folders that were not looked into.
    pub passed: Vec<PathBuf>,
}

/// Every picture under a folder, or in a JSON list (path → {"caption": …}, or "caption_short" if asked for).
/// Names that start with a dot are left out, pictures right inside `_controls`, and the folder `except`.
///
/// # Errors
/// The folder or list cannot be read, or the list is no JSON.
pub(super) fn pictures(path: &Path, short: bool, except: Option<&Path>) -> Result<Listing> {
    let mut listing = Listing::default();
    if path.is_dir() {
        let except = except.and_then(|folder| folder.canonicalize().ok());
        walk(path, except.as_deref(), &mut listing)?;
    } else {
        let text =
            file::read(path, LARGEST_LIST).map_err(|source| Error::Read { path: path.into(), source })?;
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
        let list: BTreeMap<String, Entry> = serde_json::from_slice(text)
            .map_err(|e| Error::List { path: path.into(), reason: e.to_string() })?;
        let found = |(path, entry): (String, Entry)| Found { path: path.into(), caption: entry.text(short) };
        listing.pictures.extend(list.into_iter().map(found));
    }
    listing.pictures.retain(|f| f.path.parent().and_then(Path::file_name) != Some(CONTROLS.as_ref()));
    Ok(listing)
}

#[derive(serde::Deserialize)]
struct Entry {
    caption: Option<String>,
    caption_short: Option<String>,
}

impl Entry {
    fn text(self, short: bool) -> Option<String> {
        if short { self.caption_short.or(self.caption) } else { self.caption }
    }
}

fn walk(folder: &Path, except: Option<&Path>, listing: &mut Listing) -> Result<()> {
    let unread = |source| Error::Read { path: folder.into(), source };
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(unread)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()
        .map_err(unread)?;
    entries.sort();
    for path in entries {
        let Some(name) = path.file_name() else { continue };
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // As os.walk does by default, links to folders are not followed, so that no circle can be.
        let link = path.symlink_metadata().is_ok_and(|m| m.is_symlink());
        if path.is_dir() {
            let is_except = || except.is_some() && path.canonicalize().ok().as_deref() == except;
            if LITTER.iter().any(|litter| name == *litter) || is_except() {
                listing.passed.push(path);
            } else if !link {
                walk(&path, except, listing)?;
            }
            continue;
        }
        match extension(&path) {
            Some(e) if EXTENSIONS.contains(&e.as_str()) => {
                listing.pictures.push(Found { path, caption: None });
            }
            Some(e) if UNREAD.contains(&e.as_str()) => listing.unread.push(path),
            _ => {}
        }
    }
    Ok(())
}

/// The extension in lower case.
pub(super) fn extension(path: &Path) -> Option<String> {
    path.extension().map(|e| e.to_string_lossy().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, files: &[&str]) {
        for file in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
    }

    fn names<'a>(folder: &Path, paths: impl Iterator<Item = &'a PathBuf>) -> Vec<String> {
        paths.map(|path| path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn folders_are_walked_and_hidden_things_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            "b.PNG",
            "a.jpg",
            "note.txt",
            ".hidden.png",
            "deep/er/c.webp",
            ".thumbs/d.png",
            "_controls/e.png",
            "_controls/f/g.jpeg",
            "x.gif",
            "folder.png/inside.tiff",
        ];
        touch(folder.path(), &files);
        let found = pictures(folder.path(), false, None).unwrap();
        let expected =
            ["_controls/f/g.jpeg", "a.jpg", "b.PNG", "deep/er/c.webp", "folder.png/inside.tiff", "x.gif"];
        assert_eq!(names(folder.path(), found.pictures.iter().map(|f| &f.path)), expected);
        assert!(found.unread.is_empty() && found.passed.is_empty());
    }

    #[test]
    fn what_is_passed_over_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a.png", "IMG_1.HEIC", "b.avif", "@eaDir/a.png/SYNOFILE_THUMB_M.jpg", "masks/a.png"];
        touch(folder.path(), &files);
        let found = pictures(folder.path(), false, Some(&folder.path().join("./masks"))).unwrap();
        assert_eq!(names(folder.path(), found.pictures.iter().map(|f| &f.path)), ["a.png"]);
        assert_eq!(names(folder.path(), found.unread.iter()), ["IMG_1.HEIC", "b.avif"]);
        assert_eq!(names(folder.path(), found.passed.iter()), ["@eaDir", "masks"]);
        // The whole data set is no folder inside of it.
        let same = pictures(folder.path(), false, Some(folder.path())).unwrap();
        assert_eq!(same.pictures.len(), 2);
    }

    #[test]
    fn lists_give_paths_and_captions() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.json");
        let text = r#"{"/p/b.png": {"caption": "b", "caption_short": "s"}, "/p/a.png": {}}"#;
        let expected = [
            Found { path: "/p/a.png".into(), caption: None },
            Found { path: "/p/b.png".into(), caption: Some("b".into()) },
        ];
        for start in ["", "\u{feff}"] {
            std::fs::write(&list, format!("{start}{text}")).unwrap();
            assert_eq!(pictures(&list, false, None).unwrap().pictures, expected);
        }
        assert_eq!(pictures(&list, true, None).unwrap().pictures[1].caption.as_deref(), Some("s"));
        let refused = |path: &Path| pictures(path, false, None).unwrap_err().to_string();
        std::fs::write(&list, "[]").unwrap();
        assert!(refused(&list).contains("list.json"));
        assert!(refused(&folder.path().join("none")).contains("none"));
        assert!(refused(Path::new("/dev/null")).contains("it is not a regular file"));
    }
}
