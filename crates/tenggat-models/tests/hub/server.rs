//! A small hub on 127.0.0.1: the part of the protocol that a fetch uses.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files above this many bytes are large files: named by SHA-256 and sent by the content server.
const LARGE: usize = 1000;
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    /// Whether it went to the content server.
    pub content_server: bool,
    pub body: Vec<u8>,
}

/// What the server does beside serving.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// Path in the repository → content.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Answer 401 to whoever does not send this.
    pub token: Option<String>,
    /// Break the connection after so many bytes of a large file, that often.
    pub cut: (usize, usize),
    /// Send whole files whatever range is asked for.
    pub ignores_ranges: bool,
    /// Flip a bit in large files.
    pub damages: bool,
    /// Flip a bit in this small file when it is sent.
    pub damages_small: Option<String>,
    /// Redirect `org/old` to `org/model` by a relative address.
    pub renamed: bool,
    /// Commit that files are served from.
    pub commit: Option<String>,
}

pub struct Server {
    pub endpoint: String,
    pub behaviour: Arc<Mutex<Behaviour>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub fn start(behaviour: Behaviour) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let content = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let (endpoint, content_address) = (address(&hub), address(&content));
        let behaviour = Arc::new(Mutex::new(behaviour));
        let seen = Arc::new(Mutex::new(Vec::new()));
        for (listener, content_server) in [(hub, false), (content, true)] {
            let (behaviour, seen, content) = (behaviour.clone(), seen.clone(), content_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (behaviour, seen, content) = (behaviour.clone(), seen.clone(), content.clone());
                    std::thread::spawn(move || {
                        // A client that hangs up early is part of the tests.
                        let _ = Connection { stream, behaviour, content, content_server }.serve(&seen);
                    });
                }
            });
        }
        Server { endpoint, behaviour, seen }
    }

    /// The requests since the last call.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    pub fn commit(&self) -> String {
        self.behaviour.lock().unwrap().commit.clone().unwrap_or_else(|| COMMIT.into())
    }
}

struct Connection {
    stream: TcpStream,
    behaviour: Arc<Mutex<Behaviour>>,
    content: String,
    content_server: bool,
}

impl Connection {
    fn serve(mut self, seen: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
        let mut reader = BufReader::new(self.stream.try_clone()?);
        let line = |reader: &mut BufReader<TcpStream>| {
            let mut line = String::new();
            reader.read_line(&mut line).map(|_| line.trim_end().to_string())
        };
        let first = line(&mut reader)?;
        let mut headers = BTreeMap::new();
        loop {
            let line = line(&mut reader)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
        }
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let length = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let request = Seen {
            body,
            method: method.into(),
            path: path.into(),
            authorization: headers.get("authorization").cloned(),
            range: headers.get("range").cloned(),
            content_server: self.content_server,
        };
        seen.lock().unwrap().push(request.clone());
        let behaviour = self.behaviour.lock().unwrap().clone();
        match request.method.as_str() {
            "POST" => return self.receive(&behaviour, &request),
            "PUT" => return self.empty("200 OK", &[]),
            _ => {}
        }
        if self.content_server { self.send(&behaviour, &request) } else { self.answer(&behaviour, &request) }
    }

    fn head(&mut self, status: &str, headers: &[(&str, String)]) -> std::io::Result<()> {
        let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        self.stream.write_all((text + "\r\n").as_bytes())
    }

    fn empty(&mut self, status: &str, headers: &[(&str, String)]) -> std::io::Result<()> {
        self.head(status, &[headers, &[("Content-Length", "0".into())]].concat())
    }

    /// The hub's answers to an upload.
    fn receive(&mut self, behaviour: &Behaviour, request: &Seen) -> std::io::Result<()> {
        let wanted = behaviour.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some() && request.authorization != wanted {
            return self.empty("403 Forbidden", &[]);
        }
        let answer = if request.path.ends_with("/objects/batch") {
            let batch: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
            let href = |oid: &str| format!("{}/store/{oid}", self.content);
            let objects: Vec<serde_json::Value> = batch["objects"]
                .as_array()
                .unwrap()
                .iter()
                .map(|o| {
                    let upload = serde_json::json!({ "href": href(o["oid"].as_str().unwrap()), "header": {"x-own": "1"} });
                    serde_json::json!({ "oid": o["oid"], "size": o["size"], "actions": { "upload": upload } })
                })
                .collect();
            serde_json::json!({ "objects": objects }).to_string()
        } else {
            "{}".to_string()
        };
        self.head("200 OK", &[("Content-Length", answer.len().to_string())])?;
        self.stream.write_all(answer.as_bytes())
    }

    /// The hub itself: small files, and the way to large ones.
    fn answer(&mut self, behaviour: &Behaviour, request: &Seen) -> std::io::Result<()> {
        let wanted = behaviour.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some() && request.authorization != wanted {
            return self.empty("401 Unauthorized", &[("X-Error-Code", "GatedRepo".into())]);
        }
        if let Some(rest) = request.path.strip_prefix("/org/old/").filter(|_| behaviour.renamed) {
            return self.empty("307 Temporary Redirect", &[("Location", format!("/org/model/{rest}"))]);
        }
        let file = request.path.strip_prefix("/org/model/resolve/").and_then(|rest| rest.split_once('/'));
        let Some((_, path)) = file else {
            return self.empty("404 Not Found", &[("X-Error-Code", "RepoNotFound".into())]);
        };
        let commit = ("X-Repo-Commit", behaviour.commit.clone().unwrap_or_else(|| COMMIT.into()));
        let Some(bytes) = behaviour.files.get(path) else {
            return self.empty("404 Not Found", &[("X-Error-Code", "EntryNotFound".into()), commit]);
        };
        if bytes.len() > LARGE {
            let linked = [
                commit,
                ("X-Linked-ETag", format!("\"{}\"", sha256(bytes))),
                ("X-Linked-Size", bytes.len().to_string()),
                ("Location", format!("{}/{path}", self.content)),
            ];
            return self.empty("302 Found", &linked);
        }
        let etag = format!("W/\"{}\"", git_id(bytes));
        let mut sent = bytes.clone();
        if let (Some(byte), true) = (sent.last_mut(), behaviour.damages_small.as_deref() == Some(path)) {
            *byte ^= 1;
        }
        self.head("200 OK", &[commit, ("ETag", etag), ("Content-Length", bytes.len().to_string())])?;
        if request.method == "GET" { self.stream.write_all(&sent) } else { Ok(()) }
    }

    /// The content server: ranges, and trouble.
    fn send(&mut self, behaviour: &Behaviour, request: &Seen) -> std::io::Result<()> {
        let mut bytes = behaviour.files[request.path.trim_start_matches('/')].clone();
        if behaviour.damages {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let range = request.range.as_ref().filter(|_| !behaviour.ignores_ranges);
        let from = range.map(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
        let (from, status) = from.map_or((0, "200 OK"), |from: usize| (from, "206 Partial Content"));
        if from >= bytes.len() {
            return self.empty("416 Range Not Satisfiable", &[]);
        }
        let mut headers = vec![("Content-Length", (bytes.len() - from).to_string())];
        if from > 0 {
            headers.push(("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())));
        }
        self.head(status, &headers)?;
        let mut end = bytes.len();
        {
            let (after, times) = &mut self.behaviour.lock().unwrap().cut;
            if *times > 0 && from + *after < end {
                *times -= 1;
                end = from + *after;
            }
        }
        self.stream.write_all(&bytes[from..end])
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The object id that git gives a file.
pub fn git_id(bytes: &[u8]) -> String {
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
