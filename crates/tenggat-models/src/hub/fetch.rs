//! All files of a model that it takes to run it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::cache::Cache;
use super::client::{Client, RemoteFile};
use super::download::download;
use super::repository::is_safe_path;
use super::{HubError, OnProgress, Options, Progress, Repository};
use crate::model_folder::{self, Files, ModelIndex};
use crate::weights::shard_names;
use crate::{Error, Result};

/// Files fetched at once: one connection seldom fills the line.
const CONNECTIONS: usize = 4;

/// The snapshot folder of a repository, fetched as far as the cache lacks it.
pub(super) fn fetch(repository: &Repository, options: &Options, progress: OnProgress<'_>) -> Result<PathBuf> {
    let cache = Cache::new(options, repository);
    let known = cache.commit(repository);
    let cached = known.as_ref().map(|commit| cache.snapshot(commit));
    let state = match &cached {
        Some(folder) => model_folder::check(folder),
        None => Err(Error::Unsupported("none of it is there".into())),
    };
    match (&cached, &state) {
        // A commit never changes.
        (Some(folder), Ok(())) if repository.is_pinned() || options.offline => return Ok(folder.clone()),
        (_, Err(reason)) if options.offline => {
            let (repository, cache) = (repository.to_string(), options.cache.clone());
            return Err(HubError::Offline { repository, cache, reason: reason.to_string() }.into());
        }
        _ => {}
    }
    let client = Client::new(options);
    let first = match client.head(repository, ModelIndex::FILE) {
        Ok(Some(file)) => file,
        Ok(None) => return Err(missing(repository, ModelIndex::FILE)),
        Err(error @ HubError::Transport { .. }) => match (cached, state) {
            (Some(folder), Ok(())) => {
                tracing::warn!("{error}: using the cached files of {repository}");
                return Ok(folder);
            }
            _ => return Err(error.into()),
        },
        Err(error) => return Err(error.into()),
    };
    let folder = cache.snapshot(&first.commit);
    let whole = match cached {
        Some(cached) if cached == folder => state.is_ok(),
        _ => model_folder::check(&folder).is_ok(),
    };
    if !whole {
        let fetch =
            Fetch { repository, client, cache: &cache, folder: &folder, commit: first.commit.clone() };
        let files = fetch.plan(first.clone())?;
        fetch.all(&files, progress)?;
    }
    cache.set_commit(repository, &first.commit)?;
    Ok(folder)
}

struct Fetch<'a> {
    repository: &'a Repository,
    client: Client<'a>,
    cache: &'a Cache,
    folder: &'a Path,
    commit: String,
}

fn missing(repository: &Repository, file: &str) -> Error {
    HubError::MissingFile { repository: repository.to_string(), file: file.into() }.into()
}

impl Fetch<'_> {
    /// The files to fetch. Those that name others are fetched at once.
    fn plan(&self, index: RemoteFile) -> Result<Vec<RemoteFile>> {
        self.now(&index)?;
        let components = ModelIndex::read(self.folder)?.components()?;
        let mut files = Vec::new();
        for component in components {
            let path = |name: &str| format!("{}/{name}", component.name);
            match component.files {
                Files::Weights { stem } => {
                    files.push(self.required(&path("config.json"))?);
                    let index = path(&format!("{stem}.safetensors.index.json"));
                    match self.optional(&index)? {
                        Some(index) => {
                            self.now(&index)?;
                            let local = self.folder.join(&index.path);
                            for name in shard_names(&local)? {
                                if !is_safe_path(&name) {
                                    let reason = format!("shard {name:?} lies outside the folder");
                                    return Err(Error::format(local, reason));
                                }
                                files.push(self.required(&path(&name))?);
                            }
                        }
                        None => files.push(self.required(&path(&format!("{stem}.safetensors")))?),
                    }
                }
                Files::Tokenizer => {
                    match self.optional(&path("vocab.json"))? {
                        Some(vocab) => files.extend([vocab, self.required(&path("merges.txt"))?]),
                        None => files.push(self.required(&path("tokenizer.json"))?),
                    }
                    for name in ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"] {
                        files.extend(self.optional(&path(name))?);
                    }
                }
                Files::Scheduler => files.push(self.required(&path("scheduler_config.json"))?),
            }
        }
        Ok(files)
    }

    fn optional(&self, path: &str) -> Result<Option<RemoteFile>> {
        let file = self.client.head(self.repository, path)?;
        match &file {
            Some(file) if file.commit != self.commit => Err(HubError::Changed {
                repository: self.repository.to_string(),
                from: self.commit.clone(),
                to: file.commit.clone(),
            }
            .into()),
            _ => Ok(file),
        }
    }

    fn required(&self, path: &str) -> Result<RemoteFile> {
        self.optional(path)?.ok_or_else(|| missing(self.repository, path))
    }

    fn now(&self, file: &RemoteFile) -> Result<()> {
        Ok(download(&self.client, self.cache, self.repository, file, &|_| {})?)
    }

    /// Fetches the files over several connections; the first failure ends it.
    fn all(&self, files: &[RemoteFile], progress: OnProgress<'_>) -> Result<()> {
        let total_bytes = files.iter().filter(|f| !self.cache.has(f)).map(|f| f.bytes).sum();
        let (next, done, stop) = (AtomicUsize::new(0), AtomicI64::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let arrived = |bytes: i64| {
                    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    let done_bytes = u64::try_from(done).unwrap_or(0);
                    progress(Progress { file: &file.path, done_bytes, total_bytes });
                };
                if let Err(error) = download(&self.client, self.cache, self.repository, file, &arrived) {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(files.len()) {
                scope.spawn(work);
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}
