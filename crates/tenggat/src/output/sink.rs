//! The two streams of a process, written so that nothing about them can stop, fail or delay the work.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Where text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// Whether text may be left out when a reader does not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// News: left out only when very much of it waits.
    Line,
    /// One drawing of a progress bar, soon replaced by the next.
    Frame,
}

/// Text that waits for a reader, bytes; more is left out.
const MOST_WAITING: usize = 1 << 20;
/// With so much waiting, no further drawings of bars are added.
const MOST_BEFORE_FRAMES: usize = 1 << 12;
/// How long the end of the process waits for what is left, and for a single write.
const CLOSING: Duration = Duration::from_secs(1);
const CLOSING_WRITE: Duration = Duration::from_millis(250);

/// Set once, by [`detach`].
static QUEUE: OnceLock<&'static Queue> = OnceLock::new();

/// From here on a thread of its own writes. Whoever prints never waits for a reader that has stopped reading:
/// a paused pager, a terminal held with Ctrl-S, a full pipe.
pub fn detach() {
    if QUEUE.get().is_some() {
        return;
    }
    // A log that reaches the limit of file sizes is an error of that write then, not the end of the process.
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
    // It lasts as long as the process.
    let queue: &'static Queue = Box::leak(Box::default());
    // Without a thread, writing goes on as before.
    if thread::Builder::new().name("output".into()).spawn(move || queue.serve()).is_ok() {
        let _ = QUEUE.set(queue);
    }
}

/// Waits for what is still to be written, but not for a reader that has stopped reading.
pub fn finish() {
    if let Some(queue) = QUEUE.get() {
        queue.drain(CLOSING, CLOSING_WRITE);
    }
}

/// Writes, or hands over to be written; what cannot be written is lost in silence.
pub fn write(stream: Stream, text: &str, worth: Worth) {
    match QUEUE.get() {
        Some(queue) => queue.push(stream, text, worth),
        // A display that is gone is no reason to end.
        None => drop(write_through(stream, text)),
    }
}

/// Writes at once and says how that went.
///
/// # Errors
/// The system's reason.
#[expect(clippy::disallowed_methods, reason = "the one place that writes to them")]
pub fn write_through(stream: Stream, text: &str) -> io::Result<()> {
    match stream {
        Stream::Out => write_to(&mut io::stdout().lock(), text.as_bytes()),
        Stream::Err => write_to(&mut io::stderr().lock(), text.as_bytes()),
    }
}

/// As `write_all`, but patient with a stream that another process has made non-blocking.
fn write_to(stream: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    loop {
        let tried =
            if bytes.is_empty() { stream.flush().map(|()| None) } else { stream.write(bytes).map(Some) };
        match tried {
            Ok(None) => return Ok(()),
            Ok(Some(0)) => return Err(ErrorKind::WriteZero.into()),
            Ok(Some(n)) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(e) => return Err(e),
        }
    }
}

/// Text on its way to the streams.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Stream, String)>,
    bytes: usize,
    /// When the write under way began.
    writing: Option<Instant>,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, stream: Stream, text: &str, worth: Worth) {
        let most = if worth == Worth::Frame { MOST_BEFORE_FRAMES } else { MOST_WAITING };
        let mut state = self.state();
        if state.bytes + text.len() <= most {
            state.bytes += text.len();
            state.waiting.push_back((stream, text.to_owned()));
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Writes what comes, for ever.
    fn serve(&self) {
        self.serve_with(|stream, text| drop(write_through(stream, text)));
    }

    fn serve_with(&self, write: impl Fn(Stream, &str)) {
        let mut state = self.state();
        loop {
            if let Some((stream, text)) = state.waiting.pop_front() {
                state.bytes -= text.len();
                state.writing = Some(Instant::now());
                drop(state);
                write(stream, &text);
                state = self.state();
                state.writing = None;
                self.changed.notify_all();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Returns when all is written, when one write takes longer than `write`, or after `all`.
    fn drain(&self, all: Duration, write: Duration) {
        let began = Instant::now();
        let mut state = self.state();
        while (state.writing.is_some() || !state.waiting.is_empty()) && began.elapsed() < all {
            if state.writing.is_some_and(|since| since.elapsed() > write) {
                return;
            }
            let pause = Duration::from_millis(20);
            state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc};

    #[test]
    fn a_reader_that_stops_reading_holds_up_nobody() {
        let queue = Arc::new(Queue::default());
        let (release, held) = mpsc::channel::<()>();
        let (sender, written) = mpsc::channel();
        let server = Arc::clone(&queue);
        thread::spawn(move || {
            server.serve_with(|_, text| {
                let _ = held.recv();
                let _ = sender.send(text.to_owned());
            });
        });
        // Each is a hundredth of what may wait; most of them are left out.
        let long = "x".repeat(MOST_WAITING / 100);
        for _ in 0..1000 {
            queue.push(Stream::Out, &long, Worth::Line);
        }
        assert!(queue.state().bytes <= MOST_WAITING);
        // It gives up long before the second is over.
        queue.drain(Duration::from_secs(60), Duration::from_millis(30));
        drop(release);
        queue.drain(Duration::from_secs(60), Duration::from_secs(60));
        let count = written.try_iter().count();
        assert!((100..=102).contains(&count), "{count}");
    }

    #[test]
    fn drawings_of_bars_give_way_to_lines() {
        let queue = Queue::default();
        queue.push(Stream::Err, &"x".repeat(MOST_BEFORE_FRAMES - 1), Worth::Line);
        queue.push(Stream::Err, "frame", Worth::Frame);
        queue.push(Stream::Err, "line", Worth::Line);
        let texts: Vec<String> = queue.state().waiting.iter().map(|(_, text)| text.clone()).collect();
        assert_eq!(texts[1..], ["line"]);
    }

    #[test]
    fn a_stream_that_is_not_ready_is_waited_for() {
        struct Busy(Vec<u8>, u32);
        impl Write for Busy {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                match self.1 % 3 {
                    0 => Err(ErrorKind::WouldBlock.into()),
                    1 => Err(ErrorKind::Interrupted.into()),
                    _ => {
                        self.0.push(bytes[0]);
                        Ok(1)
                    }
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut busy = Busy(Vec::new(), 0);
        write_to(&mut busy, b"all of it").unwrap();
        assert_eq!(busy.0, b"all of it");
        let mut full: &mut [u8] = &mut [0; 4];
        assert!(write_to(&mut full, b"no room").is_err());
    }
}
