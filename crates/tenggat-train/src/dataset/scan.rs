//! Which pictures a data set holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Error, Result};

/// Extensions of pictures, in lower case. Source: ai-toolkit `toolkit/data_loader.py`, `image_extensions`.
pub(super) const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Folder of control pictures, which are no training pictures.
const CONTROLS: &str = "_controls";

/// Pictures of a data set with the captions that a list gives them.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    pub path: PathBuf,
    /// Caption of a JSON list; `None`: look for a caption file.
    pub caption: Option<String>,
}

/// Every picture under a folder, or in a JSON list (path → {"caption": …}, or "caption_short" if asked for); sorted by path, so that a run does not
/// depend on the file system. Names that start with a dot are left out, and pictures right inside `_controls`.
///
/// # Errors
/// The folder or list cannot be read, or the list is no JSON.
pub(super) fn pictures(path: &Path, short: bool) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, &mut found)?;
    } else {
        let text = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let list: BTreeMap<String, Entry> = serde_json::from_slice(&text)
            .map_err(|e| Error::List { path: path.into(), reason: e.to_string() })?;
        found.extend(list.into_iter().map(|(p, e)| Found { path: p.into(), caption: e.text(short) }));
    }
    found.retain(|f| f.path.parent().and_then(Path::file_name) != Some(CONTROLS.as_ref()));
    Ok(found)
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

fn walk(folder: &Path, found: &mut Vec<Found>) -> Result<()> {
    let unread = |source| Error::Read { path: folder.into(), source };
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(unread)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()
        .map_err(unread)?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        // As os.walk does by default, links to folders are not followed, so that no circle can be.
        let link = path.symlink_metadata().is_ok_and(|m| m.is_symlink());
        if path.is_dir() {
            if !link {
                walk(&path, found)?;
            }
        } else if is_picture(&path) {
            found.push(Found { path, caption: None });
        }
    }
    Ok(())
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ];
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = pictures(folder.path(), false).unwrap();
        let names: Vec<_> =
            found.iter().map(|f| f.path.strip_prefix(folder.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["_controls/f/g.jpeg", "a.jpg", "b.PNG", "deep/er/c.webp"]);
    }

    #[test]
    fn lists_give_paths_and_captions() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.json");
        std::fs::write(&list, r#"{"/p/b.png": {"caption": "b", "caption_short": "s"}, "/p/a.png": {}}"#)
            .unwrap();
        let expected = [
            Found { path: "/p/a.png".into(), caption: None },
            Found { path: "/p/b.png".into(), caption: Some("b".into()) },
        ];
        assert_eq!(pictures(&list, false).unwrap(), expected);
        assert_eq!(pictures(&list, true).unwrap()[1].caption.as_deref(), Some("s"));
        std::fs::write(&list, "[]").unwrap();
        assert!(pictures(&list, false).unwrap_err().to_string().contains("list.json"));
        assert!(pictures(&folder.path().join("none"), false).unwrap_err().to_string().contains("none"));
    }
}
