//! What this process has used of the machine, as Linux tells it; `None` elsewhere.

use std::fs;

/// Peak of the resident set in bytes, mapped files included.
pub fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Processor time of all its threads so far, seconds. On a machine with other things to do it says more than a clock.
pub fn processor_s() -> Option<f64> {
    let of = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    let threads = fs::read_dir("/proc/self/task").ok()?.flatten();
    Some(threads.filter_map(of).sum::<f64>() * 1e-9)
}
