//! What NVIDIA's `nvidia-smi` says about a GPU that may explain a slow or silent trainer.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The fields to query.
const QUERY: &str = "--query-gpu=utilization.gpu,memory.used,memory.total,temperature.gpu,\
clocks_event_reasons.hw_slowdown,clocks_event_reasons.sw_thermal_slowdown,clocks_event_reasons.sw_power_cap";
/// Longest wait for an answer; a driver that hangs gives none.
const PATIENCE: Duration = Duration::from_secs(2);

/// Likely causes, in words; none where there is no `nvidia-smi` or nothing is out of the ordinary.
pub fn clues() -> Vec<String> {
    match ask() {
        Answer::None => Vec::new(),
        Answer::Silent => vec!["`nvidia-smi` does not answer: the GPU's driver seems to hang".into()],
        Answer::Said(text) => text.lines().flat_map(read).collect(),
    }
}

enum Answer {
    None,
    Silent,
    Said(String),
}

fn ask() -> Answer {
    let mut command = Command::new("nvidia-smi");
    command.args([QUERY, "--format=csv,noheader,nounits"]).stdin(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else { return Answer::None };
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(_)) | Err(_) => return Answer::None,
            Ok(None) if began.elapsed() > PATIENCE => {
                let _ = child.kill();
                return Answer::Silent;
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        let _ = out.read_to_string(&mut text);
    }
    Answer::Said(text)
}

/// The causes that one GPU's line shows.
fn read(line: &str) -> Vec<String> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok());
    let active = |i: usize| fields.get(i).is_some_and(|f| *f == "Active");
    let mut clues = Vec::new();
    if let (Some(used), Some(total)) = (number(1), number(2))
        && used > 0.97 * total
    {
        clues.push(format!(
            "the GPU's memory is full ({used:.0} of {total:.0} MiB): on Windows and WSL the rest spills into main memory, \
             which is many times slower"
        ));
    }
    if active(4) || active(5) {
        let degrees = number(3).map_or(String::new(), |t| format!(" at {t:.0} °C"));
        clues.push(format!("the GPU is throttled{degrees}: look at its cooling"));
    } else if active(6) {
        clues.push("the GPU is held back by its power limit".into());
    }
    if number(0).is_some_and(|used| used < 20.0) {
        clues.push("the GPU is hardly busy: the trainer waits for data, the disk or the processor".into());
    }
    clues
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_causes() {
        assert!(read("98, 20000, 24564, 70, Not Active, Not Active, Not Active").is_empty());
        assert!(read("99, 24400, 24564, 70, Not Active, Not Active, Not Active")[0].contains("spills"));
        assert!(read("99, 1, 24564, 91, Active, Not Active, Active")[0].contains("91 °C"));
        assert!(read("99, 1, 24564, 71, Not Active, Not Active, Active")[0].contains("power limit"));
        assert!(read("3, 1, 24564, 41, Not Active, Not Active, Not Active")[0].contains("hardly busy"));
        assert!(read("[N/A], [N/A]").is_empty());
    }
}
