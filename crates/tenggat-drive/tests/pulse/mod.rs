//! Whether the machine kept up while a test ran: a deadline of seconds says nothing on one that stood still
//! for longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest pause of a thread that wants to run, beyond which timing is not judged.
const STALL: Duration = Duration::from_millis(50);

/// Feels the machine's pulse from its making on.
pub struct Pulse {
    longest_ms: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Pulse {
    pub fn start() -> Self {
        let pulse = Pulse { longest_ms: Arc::default(), done: Arc::default() };
        let (longest_ms, done) = (Arc::clone(&pulse.longest_ms), Arc::clone(&pulse.done));
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                std::thread::sleep(Duration::from_millis(10));
                let late = began.elapsed().saturating_sub(Duration::from_millis(10));
                longest_ms.fetch_max(late.as_millis() as u64, Ordering::Relaxed);
            }
        });
        pulse
    }

    /// Whether the machine stood still at any time so far; then the test is not judged, and says so.
    pub fn stalled(&self) -> bool {
        let longest_ms = self.longest_ms.load(Ordering::Relaxed);
        let stalled = longest_ms > STALL.as_millis() as u64;
        #[expect(clippy::print_stderr, reason = "a test says why it is not judged")]
        if stalled {
            eprintln!("not judged: the machine stood still for {longest_ms} ms");
        }
        stalled
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}
