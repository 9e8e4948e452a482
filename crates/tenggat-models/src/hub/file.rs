//! A single file of a repository.

use std::path::PathBuf;

use super::cache::Cache;
use super::client::Client;
use super::download::download;
use super::repository::is_safe_path;
use super::{HubError, OnProgress, Options, Progress, Repository};
use crate::{Error, Result};

/// Repository and path of `org/name/path` or `org/name@revision/path`.
pub(super) fn parse(text: &str) -> Option<(Repository, &str)> {
    let (slash, _) = text.match_indices('/').nth(1)?;
    let (repository, path) = (Repository::parse(&text[..slash])?, &text[slash + 1..]);
    is_safe_path(path).then_some((repository, path))
}

/// The file in the cache, fetched unless the cache has that of the newest commit.
pub(super) fn fetch(
    repository: &Repository,
    path: &str,
    options: &Options,
    progress: OnProgress<'_>,
) -> Result<PathBuf> {
    let cache = Cache::new(options, repository);
    let known = cache.commit(repository).map(|commit| cache.snapshot(&commit).join(path));
    let known = known.filter(|file| file.is_file());
    match known {
        Some(file) if repository.is_pinned() || options.offline => return Ok(file),
        None if options.offline => {
            let (repository, cache) = (repository.to_string(), options.cache.clone());
            return Err(
                HubError::Offline { repository, cache, reason: format!("`{path}` is not there") }.into()
            );
        }
        _ => {}
    }
    let client = Client::new(options);
    let file = match (client.head(repository, path), known) {
        (Ok(Some(file)), _) => file,
        (Ok(None), _) => return Err(missing(repository, path)),
        (Err(error @ HubError::Transport { .. }), Some(file)) => {
            tracing::warn!("{error}: using the cached `{path}` of {repository}");
            return Ok(file);
        }
        (Err(error), _) => return Err(error.into()),
    };
    let done = std::sync::atomic::AtomicI64::new(0);
    let arrived = |bytes: i64| {
        let done = done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
        let done_bytes = u64::try_from(done).unwrap_or(0);
        progress(Progress { file: &file.path, done_bytes, total_bytes: file.bytes });
    };
    download(&client, &cache, repository, &file, &arrived)?;
    cache.set_commit(repository, &file.commit)?;
    Ok(cache.snapshot(&file.commit).join(path))
}

fn missing(repository: &Repository, file: &str) -> Error {
    HubError::NoSuchFile { repository: repository.to_string(), file: file.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_have_three_parts() {
        let (repository, path) = parse("org/name/folder/a.safetensors").unwrap();
        assert_eq!((repository.to_string().as_str(), path), ("org/name", "folder/a.safetensors"));
        assert_eq!(parse("org/name@v1/a").unwrap().0.revision(), "v1");
        for wrong in ["org/name", "/org/name/a", "./org/a", "org/name/../a", "org/name/", "a.safetensors"] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
