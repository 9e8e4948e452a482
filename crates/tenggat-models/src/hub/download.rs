//! One file from the hub into the cache.

use std::io::Read;

use super::cache::Cache;
use super::client::{ATTEMPTS, Attempt, Client, RemoteFile};
use super::partial::Partial;
use super::{HubError, Repository};

/// Fetches a file unless the cache has it, and links it into its snapshot. `arrived` hears how many bytes
/// came in; fewer than none if some had to be thrown away.
///
/// A broken connection is taken up again where it broke, by this call or by a later one.
pub(super) fn download(
    client: &Client<'_>,
    cache: &Cache,
    repository: &Repository,
    file: &RemoteFile,
    arrived: &dyn Fn(i64),
) -> Result<(), HubError> {
    if !cache.has(file) {
        let _lock = cache.lock(file)?;
        // Another process may have fetched it meanwhile.
        if cache.has(file) {
            arrived(file.bytes as i64);
        } else {
            let path = cache.incomplete(file)?;
            let mut partial = Partial::open(&path, file)?;
            arrived(partial.len() as i64);
            let resumed = partial.len() > 0;
            complete(client, repository, file, &mut partial, arrived)?;
            let whole = match partial.finish() {
                // What was left behind by an earlier fetch may have been damaged since.
                Err(HubError::Damaged { .. }) if resumed => {
                    let mut anew = Partial::open(&path, file)?;
                    clear(&mut anew, arrived)?;
                    complete(client, repository, file, &mut anew, arrived)?;
                    anew.finish()
                }
                result => result,
            };
            let whole = whole.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
            cache.keep(file, &whole)?;
        }
    }
    cache.link(file)
}

fn clear(partial: &mut Partial<'_>, arrived: &dyn Fn(i64)) -> Result<(), HubError> {
    arrived(-(partial.len() as i64));
    partial.clear()
}

/// Requests bytes until all have arrived. Gives up when several requests in a row bring nothing new.
fn complete(
    client: &Client<'_>,
    repository: &Repository,
    file: &RemoteFile,
    partial: &mut Partial<'_>,
    arrived: &dyn Fn(i64),
) -> Result<(), HubError> {
    if partial.len() > file.bytes {
        clear(partial, arrived)?;
    }
    let (mut failures, mut furthest) = (0, partial.len());
    while partial.len() < file.bytes {
        client.check()?;
        let reason = match client.get(repository, file, partial.len()) {
            Ok(mut content) => {
                if content.from != partial.len() {
                    clear(partial, arrived)?;
                }
                match receive(client, &mut content.reader, (file, partial), arrived)? {
                    Ok(()) if partial.len() >= file.bytes => break,
                    Ok(()) => format!("the connection ended after {} of {} bytes", partial.len(), file.bytes),
                    Err(reason) => reason,
                }
            }
            Err(Attempt::Never(error)) => return Err(error),
            Err(Attempt::Again(reason)) => reason,
            Err(Attempt::FromStart) => {
                clear(partial, arrived)?;
                "the server refused to resume the download".into()
            }
        };
        if partial.len() > furthest {
            (failures, furthest) = (0, partial.len());
        }
        failures += 1;
        if failures >= ATTEMPTS {
            return Err(HubError::Transport { url: file.url.clone(), reason });
        }
        tracing::debug!("{}: {reason}; trying again", file.path);
        client.pause(failures);
    }
    Ok(())
}

/// Appends what a connection brings. The outer error is the disk's, the inner one the connection's.
fn receive(
    client: &Client<'_>,
    reader: &mut dyn Read,
    (file, partial): (&RemoteFile, &mut Partial<'_>),
    arrived: &dyn Fn(i64),
) -> Result<Result<(), String>, HubError> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        client.check()?;
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Ok(())),
            Ok(n) => {
                // A byte too many is kept, so that the check of the length finds it.
                let room = usize::try_from(file.bytes + 1 - partial.len()).unwrap_or(usize::MAX);
                partial.push(&buffer[..n.min(room)])?;
                arrived(n.min(room) as i64);
                if partial.len() > file.bytes {
                    return Ok(Ok(()));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Ok(Err(e.to_string())),
        }
    }
}
