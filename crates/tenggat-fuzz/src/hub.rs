//! Answers of a model hub.

pub mod hub_headers {
    //! The headers of an answer: a status, then one header a line.

    use tenggat_models::hub::{Repository, fuzzing};

    /// See the module.
    ///
    /// # Panics
    /// A name came out that leads out of the cache.
    pub fn run(bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
        if let Some((etag, commit, bytes)) = fuzzing::described(first.parse().unwrap_or(200), &headers) {
            for name in [&etag, &commit] {
                assert!(!name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']));
            }
            assert!(i64::try_from(bytes).is_ok());
        }
        if let Some(repository) = Repository::parse(first) {
            assert!(!repository.to_string().contains(".."));
        }
    }

    /// Answers for a small and for a large file, and a name.
    pub fn seeds() -> Vec<Vec<u8>> {
        [
            "200\nX-Repo-Commit: 0123456789abcdef\nETag: W/\"d670460b\"\nContent-Length: 13\n",
            "302\nX-Repo-Commit: 0123\nX-Linked-ETag: \"00ff\"\nX-Linked-Size: 99\nLocation: //cdn:8/x?y\n",
            "org/name@branch/part\nX-Error-Code: RepoNotFound\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into()
    }
}
