//! Requests to the hub.

use std::fs::File;
use std::io::{Read, Seek};
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::{HubError, Options, Repository};

/// Redirects that one request follows: a renamed repository and a content server take two or three.
const MAX_HOPS: usize = 8;
/// Requests that fail in a row before giving up.
pub(super) const ATTEMPTS: u32 = 5;
/// Most bytes of a file; sums of sizes are far from overflowing.
const MOST_BYTES: u64 = 1 << 48;
/// Part of a pause after which somebody may have asked for the end.
const NAP: Duration = Duration::from_millis(100);

/// What the hub says of a file before sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Path in the repository.
    pub path: String,
    /// Address.
    pub url: String,
    /// Names the content: SHA-256 of a large file, git's object id of a small one.
    pub etag: String,
    pub bytes: u64,
    /// Commit that the revision stands for.
    pub commit: String,
}

/// Bytes of a file from some position on.
pub(super) struct Content {
    /// Position of the first byte: the requested one, or 0 if the server sends only whole files.
    pub from: u64,
    pub reader: Box<dyn Read>,
}

pub(super) struct Client<'a> {
    agent: Agent,
    options: &'a Options,
}

impl<'a> Client<'a> {
    pub fn new(options: &'a Options) -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            // The system's roots, so that a company's proxy with its own certificate works.
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("tenggat/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed by hand: headers on the way matter, and the token must stay with the hub.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if ["127.0.0.1", "localhost", "[::1]"].contains(&host(&options.endpoint)) {
            config = config.proxy(None);
        }
        Client { agent: config.build().into(), options }
    }

    /// `Ok`, unless somebody asked for the end.
    pub fn check(&self) -> Result<(), HubError> {
        if self.options.interrupt.is_requested() { Err(HubError::Interrupted) } else { Ok(()) }
    }

    /// Requests a file's metadata; `None` if the repository has no such file.
    pub fn head(&self, repository: &Repository, path: &str) -> Result<Option<RemoteFile>, HubError> {
        let url = repository.url(&self.options.endpoint, path);
        let (response, seen) = self.request(&url, None, true)?;
        let status = response.status().as_u16();
        match status {
            200..=399 => {}
            404 => {
                // The hub says what is missing; a plain file server leaves it open.
                return match seen.error.as_deref() {
                    Some("RepoNotFound" | "RevisionNotFound") => Err(HubError::NotFound {
                        repository: repository.to_string(),
                        endpoint: self.options.endpoint.clone(),
                    }),
                    _ => Ok(None),
                };
            }
            401 | 403 => return Err(self.refused(repository, status)),
            _ => return Err(HubError::Transport { url, reason: format!("HTTP status {status}") }),
        }
        seen.file(url, path).map(Some)
    }

    /// Requests the bytes of a file from a position on. An outer error is final; an inner one is worth
    /// another try.
    pub fn get(&self, repository: &Repository, file: &RemoteFile, from: u64) -> Result<Content, Attempt> {
        let (response, _) = self.request_once(&file.url, Some(from), false).map_err(Attempt::Again)?;
        match response.status().as_u16() {
            200 => Ok(Content { from: 0, reader: Box::new(response.into_body().into_reader()) }),
            206 => {
                let range = header(response.headers(), "content-range").unwrap_or_default();
                let start =
                    range.strip_prefix("bytes ").and_then(|r| r.split_once('-')?.0.parse::<u64>().ok());
                if start.is_some_and(|start| start != from) {
                    return Err(Attempt::Again(format!("asked for bytes from {from} on, got {range:?}")));
                }
                Ok(Content { from, reader: Box::new(response.into_body().into_reader()) })
            }
            status @ (401 | 403) => Err(Attempt::Never(self.refused(repository, status))),
            // What is here already is longer than the file, or the range is not to the server's liking.
            416 => Err(Attempt::FromStart),
            status => Err(Attempt::Again(format!("HTTP status {status}"))),
        }
    }

    /// Sends a text to the hub and gives its answer; a status that is not accepted is an error with the hub's
    /// reason.
    pub fn post(&self, url: &str, kind: &str, body: &str, accepted: &[u16]) -> Result<Value, String> {
        let mut failures = 0;
        loop {
            let mut request = self.agent.post(url).header("Content-Type", kind).header("Accept", kind);
            if let Some(token) = &self.options.token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let reason = match request.send(body) {
                Ok(response) => {
                    let status = response.status().as_u16();
                    let text = response.into_body().read_to_string().unwrap_or_default();
                    match status {
                        _ if accepted.contains(&status) => {
                            return Ok(serde_json::from_str(&text).unwrap_or(Value::Null));
                        }
                        429 | 500..=599 => format!("HTTP status {status}"),
                        401 | 403 => {
                            return Err(format!(
                                "refused ({status}); does the token have write access? {text}"
                            ));
                        }
                        _ => return Err(format!("HTTP status {status}: {text}")),
                    }
                }
                Err(e) => e.to_string(),
            };
            failures += 1;
            if failures >= ATTEMPTS {
                return Err(reason);
            }
            self.pause(failures);
        }
    }

    /// Sends a file to the content server with the headers that the hub gave for it; never with the token.
    pub fn put(&self, url: &str, headers: &Value, content: File) -> Result<(), String> {
        let mut failures = 0;
        loop {
            let mut request = self.agent.put(url).config().timeout_recv_response(None).build();
            for (name, value) in headers.as_object().into_iter().flatten() {
                if let Some(value) = value.as_str() {
                    request = request.header(name, value);
                }
            }
            let file = content.try_clone().map_err(|e| e.to_string())?;
            (&file).rewind().map_err(|e| e.to_string())?;
            let reason = match request.send(file) {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => format!("HTTP status {}", response.status()),
                Err(e) => e.to_string(),
            };
            failures += 1;
            if failures >= ATTEMPTS {
                return Err(reason);
            }
            self.pause(failures);
        }
    }

    /// Waits before another try; each wait is twice the one before.
    pub fn pause(&self, failures: u32) {
        let mut left = self.options.retry_pause * 2u32.pow(failures.saturating_sub(1).min(6));
        while !left.is_zero() && !self.options.interrupt.is_requested() {
            let part = left.min(NAP);
            std::thread::sleep(part);
            left -= part;
        }
    }

    fn request(&self, url: &str, from: Option<u64>, head: bool) -> Result<(Response<Body>, Seen), HubError> {
        let mut failures = 0;
        loop {
            self.check()?;
            let reason = match self.request_once(url, from, head) {
                Ok(answer) => match answer.0.status().as_u16() {
                    // Overloaded or restarting: worth another try.
                    status @ (429 | 500..=599) => format!("HTTP status {status}"),
                    _ => return Ok(answer),
                },
                Err(reason) => reason,
            };
            failures += 1;
            if failures >= ATTEMPTS {
                return Err(HubError::Transport { url: url.into(), reason });
            }
            tracing::debug!("{url}: {reason}; trying again");
            self.pause(failures);
        }
    }

    /// One request through its redirects. A metadata request stops at the content server if all is known by
    /// then: addresses there are often signed for reading only.
    fn request_once(
        &self,
        url: &str,
        from: Option<u64>,
        head: bool,
    ) -> Result<(Response<Body>, Seen), String> {
        let (mut url, mut seen) = (url.to_string(), Seen::default());
        for _ in 0..MAX_HOPS {
            let mut request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            // A compressed answer has another length than the file.
            request = request.header("Accept-Encoding", "identity");
            if let Some(token) =
                self.options.token.as_ref().filter(|_| origin(&url) == origin(&self.options.endpoint))
            {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if let Some(from) = from.filter(|&from| from > 0) {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| e.to_string())?;
            seen.read(response.headers(), response.status().as_u16());
            let location =
                header(response.headers(), "location").filter(|_| response.status().is_redirection());
            let Some(next) = location.map(|location| join(&url, &location)) else {
                return Ok((response, seen));
            };
            let known = seen.linked_etag.is_some() && seen.linked_bytes.is_some();
            if head && known && origin(&next) != origin(&url) {
                return Ok((response, seen));
            }
            url = next;
        }
        Err(format!("more than {MAX_HOPS} redirects"))
    }

    fn refused(&self, repository: &Repository, status: u16) -> HubError {
        let page = repository.page(&self.options.endpoint);
        let hint = if self.options.token.is_some() {
            format!(
                "the token has no access to it: accept the model's conditions at {page} with its account, or \
                 check HF_TOKEN"
            )
        } else {
            format!(
                "no such repository, or a gated or private one: check the spelling, accept its conditions at \
                 {page}, and set HF_TOKEN"
            )
        };
        HubError::Refused { repository: repository.to_string(), status, hint }
    }
}

/// Why bytes did not come.
pub(super) enum Attempt {
    /// Worth another try.
    Again(String),
    /// Worth another try without what is here already.
    FromStart,
    /// Not worth another try.
    Never(HubError),
}

/// Headers gathered on the way through redirects; later ones win.
#[derive(Default)]
struct Seen {
    commit: Option<String>,
    etag: Option<String>,
    bytes: Option<u64>,
    /// Of the file that the answer stands for, while the answer itself is a redirect.
    linked_etag: Option<String>,
    linked_bytes: Option<u64>,
    error: Option<String>,
}

impl Seen {
    fn read(&mut self, headers: &HeaderMap, status: u16) {
        let etag =
            |name| header(headers, name).map(|e| e.trim_start_matches("W/").trim_matches('"').to_string());
        let number = |name| header(headers, name).and_then(|n| n.parse().ok());
        let set = |slot: &mut Option<String>, value: Option<String>| {
            if value.is_some() {
                *slot = value;
            }
        };
        set(&mut self.commit, header(headers, "x-repo-commit"));
        set(&mut self.linked_etag, etag("x-linked-etag"));
        set(&mut self.error, header(headers, "x-error-code"));
        self.linked_bytes = number("x-linked-size").or(self.linked_bytes);
        if status == 200 {
            // Length and tag of a redirect's own body say nothing of the file.
            set(&mut self.etag, etag("etag"));
            self.bytes = number("content-length");
        }
    }

    /// The file that the headers describe.
    ///
    /// # Errors
    /// A header is missing, or its value cannot name a file or folder here, or is no size of one.
    fn file(self, url: String, path: &str) -> Result<RemoteFile, HubError> {
        let protocol = |reason: &str| HubError::Protocol { url: url.clone(), reason: reason.into() };
        let etag = self.linked_etag.or(self.etag).ok_or_else(|| protocol("the answer has no ETag header"))?;
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if etag.is_empty() || etag.starts_with('.') || !etag.chars().all(safe) {
            return Err(protocol(&format!("the ETag {etag:?} cannot name a file")));
        }
        let commit = self.commit.ok_or_else(|| protocol("the answer has no X-Repo-Commit header"))?;
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(protocol(&format!("the commit {commit:?} cannot name a folder")));
        }
        let bytes = self.linked_bytes.or(self.bytes).ok_or_else(|| protocol("the answer has no size"))?;
        if bytes > MOST_BYTES {
            return Err(protocol(&format!("{bytes} bytes are more than any file has")));
        }
        Ok(RemoteFile { path: path.into(), url, etag, bytes, commit })
    }
}

/// See [`super::fuzzing::described`].
#[cfg(feature = "fuzzing")]
pub(super) fn described(status: u16, headers: &[(&str, &str)]) -> Option<(String, String, u64)> {
    use ureq::http::{HeaderName, HeaderValue};

    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            map.append(name, value);
        }
    }
    let mut seen = Seen::default();
    seen.read(&map, status);
    let location = join("https://hub/org/model", &header(&map, "location").unwrap_or_default());
    let _ = (origin(&location), host(&location));
    let file = seen.file("https://hub/org/model".into(), "a").ok()?;
    Some((file.etag, file.commit, file.bytes))
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_string())
}

/// Scheme and authority of an address: `https://host:port`.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    &url[..url[start..].find(['/', '?', '#']).map_or(url.len(), |i| start + i)]
}

/// Host of an address.
fn host(url: &str) -> &str {
    let authority = origin(url).rsplit("://").next().unwrap_or_default();
    let port = authority.rfind(':').filter(|i| !authority[*i..].contains(']'));
    &authority[..port.unwrap_or(authority.len())]
}

/// Where a redirect from `url` leads.
fn join(url: &str, location: &str) -> String {
    if location.contains("://") {
        location.into()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", url.split("://").next().unwrap_or("https"))
    } else if location.starts_with('/') {
        format!("{}{location}", origin(url))
    } else {
        format!("{}/{location}", url.rsplit_once('/').map_or(url, |(folder, _)| folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_describe_no_file_are_refused() {
        let described = |change: (&'static str, &str)| {
            let mut map = HeaderMap::new();
            for (name, value) in [("etag", "\"ab\""), ("x-repo-commit", "c0"), ("content-length", "7")] {
                map.insert(name, value.parse().unwrap());
            }
            map.insert(change.0, change.1.parse().unwrap());
            let mut seen = Seen::default();
            seen.read(&map, 200);
            seen.file("https://hub/x".into(), "x").map_err(|e| e.to_string())
        };
        let file = described(("x-other", "1")).unwrap();
        assert_eq!((file.etag.as_str(), file.commit.as_str(), file.bytes), ("ab", "c0", 7));
        for (name, value, told) in [
            ("etag", "../../x", "cannot name a file"),
            ("x-linked-etag", "\".x\"", "cannot name a file"),
            ("x-repo-commit", "a/b", "cannot name a folder"),
            ("content-length", "-1", "no size"),
            ("x-linked-size", "18446744073709551615", "more than any file has"),
        ] {
            let error = described((name, value)).unwrap_err();
            assert!(error.contains(told) && error.contains("https://hub/x"), "{error}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(origin("https://h:8/a/b"), "https://h:8");
        assert_eq!(origin("http://h?x"), "http://h");
        assert_eq!(
            (host("http://127.0.0.1:80/x"), host("http://[::1]:9"), host("https://h")),
            ("127.0.0.1", "[::1]", "h")
        );
        assert_eq!(join("https://h/a/b", "/c"), "https://h/c");
        assert_eq!(join("https://h/a/b", "c"), "https://h/a/c");
        assert_eq!(join("https://h/a", "//cdn/c"), "https://cdn/c");
        assert_eq!(join("https://h/a", "http://cdn/c"), "http://cdn/c");
    }
}
