//! What this process has used of the machine, as Linux tells it; `None` elsewhere.

use std::fs;

/// Whether this process was started with a signal ignored, as `nohup` ignores SIGHUP.
pub fn ignores(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    u32::try_from(signal - 1).is_ok_and(|bit| mask.checked_shr(bit).is_some_and(|rest| rest & 1 == 1))
}

/// Peak of the resident set in bytes, mapped files included.
pub fn peak_bytes() -> Option<u64> {
    bytes("VmHWM:")
}

/// The resident set in bytes, mapped files included.
pub fn resident_bytes() -> Option<u64> {
    bytes("VmRSS:")
}

fn bytes(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Processor time of all its threads so far, seconds. On a machine with other things to do it says more than
/// a clock.
pub fn processor_s() -> Option<f64> {
    let of = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    let threads = fs::read_dir("/proc/self/task").ok()?.flatten();
    Some(threads.filter_map(of).sum::<f64>() * 1e-9)
}
