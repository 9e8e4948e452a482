//! Signals: what each asks of a run, and that the process is gone soon after.
//!
//! SIGINT, SIGTERM and SIGXCPU end a run, which saves what it has trained; so does SIGHUP where there is no
//! deadline. SIGUSR1 saves. A second SIGINT or SIGTERM ends the process at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use tenggat_train::run::Stop;

use crate::output::warning;

/// How long a phase may take to end by itself once the end was requested.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks at whether everything is saved by now.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Listens from now on, for as long as the process lives. `status` is the exit status of a process that has
/// to be ended in the middle of something.
///
/// # Errors
/// The system allows no handlers or no thread.
pub fn listen(status: i32) -> anyhow::Result<Stop> {
    let stop = Stop::default();
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In the handler itself, should saving hang.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&again))
            .and_then(|_| flag::register(signal, Arc::clone(&again)))
            .context("cannot install the signal handlers")?;
    }
    start(&stop, again, status).context("cannot install the signal handlers")?;
    Ok(stop)
}

#[cfg(unix)]
fn start(stop: &Stop, _: Arc<AtomicBool>, status: i32) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGUSR1, SIGXCPU};

    let mut wanted = vec![SIGINT, SIGTERM, SIGXCPU, SIGUSR1];
    // With `nohup` the run is meant to outlive its terminal, whatever its budget.
    if !crate::process::ignores(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    let stop = stop.clone();
    let hear = move || {
        let mut watched = false;
        for signal in signals.forever() {
            match signal {
                SIGUSR1 => stop.save_now(),
                SIGHUP => stop.hang_up(),
                _ => stop.request(),
            }
            if stop.is_requested() && !watched {
                let stop = stop.clone();
                // Without the thread the run ends as well, if not as surely in time.
                watched = std::thread::Builder::new().spawn(move || end_in_time(&stop, status)).is_ok();
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(hear).map(drop)
}

#[cfg(not(unix))]
fn start(stop: &Stop, asked: Arc<AtomicBool>, status: i32) -> std::io::Result<()> {
    let stop = stop.clone();
    let hear = move || {
        while !asked.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY);
        }
        stop.request();
        end_in_time(&stop, status);
    };
    std::thread::Builder::new().name("signals".into()).spawn(hear).map(drop)
}

/// Ends a process that is stuck in something long, such as a picture of many pixels or a server that does not
/// answer, as soon as no trained step would be lost.
fn end_in_time(stop: &Stop, status: i32) {
    std::thread::sleep(PATIENCE);
    while stop.has_unsaved() {
        std::thread::sleep(LOOK_EVERY);
    }
    // Somebody may hold standard error, or not read what comes: nobody waits for that.
    let told = std::thread::Builder::new()
        .spawn(|| warning!("interrupted; what was trained, if anything, is saved"));
    if told.is_ok() {
        std::thread::sleep(LOOK_EVERY);
    }
    crate::hooks::at_forced_exit();
    low_level::exit(status);
}
