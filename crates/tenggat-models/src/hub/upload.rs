//! Files to a repository of the hub: made if need be, large files to its store, then one commit.
//!
//! Source of the protocol: huggingface_hub `_commit_api.py`, `lfs.py`, `hf_api.py`, and the Git LFS batch
//! API.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::client::Client;
use super::{HubError, Options, Repository};
use crate::Result;

/// Largest file that one request may carry.
const MOST_BYTES: u64 = 5_000_000_000;

/// A file to be uploaded.
#[derive(Debug, Clone, Copy)]
pub enum Upload<'a> {
    /// A file of this machine, under this name.
    File(&'a str, &'a Path),
    /// A short text, under this name.
    Text(&'a str, &'a str),
}

struct Large<'a> {
    name: &'a str,
    path: &'a Path,
    oid: String,
    bytes: u64,
}

pub(super) fn upload(
    repository: &Repository,
    uploads: &[Upload<'_>],
    private: bool,
    options: &Options,
) -> Result<()> {
    let wrong = |what: &str, reason: String| HubError::Upload {
        repository: repository.to_string(),
        what: what.into(),
        reason,
    };
    if options.offline {
        return Err(wrong("connecting", "HF_HUB_OFFLINE forbids it".into()).into());
    }
    if options.token.is_none() {
        return Err(
            wrong("signing in", "there is no token; set HF_TOKEN to one with write access".into()).into()
        );
    }
    let client = Client::new(options);
    let post = |what: &str, path: &str, body: &Value, accepted: &[u16]| -> Result<Value, HubError> {
        let url = format!("{}/{path}", options.endpoint);
        client
            .post(&url, "application/json", &body.to_string(), accepted)
            .map_err(|reason| wrong(what, reason))
    };
    let (org, name) = repository.parts();
    let create = json!({ "name": name, "organization": org, "type": "model", "private": private });
    // The account itself is no organisation; 409 says that the repository is there already.
    if let Err(refused) = post("creating the repository", "api/repos/create", &create, &[200, 201, 409]) {
        if !matches!(&refused, HubError::Upload { reason, .. } if reason.starts_with("HTTP status 4")) {
            return Err(refused.into());
        }
        let own = json!({ "name": name, "type": "model", "private": private });
        post("creating the repository", "api/repos/create", &own, &[200, 201, 409]).map_err(|_| refused)?;
    }

    let mut large = Vec::new();
    for upload in uploads {
        if let Upload::File(name, path) = *upload {
            let unread = |e: std::io::Error| wrong(name, format!("cannot read {}: {e}", path.display()));
            let (oid, bytes) = sha256(path).map_err(unread)?;
            if bytes > MOST_BYTES {
                return Err(wrong(name, format!("{bytes} bytes are more than one request may carry")).into());
            }
            large.push(Large { name, path, oid, bytes });
        }
    }
    let objects: Vec<Value> = large.iter().map(|l| json!({ "oid": l.oid, "size": l.bytes })).collect();
    let batch = json!({
        "operation": "upload", "transfers": ["basic"], "hash_algo": "sha256", "objects": objects,
        "ref": { "name": repository.revision() },
    });
    if !large.is_empty() {
        let url = format!("{}/{org}/{name}.git/info/lfs/objects/batch", options.endpoint);
        let answer = client
            .post(&url, "application/vnd.git-lfs+json", &batch.to_string(), &[200])
            .map_err(|reason| wrong("preparing the upload", reason))?;
        for (file, object) in large.iter().zip(answer["objects"].as_array().into_iter().flatten()) {
            if let Some(reason) = object["error"]["message"].as_str() {
                return Err(wrong(file.name, reason.into()).into());
            }
            // Without an action the store has the content already.
            let Some(href) = object["actions"]["upload"]["href"].as_str() else { continue };
            let opened = File::open(file.path);
            let content = opened.map_err(|e| wrong(file.name, format!("cannot be read: {e}")))?;
            client
                .put(href, &object["actions"]["upload"]["header"], content)
                .map_err(|r| wrong(file.name, r))?;
        }
    }

    let mut lines =
        vec![json!({ "key": "header", "value": { "summary": "Upload a LoRA", "description": "" } })];
    lines.extend(uploads.iter().map(|upload| match *upload {
        Upload::Text(path, text) => {
            let content = STANDARD.encode(text);
            json!({ "key": "file", "value": { "path": path, "content": content, "encoding": "base64" } })
        }
        Upload::File(path, _) => {
            let file = large.iter().find(|file| file.name == path);
            let (oid, size) = file.map_or(("", 0), |file| (file.oid.as_str(), file.bytes));
            json!({ "key": "lfsFile", "value": { "path": path, "algo": "sha256", "oid": oid, "size": size } })
        }
    }));
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let url = format!("{}/api/models/{org}/{name}/commit/{}", options.endpoint, repository.revision());
    client
        .post(&url, "application/x-ndjson", &text, &[200, 201])
        .map_err(|reason| wrong("creating the commit", reason))?;
    Ok(())
}

/// SHA-256 of a file in hexadecimal, and its bytes.
fn sha256(path: &Path) -> std::io::Result<(String, u64)> {
    let (mut file, mut hash, mut bytes) = (File::open(path)?, Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), bytes))
}
