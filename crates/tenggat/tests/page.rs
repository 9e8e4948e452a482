//! The page of `tenggat serve`: what it answers, and how it does in a real browser.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::small_job::{Job, not_tested};
use common::tenggat;
use serde_json::{Value, json};

/// A server that is ended with the test.
struct Server {
    child: Child,
    /// `127.0.0.1:1234`.
    host: String,
    token: String,
}

impl Server {
    fn start(folder: &Path) -> Server {
        Server::start_with(folder, &[])
    }

    fn start_with(folder: &Path, more: &[&str]) -> Server {
        let mut child = tenggat()
            .args(["serve", "--port", "0"])
            .args(more)
            .arg(folder)
            .env("TENGGAT_QUEUE", folder.join("queue"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| {
                Some(line.unwrap().split_once("http://")?.1.to_owned()).filter(|l| l.contains("token="))
            })
            .unwrap();
        let (host, token) = address.split_once("/#token=").unwrap();
        Server { child, host: host.to_owned(), token: token.to_owned() }
    }

    /// Status, headers and body of an answer.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut text =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if headers.iter().all(|(name, _)| *name != "Host") {
            text += &format!("Host: {}\r\n", self.host);
        }
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        stream.write_all(format!("{text}\r\n{body}").as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), answer[end + 4..].to_vec())
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, body) = self.ask("GET", path, &[], "");
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A finished run of so many steps.
fn finished(folder: &Path, steps: u32) {
    fs::create_dir_all(folder.join("samples")).unwrap();
    let line = |step: u32| {
        let loss = 0.4 + 0.3 / (1.0 + f64::from(step) / 500.0) + 0.05 * f64::from(step * 7919 % 100) / 100.0;
        format!(
            "{{\"step\":{step},\"time_s\":{step},\"loss\":{loss},\"lr\":1e-4,\"grad_norm\":1.0,\"s_per_step\":0.5}}\n"
        )
    };
    fs::write(folder.join("metrics.jsonl"), (1..=steps).map(line).collect::<String>()).unwrap();
    fs::write(folder.join("config.yaml"), "job: extension\nconfig: {name: '<script>alert(1)</script>'}\n")
        .unwrap();
    fs::write(folder.join("samples/1700000000000__000000100_0.png"), b"png").unwrap();
    fs::write(folder.join("last.safetensors"), b"lora").unwrap();
}

#[test]
fn runs_curves_and_files_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    finished(&folder.path().join("fox"), 50_000);
    fs::write(folder.path().join("secret.png"), b"secret").unwrap();
    let server = Server::start(folder.path());
    let (status, runs) = server.get("/api/runs");
    assert_eq!((status, &runs[0]["id"], &runs[0]["step"]), (200, &"fox".into(), &50_000.into()));
    let (_, run) = server.get("/api/run?id=fox");
    assert_eq!(run["samples"][0]["step"], 100);
    assert_eq!(run["checkpoints"][0]["file"], "last.safetensors");
    assert!(run["given"].is_null(), "the job has an answer of its own");
    let (_, job) = server.get("/api/job?id=fox");
    assert_eq!(job["given"][1]["value"], "<script>alert(1)</script>");
    let (_, curve) = server.get("/api/curve?id=fox&points=900");
    let points = curve["step"].as_array().unwrap().len();
    assert!(points <= 900 && points > 500 && curve["of"] == 50_000, "{points}");
    let (_, zoomed) = server.get("/api/curve?id=fox&from=100&to=109");
    assert_eq!(zoomed["step"].as_array().unwrap().len(), 10);
    let (status, head, body) = server.ask("GET", "/file?id=fox&name=last.safetensors", &[], "");
    assert_eq!((status, body.as_slice()), (200, &b"lora"[..]));
    assert!(head.contains("attachment") && head.contains("nosniff"), "{head}");
    for missing in [
        "/file?id=fox&name=../secret.png",
        "/file?id=fox&name=config.yaml",
        "/file?id=..&name=secret.png",
        "/file?id=fox&name=%2Fetc%2Fpasswd.png",
        "/api/run?id=../fox",
        "/api/curve?id=nobody",
        "/api/job?id=nobody",
        "/page/../Cargo.toml",
        "/api/log?id=fox",
    ] {
        assert_eq!(server.get(missing).0, 404, "{missing}");
    }
    let (status, head, body) = server.ask("GET", "/", &[], "");
    assert_eq!(status, 200);
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(String::from_utf8_lossy(&body).contains("/page/app.js"));
    let (_, _, body) = server.ask("GET", "/metrics", &[], "");
    assert!(String::from_utf8_lossy(&body).contains("tenggat_steps{run=\"fox\"} 50000"));
}

#[test]
fn downloads_that_nobody_reads_hold_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("fox");
    finished(&run, 10);
    // More than the system takes off the server's hands.
    fs::File::create(run.join("last.safetensors")).unwrap().set_len(256 << 20).unwrap();
    let server = Server::start(folder.path());
    let stalled: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(&server.host).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let path = "/file?id=fox&name=last.safetensors";
            stream
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", server.host).as_bytes())
                .unwrap();
            // It has begun.
            stream.read_exact(&mut [0; 100]).unwrap();
            stream
        })
        .collect();
    let (status, runs) = server.get("/api/runs");
    assert_eq!((status, &runs[0]["id"]), (200, &"fox".into()));
    drop(stalled);
}

#[test]
fn a_run_that_says_nothing_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("fox");
    finished(&run, 10);
    let lock = fs::File::create(run.join("run.lock")).unwrap();
    lock.try_lock().unwrap();
    let (time, rest) = (jiff::Timestamp::now(), r#""event":"started","program":"train","deadline_s":600.0"#);
    let line = format!("{{\"v\":1,\"seq\":0,\"time\":\"{time}\",\"at_s\":0.1,{rest}}}\n");
    fs::write(run.join("events.jsonl"), line).unwrap();
    let server = Server::start(folder.path());
    let mut stream = TcpStream::connect(&server.host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
        .write_all(format!("GET /api/events HTTP/1.1\r\nHost: {}\r\n\r\n", server.host).as_bytes())
        .unwrap();
    let mut sent = BufReader::new(stream).lines().filter_map(|line| {
        let line = line.unwrap();
        let value = serde_json::from_str::<Value>(line.strip_prefix("data: ")?).unwrap();
        // The runs are a list, the queue is none.
        value.is_array().then_some(value)
    });
    assert_eq!(sent.next().unwrap()[0]["step"], 10);
    // Several looks, between which only the time has passed.
    std::thread::sleep(Duration::from_millis(3200));
    fs::write(run.join("metrics.jsonl"), "{\"step\":11,\"loss\":0.4}\n").unwrap();
    assert_eq!(sent.next().unwrap()[0]["step"], 11);
}

#[test]
fn a_quiet_run_still_says_where_its_page_is() {
    let said = Job::new("steps: 1", "").run(&["--quiet", "--serve", "0"]);
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("http://127.0.0.1:")).collect();
    assert!(lines.len() == 2 && lines[1].contains("/#token="), "{said}");
}

#[test]
fn nothing_is_done_without_the_token_or_for_another_site() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("fox");
    finished(&run, 10);
    // Somebody trains there.
    let lock = fs::File::create(run.join("run.lock")).unwrap();
    lock.try_lock().unwrap();
    let server = Server::start(folder.path());
    let (ask, own) = (r#"{"id":"fox","what":"stop"}"#, format!("http://{}", server.host));
    let post = |headers: &[(&str, &str)], body: &str| server.ask("POST", "/api/ask", headers, body).0;
    let token = ("X-Tenggat-Token", server.token.as_str());
    assert_eq!(post(&[], ask), 403);
    assert_eq!(post(&[("X-Tenggat-Token", "0123456789abcdef0123456789abcdef")], ask), 403);
    assert_eq!(post(&[token, ("Origin", "http://evil.example")], ask), 403);
    assert_eq!(post(&[token, ("Host", "evil.example")], ask), 403);
    assert_eq!(server.ask("GET", "/api/runs", &[("Host", "evil.example")], "").0, 403);
    assert!(!run.join("stop.request").exists());
    assert_eq!(post(&[token, ("Origin", &own)], r#"{"id":"fox","what":"rm"}"#), 400);
    assert_eq!(post(&[token, ("Origin", &own)], "{"), 400);
    assert_eq!(post(&[token, ("Origin", &own)], r#"{"id":"../fox","what":"stop"}"#), 404);
    assert_eq!(post(&[token, ("Origin", &own)], ask), 200);
    assert!(run.join("stop.request").exists());
    let extend = |by: &str| {
        server.ask("POST", "/api/extend", &[token], &format!("{{\"id\":\"fox\",\"by\":\"{by}\"}}")).0
    };
    assert_eq!((extend("soon"), extend("+30m"), extend("+30m")), (400, 200, 409));
    assert_eq!(fs::read_to_string(run.join("deadline.request")).unwrap(), "+30m\n");
    drop(lock);
    assert_eq!(post(&[token], ask), 409);
}

#[test]
fn the_queue_is_shown_to_all_and_changed_with_the_token_alone() {
    let job = Job::new("steps: 2", "");
    let server = Server::start(job.folder.path());
    let (status, queue) = server.get("/api/queue");
    assert_eq!((status, &queue["entries"], &queue["takes_jobs"]), (200, &json!([]), &json!(true)));
    let token = ("X-Tenggat-Token", server.token.as_str());
    let post = |path: &str, headers: &[(&str, &str)], body: &Value| {
        let (status, _, body) = server.ask("POST", path, headers, &body.to_string());
        (status, serde_json::from_slice::<Value>(&body).unwrap_or_default())
    };
    let text = fs::read_to_string(job.folder.path().join("job.yaml")).unwrap();
    let new = json!({"job": text, "budget": "10m", "by": ""});
    assert_eq!(post("/api/queue/cancel", &[token], &json!({"entry": 1})).0, 404, "there is no queue yet");
    for path in ["/api/queue/add", "/api/queue/cancel", "/api/queue/move", "/api/check"] {
        assert_eq!(post(path, &[], &new).0, 403, "{path}");
        assert_eq!(post(path, &[token, ("Origin", "http://evil.example")], &new).0, 403, "{path}");
        assert_eq!(post(path, &[token], &json!("x")).0, 400, "{path}");
    }
    // What is typed is checked: what cannot be read, what cannot run, and what can.
    let check = |text: &str| post("/api/check", &[token], &json!({"job": text})).1;
    let unread = check("job: extension\nconfig: [");
    assert_eq!(unread["ok"], false);
    assert!(unread["lines"][0].as_str().unwrap().starts_with("job.yaml:"), "{unread}");
    let unfit = check(&text.replace("/set'", "/nowhere'"));
    assert!(unfit["ok"] == false && unfit["lines"].to_string().contains("problem"), "{unfit}");
    assert_eq!(check(&text)["ok"], true, "{}", check(&text));
    let wrong = json!({"job": text, "budget": "soon"});
    assert_eq!(post("/api/queue/add", &[token], &wrong).0, 400);
    assert!(server.get("/api/queue").1["entries"].as_array().unwrap().is_empty());
    assert_eq!(post("/api/queue/add", &[token], &new), (200, json!({"entry": 1})));
    assert_eq!(post("/api/queue/add", &[token], &new), (200, json!({"entry": 2})));
    let (_, queue) = server.get("/api/queue");
    assert_eq!(
        (&queue["entries"][0]["state"], &queue["entries"][0]["budget_s"]),
        (&json!("waiting"), &json!(600.0))
    );
    let kept = queue["entries"][0]["job"].as_str().unwrap();
    assert_eq!(fs::read_to_string(kept).unwrap(), text);
    assert_eq!(post("/api/queue/move", &[token], &json!({"entry": 2, "to": "sideways"})).0, 400);
    assert_eq!(post("/api/queue/move", &[token], &json!({"entry": 2, "to": "up"})).0, 200);
    assert_eq!(server.get("/api/queue").1["entries"][0]["id"], 2);
    assert_eq!(post("/api/queue/cancel", &[token], &json!({"entry": 2})).0, 200);
    assert_eq!(post("/api/queue/cancel", &[token], &json!({"entry": 2})).0, 409);
    assert_eq!(post("/api/queue/move", &[token], &json!({"entry": 2, "to": "up"})).0, 409);
    assert_eq!(post("/api/queue/cancel", &[token], &json!({"entry": 9})).0, 404);
}

/// Node, its modules and a browser; `None` where one of them is missing.
fn browser() -> Option<(PathBuf, PathBuf)> {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let modules = named("TENGGAT_BROWSER_MODULES").filter(|path| path.join("playwright-core").is_dir())?;
    let usual = ["/usr/bin/chromium", "/usr/bin/chromium-browser"].map(PathBuf::from);
    let chromium = named("TENGGAT_CHROMIUM").into_iter().chain(usual).find(|path| path.is_file())?;
    Command::new("node").arg("--version").output().ok().filter(|output| output.status.success())?;
    Some((modules, chromium))
}

#[test]
fn a_browser_shows_a_live_run_and_carries_out_what_is_asked() {
    let Some((modules, chromium)) = browser() else {
        assert!(
            std::env::var_os("TENGGAT_REQUIRE_BROWSER").is_none(),
            "node, its modules or chromium is missing"
        );
        return not_tested("the page in a browser: node, chromium or TENGGAT_BROWSER_MODULES is missing");
    };
    let sample =
        "      sample: {sample_every: 10, width: 64, height: 64, prompts: [fox, bell], sample_steps: 2}\n";
    let job = Job::new("steps: 1000000", sample);
    finished(&job.folder.path().join("long"), 50_000);
    let run = job.start(&["--budget", "20m"], 25);
    let server = Server::start_with(job.folder.path(), &["--run-queue"]);
    let mut script = Command::new("node");
    script.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/browser/page.cjs"));
    script.arg(format!("http://{}/#token={}", server.host, server.token)).args(["fox", "long"]);
    script.args(std::env::var_os("TENGGAT_SCREENSHOTS"));
    script.env("TENGGAT_JOB", job.folder.path().join("job.yaml"));
    script.env("NODE_PATH", modules).env("TENGGAT_CHROMIUM", chromium);
    let output = script.output().unwrap();
    let said = common::text(&output);
    assert!(output.status.success(), "{said}");
    if let Some(folder) = std::env::var_os("TENGGAT_SCREENSHOTS") {
        fs::write(Path::new(&folder).join("measured.txt"), said).unwrap();
    }
    assert!(run.succeeds().contains("interrupted"));
}
