//! Telling other programs about a run: a signed message to a web address on its way, a command at its end.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use hmac::{Hmac, Mac};
use serde::Serialize;
use sha2::Sha256;
use tenggat_drive::WEBHOOK_SECRET;
use tenggat_plan::{Clock, Pace, WallClock};
use tenggat_train::run::Event;

use crate::output::{self, say, warning};
use crate::terms::{HookArgs, Terms};

/// The header that holds a message's signature.
const HEADER: &str = "X-Tenggat-Signature";
/// Longest wait for an address to take a message.
const PATIENCE: Duration = Duration::from_secs(5);
/// Shortest time between two messages of one kind that come again and again.
const SELDOM: Duration = Duration::from_secs(60);
/// Messages that may wait for an address; a run waits for none.
const QUEUE: usize = 32;
/// Longest wait for the last message to be taken, and time kept for the end of the process, in seconds.
const LONGEST_WAIT_S: f64 = 5.0;
const CLOSING_S: f64 = 0.05;

/// What a message tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Moment {
    /// The run has begun.
    Started,
    /// Steps take longer, or none comes.
    Slowed,
    /// A LoRA was written.
    Saved,
    /// The run has ended as it should.
    Done,
    /// It has not.
    Failed,
}

#[derive(Debug, Serialize)]
struct Message<'a> {
    event: Moment,
    run: &'a str,
    time: String,
    steps: Option<u64>,
    text: &'a str,
}

/// The hooks of one run.
pub struct Hooks {
    run: String,
    then: Option<String>,
    post: Option<Post>,
    seldom: [Option<Instant>; 2],
    clock: WallClock,
    /// Seconds of the budget that earlier starts have spent: the run's clock is ahead by so many.
    before_s: f64,
    /// The deadline on the run's clock, which somebody may have moved.
    deadline_s: Option<f64>,
    pace: Pace,
}

/// What came of a run, for its hooks.
pub struct Outcome {
    /// The LoRA, and the updates in it.
    pub lora: Option<(PathBuf, u64)>,
    /// Why the run ended.
    pub ended: String,
}

/// Runs something that says itself when it begins, slows down and saves; at its end, whatever that is, a
/// panic included, come what it cost, the last message and the command. `run` is its name until it says
/// another.
///
/// # Errors
/// Those of `body`; a webhook without an address or a key, before anything is run.
pub fn hooked<T>(
    terms: &Terms,
    run: &str,
    clock: WallClock,
    body: impl FnOnce(&mut Hooks) -> anyhow::Result<T>,
    outcome: impl FnOnce(&T) -> Outcome,
) -> anyhow::Result<T> {
    let mut hooks = Hooks::new(&terms.hooks, run, clock)?;
    // A panic is a bug, but not one that may keep a rented machine running.
    let result = catch_unwind(AssertUnwindSafe(|| body(&mut hooks)));
    if let (Some(cost), Ok(Ok(_))) = (terms.money.cost(hooks.now_s()), &result) {
        say!("{:<14} {cost:.2}", "cost");
    }
    let wait = hooks.longest_wait();
    match &result {
        Ok(Ok(value)) => {
            let Outcome { lora, ended } = outcome(value);
            hooks.end(lora.as_ref().map(|(path, steps)| (path.as_path(), *steps)), &ended, wait);
        }
        Ok(Err(error)) => hooks.end(None, &error.to_string(), wait),
        Err(_) => hooks.end(None, "a bug in this program ended it", wait),
    }
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

struct Post {
    queue: SyncSender<String>,
    sender: JoinHandle<()>,
}

impl Hooks {
    /// For a run of this name.
    ///
    /// # Errors
    /// The address is none, or there is no key to sign with.
    pub fn new(args: &HookArgs, run: &str, clock: WallClock) -> anyhow::Result<Hooks> {
        let post = args.webhook.as_deref().map(Post::start).transpose()?;
        let then = args.then.clone();
        *pending() = then.clone().map(|command| Pending { command, run: run.into(), lora: None });
        Ok(Hooks { then, post, ..Hooks::none(run, clock) })
    }

    /// For a run that nobody is told of.
    pub fn none(run: &str, clock: WallClock) -> Hooks {
        let (run, then, post) = (run.into(), None, None);
        let (seldom, pace) = ([None; 2], Pace::new(1));
        Hooks { run, then, post, seldom, clock, before_s: 0.0, deadline_s: None, pace }
    }

    /// The run begins: this is its name, and these are its clock and the deadline on it, if that is known.
    pub fn begin(&mut self, run: &str, clock: WallClock, deadline_s: Option<f64>) {
        self.run = run.into();
        if let Some(pending) = pending().as_mut() {
            pending.run = run.into();
        }
        (self.clock, self.deadline_s) = (clock, deadline_s);
        self.tell(Moment::Started, None, "");
    }

    /// The run resumes an earlier one, which has spent some of the time.
    pub fn resumed(&mut self, spent_before_s: f64, deadline_s: Option<f64>) {
        (self.before_s, self.deadline_s) = (spent_before_s, deadline_s);
    }

    /// Seconds on the run's clock.
    fn now_s(&self) -> f64 {
        self.before_s + self.clock.now_s()
    }

    /// How long the end waits for the last message: for what is left of the time, and no longer.
    fn longest_wait(&self) -> Duration {
        let left_s = self.deadline_s.map_or(LONGEST_WAIT_S, |s| s - self.now_s() - CLOSING_S);
        Duration::from_secs_f64(left_s.clamp(0.0, LONGEST_WAIT_S))
    }

    /// Tells of what a run of our own engine has to say.
    pub fn hear(&mut self, event: &Event) {
        match event {
            Event::Saved { path, steps } => self.saved(path, *steps),
            Event::Resumed { spent_before_s, deadline_s, .. } => self.resumed(*spent_before_s, *deadline_s),
            Event::DeadlineMoved { deadline_s, .. } => self.moved(*deadline_s),
            // It knows the shares of the sizes of pictures, which single steps do not.
            Event::Forecast(forecast) => {
                let slow = forecast.step_s.and_then(|step_s| self.pace.observe(1, step_s));
                if let Some(slow) = slow {
                    self.tell(Moment::Slowed, Some(forecast.steps_done), &slow.to_string());
                }
            }
            _ => {}
        }
    }

    /// A LoRA was written.
    pub fn saved(&mut self, path: &Path, steps: u64) {
        if let Some(pending) = pending().as_mut() {
            pending.lora = Some((path.into(), steps));
        }
        self.tell(Moment::Saved, Some(steps), "");
    }

    /// The deadline is another now.
    pub fn moved(&mut self, deadline_s: f64) {
        self.deadline_s = Some(deadline_s);
    }

    /// Sends a message, if there is whom to send it to. It is only put into a queue: a run waits for nobody.
    pub fn tell(&mut self, event: Moment, steps: Option<u64>, text: &str) {
        let Some(post) = &self.post else { return };
        let often = match event {
            Moment::Slowed => Some(0),
            Moment::Saved => Some(1),
            _ => None,
        };
        if let Some(kind) = often {
            if self.seldom[kind].is_some_and(|at| at.elapsed() < SELDOM) {
                return;
            }
            self.seldom[kind] = Some(Instant::now());
        }
        let time = jiff::Timestamp::now().to_string();
        let message = Message { event, run: &self.run, time, steps, text };
        if let Ok(text) = serde_json::to_string(&message) {
            // A full queue means that the address does not answer; it has been told of that once.
            let _ = post.queue.try_send(text);
        }
    }

    /// The end: the last message, at most `wait` for the queue to empty, and the command.
    pub fn end(mut self, lora: Option<(&Path, u64)>, text: &str, wait: Duration) {
        let event = if lora.is_some() { Moment::Done } else { Moment::Failed };
        self.tell(event, lora.map(|(_, steps)| steps), text);
        if let Some(post) = self.post.take() {
            post.finish(wait);
        }
        *pending() = None;
        if let Some(command) = &self.then {
            run_then(command, &self.run, lora);
        }
    }
}

/// What has to be done should the process be ended in the middle of something.
struct Pending {
    command: String,
    run: String,
    /// The newest LoRA.
    lora: Option<(PathBuf, u64)>,
}

fn pending() -> MutexGuard<'static, Option<Pending>> {
    static PENDING: Mutex<Option<Pending>> = Mutex::new(None);
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For a process that is about to be ended in the middle of something: starts the command of its run, if
/// there is one, and does not wait for it.
pub fn at_forced_exit() {
    let Some(Pending { command, run, lora }) = pending().take() else { return };
    let lora = lora.as_ref().map(|(path, steps)| (path.as_path(), *steps));
    // Whoever ends the process has no time for complaints.
    let _ = shell(&command, &run, lora).spawn();
}

fn run_then(command: &str, run: &str, lora: Option<(&Path, u64)>) {
    say!("{:<14} {command}", "then");
    match shell(command, run, lora).status() {
        Ok(status) if status.success() => {}
        Ok(status) => warning!("--then ended with {status}: {command}"),
        Err(e) => warning!("--then could not be run ({e}): {command}"),
    }
}

/// The command, with what it is told of the run.
fn shell(command: &str, run: &str, lora: Option<(&Path, u64)>) -> Command {
    let mut shell = if cfg!(windows) { Command::new("cmd") } else { Command::new("sh") };
    shell.arg(if cfg!(windows) { "/C" } else { "-c" }).arg(command).stdin(Stdio::null());
    // Standard output may belong to events, and the key of signatures is nobody else's.
    shell.stdout(output::stdout_for_people()).env_remove(WEBHOOK_SECRET);
    shell.env("TENGGAT_STATUS", if lora.is_some() { "done" } else { "failed" }).env("TENGGAT_RUN", run);
    if let Some((path, steps)) = lora {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
        shell.env("TENGGAT_LORA", path).env("TENGGAT_STEPS", steps.to_string());
    }
    shell
}

impl Post {
    fn start(url: &str) -> anyhow::Result<Post> {
        anyhow::ensure!(
            url.starts_with("https://") || url.starts_with("http://"),
            "--webhook {url}: the address must begin with https:// or http://"
        );
        let secret = std::env::var(WEBHOOK_SECRET).ok().filter(|s| !s.is_empty()).with_context(|| {
            format!("--webhook signs its messages; set {WEBHOOK_SECRET} to a key that the receiver knows")
        })?;
        let (queue, messages) = mpsc::sync_channel::<String>(QUEUE);
        let url = url.to_owned();
        let sender = std::thread::spawn(move || {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
            let mut has_failed = false;
            for message in messages {
                let sent = agent
                    .post(&url)
                    .header("Content-Type", "application/json")
                    .header(HEADER, signature(secret.as_bytes(), message.as_bytes()))
                    .send(message.as_bytes());
                if let Err(e) = sent {
                    if !has_failed {
                        warning!("the webhook does not accept messages: {e}");
                    }
                    has_failed = true;
                }
            }
        });
        Ok(Post { queue, sender })
    }

    fn finish(self, wait: Duration) {
        drop(self.queue);
        let began = Instant::now();
        while !self.sender.is_finished() && began.elapsed() < wait {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// `sha256=` and the message's HMAC-SHA256 in hexadecimal, as GitHub signs its own.
fn signature(secret: &[u8], message: &[u8]) -> String {
    // Keys of any length are allowed.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return String::new() };
    mac.update(message);
    let bytes = mac.finalize().into_bytes();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::money::Money;

    use super::*;

    #[test]
    fn signatures_are_rfc_4231s() {
        // Test case 2.
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(b"Jefe", b"what do ya want for nothing?"), expected);
    }

    /// Hooks of a run `fox`, and the messages that they send.
    fn collecting() -> (Hooks, Arc<Mutex<Vec<serde_json::Value>>>) {
        let (queue, messages) = mpsc::sync_channel::<String>(QUEUE);
        let got = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&got);
        let sender = std::thread::spawn(move || {
            for message in messages {
                kept.lock().unwrap().push(serde_json::from_str(&message).unwrap());
            }
        });
        let post = Some(Post { queue, sender });
        (Hooks { post, ..Hooks::none("fox", WallClock::start()) }, got)
    }

    #[test]
    fn messages_are_sent_and_saves_are_told_seldom() {
        let (mut hooks, got) = collecting();
        hooks.tell(Moment::Started, None, "");
        hooks.tell(Moment::Saved, Some(10), "");
        hooks.tell(Moment::Saved, Some(20), "");
        hooks.end(Some((Path::new("last.safetensors"), 30)), "all done", Duration::from_secs(10));
        let got = got.lock().unwrap();
        assert!(got.iter().all(|json| json["run"] == "fox"), "{got:?}");
        let events: Vec<String> =
            got.iter().map(|json| format!("{} {}", json["event"].as_str().unwrap(), json["steps"])).collect();
        assert_eq!(events, ["started null", "saved 10", "done 30"]);
    }

    #[test]
    fn the_last_message_waits_for_what_is_left_of_the_time() {
        let mut hooks = Hooks::none("fox", WallClock::start());
        let wait_s = |hooks: &Hooks| hooks.longest_wait().as_secs_f64();
        assert_eq!(wait_s(&hooks), LONGEST_WAIT_S);
        hooks.begin("fox", WallClock::start(), Some(600.0));
        assert_eq!(wait_s(&hooks), LONGEST_WAIT_S);
        // Of a budget of ten minutes the earlier start has left two seconds.
        hooks.hear(&Event::Resumed { steps: 9, spent_before_s: 598.0, deadline_s: Some(600.0) });
        assert!(wait_s(&hooks) < 2.0);
        hooks.moved(700.0);
        assert_eq!(wait_s(&hooks), LONGEST_WAIT_S);
        hooks.moved(590.0);
        assert_eq!(wait_s(&hooks), 0.0);
    }

    #[cfg(unix)]
    #[test]
    fn the_command_is_run_after_a_panic_too() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let then = Some(format!("echo $TENGGAT_STATUS $TENGGAT_RUN > {}", out.display()));
        let money = Money { max_cost: None, price_per_hour: None };
        let terms = Terms { money, hooks: HookArgs { then, webhook: None } };
        let clock = WallClock::start();
        let body = |hooks: &mut Hooks| -> anyhow::Result<()> {
            hooks.begin("fox", clock, None);
            panic!("a bug");
        };
        let outcome = |(): &()| Outcome { lora: None, ended: String::new() };
        let ended = catch_unwind(|| hooked(&terms, "job", clock, body, outcome));
        assert_eq!(*ended.unwrap_err().downcast::<&str>().unwrap(), "a bug");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "failed fox\n");
    }

    #[cfg(unix)]
    #[test]
    fn the_command_is_told_how_it_went() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let then =
            format!("echo $TENGGAT_STATUS $TENGGAT_RUN $TENGGAT_STEPS $TENGGAT_LORA > {}", out.display());
        let hooks = |then: &str| {
            let args = HookArgs { then: Some(then.into()), webhook: None };
            Hooks::new(&args, "fox", WallClock::start()).unwrap()
        };
        hooks(&then).end(Some((Path::new("/a/last.safetensors"), 7)), "", Duration::ZERO);
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "done fox 7 /a/last.safetensors\n");
        hooks(&then).end(None, "", Duration::ZERO);
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "failed fox\n");
        // One that fails fails nothing.
        hooks("exit 3").end(None, "", Duration::ZERO);
    }

    #[test]
    fn a_webhook_needs_an_address() {
        let args = HookArgs { then: None, webhook: Some("ftp://x".into()) };
        assert!(Hooks::new(&args, "fox", WallClock::start()).err().unwrap().to_string().contains("https://"));
    }
}
