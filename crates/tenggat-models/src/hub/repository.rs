//! Names of repositories.

use std::fmt;

/// A model repository of the hub at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    org: String,
    name: String,
    revision: String,
}

impl Repository {
    /// Reads `org/name` or `org/name@revision`; the revision is a branch, tag or commit, `main` if absent.
    /// `None` if the text has another form.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = id.split_once('/')?;
        let part = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphanumeric())
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !s.contains("..")
        };
        let revision_is_safe = !revision.is_empty() && revision.split('/').all(part);
        let whole = part(org) && part(name) && revision_is_safe;
        whole.then(|| Repository { org: org.into(), name: name.into(), revision: revision.into() })
    }

    /// Organisation or account, and name.
    pub(super) fn parts(&self) -> (&str, &str) {
        (&self.org, &self.name)
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the revision is a commit, which never changes.
    pub(super) fn is_pinned(&self) -> bool {
        self.revision.len() == 40 && self.revision.chars().all(|c| c.is_ascii_hexdigit())
    }

    /// Its folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }

    /// Address of one of its files; `path` has passed [`is_safe_path`].
    pub(super) fn url(&self, endpoint: &str, path: &str) -> String {
        let revision = self.revision.replace('/', "%2F");
        let path = path.replace('%', "%25").replace(' ', "%20").replace('#', "%23").replace('?', "%3F");
        format!("{endpoint}/{}/{}/resolve/{revision}/{path}", self.org, self.name)
    }

    /// Page that people open.
    pub(super) fn page(&self, endpoint: &str) -> String {
        format!("{endpoint}/{}/{}", self.org, self.name)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// Whether a path from a repository stays inside the folder it is put in.
pub(super) fn is_safe_path(path: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && !p.contains(['\\', ':', '\0']);
    path.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_and_without_a_revision() {
        let plain = Repository::parse("Qwen/Qwen-Image").unwrap();
        assert_eq!((plain.to_string().as_str(), plain.revision()), ("Qwen/Qwen-Image", "main"));
        assert_eq!(plain.folder(), "models--Qwen--Qwen-Image");
        let tagged = Repository::parse("Qwen/Qwen-Image@refs/pr/3").unwrap();
        assert_eq!(
            tagged.url("http://h", "a b.json"),
            "http://h/Qwen/Qwen-Image/resolve/refs%2Fpr%2F3/a%20b.json"
        );
        assert!(!tagged.is_pinned());
        assert!(Repository::parse("a/b@0123456789012345678901234567890123456789").unwrap().is_pinned());
        for wrong in [
            "model",
            "/models/x",
            "./x",
            "../x",
            "a/b/c",
            "a/",
            "a/b@",
            "a/b@../../x",
            "~/x",
            "a/b c",
            "a/b@x/../y",
        ] {
            assert_eq!(Repository::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn paths_that_leave_their_folder_are_not_safe() {
        assert!(is_safe_path("transformer/a-00001-of-00002.safetensors"));
        for wrong in ["../x", "a/../x", "/etc/x", "a//b", "", "c:x", "a\\b"] {
            assert!(!is_safe_path(wrong), "{wrong}");
        }
    }
}
