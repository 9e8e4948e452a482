//! What a trainer's output says: progress bars, and troubles.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::trainer::Trouble;

/// Bytes read at a time; older ones of a flood are passed over.
const MOST: u64 = 64 * 1024;
/// Characters of the trainer's last output that are shown.
const LAST_WORDS: usize = 300;

/// Follows a file that is written to.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    at: u64,
    rest: String,
    /// The newest progress bar.
    pub bar: Option<Bar>,
    recent: Vec<String>,
}

/// A progress bar as `tqdm` draws it: `name:  25%|██▌  | 10/40 [00:32<01:36, 3.20s/it, lr: 3.0e-04 loss:
/// 4.7e-01]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// Steps done.
    pub done: u64,
    /// Steps in all.
    pub total: u64,
    /// Seconds a step by the bar's own reckoning.
    pub step_s: Option<f64>,
    /// The newest loss shown.
    pub loss: Option<f64>,
    /// The newest learning rate shown.
    pub lr: Option<f64>,
}

impl Tail {
    /// Follows `path` from its present end.
    pub fn new(path: &Path) -> Self {
        let at = std::fs::metadata(path).map_or(0, |m| m.len());
        Tail { path: path.into(), at, rest: String::new(), bar: None, recent: Vec::new() }
    }

    /// Reads what was added.
    pub fn follow(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let length = file.metadata().map_or(0, |m| m.len());
        if length <= self.at {
            return;
        }
        self.at = self.at.max(length.saturating_sub(MOST));
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(self.at)).is_err() || file.take(MOST).read_to_end(&mut bytes).is_err() {
            return;
        }
        self.at += bytes.len() as u64;
        let text = std::mem::take(&mut self.rest) + &String::from_utf8_lossy(&bytes);
        let mut lines: Vec<&str> = text.split(['\n', '\r']).collect();
        let rest = lines.pop().unwrap_or_default();
        // A bar has no end of line until the next one is drawn.
        for line in lines.iter().chain([&rest]) {
            self.take(line);
        }
        let from = rest.len().saturating_sub(2000);
        self.rest = rest.get(from..).unwrap_or_default().to_owned();
    }

    fn take(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(bar) = parse_bar(line) {
            // Bars of caches and saves come in between; the training's shows a loss, or counts on.
            let training =
                bar.loss.is_some() || self.bar.is_none_or(|b| b.total == bar.total || b.loss.is_none());
            if training {
                self.bar = Some(bar);
            }
        } else if !line.trim().is_empty() && self.recent.last().is_none_or(|l| l != line) {
            self.recent.push(line.chars().take(1000).collect());
            if self.recent.len() > 60 {
                self.recent.remove(0);
            }
        }
    }

    /// The kind of trouble that the last lines tell of, and the words to tell it with.
    pub fn trouble(&self) -> (Trouble, String) {
        let found = self.recent.iter().rev().find_map(|line| Some((recognise(line)?, line)));
        let error = self.recent.iter().rev().find(|line| line.contains("Error")).or(self.recent.last());
        let (trouble, line) = match found {
            Some((trouble, line)) => (trouble, Some(line)),
            None => (Trouble::Error, error),
        };
        let words = line.map_or(String::new(), |line| line.trim().chars().take(LAST_WORDS).collect());
        (trouble, words)
    }
}

/// The kind of trouble that a line of a program's output shows.
pub fn recognise(line: &str) -> Option<Trouble> {
    let line = line.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
    if has(&["out of memory", "outofmemoryerror", "oom during training", "cublas_status_alloc_failed"]) {
        return Some(Trouble::OutOfMemory);
    }
    if has(&["no space left on device", "disk quota exceeded", "[errno 28]", "os error 28"]) {
        return Some(Trouble::DiskFull);
    }
    if has(&[
        "cuda error",
        "device-side assert",
        "unspecified launch failure",
        "illegal memory access",
        "driver/library version mismatch",
        "gpu is lost",
        "fallen off the bus",
        "nvml",
    ]) {
        return Some(Trouble::Driver);
    }
    if has(&["loss is nan", "nan loss", "loss=nan", "loss: nan", "non-finite", "loss is not finite"]) {
        return Some(Trouble::NotFinite);
    }
    None
}

/// Reads a progress bar of steps.
pub fn parse_bar(line: &str) -> Option<Bar> {
    let (before, after) = line.rsplit_once(" [")?;
    let counts = before.rsplit([' ', '|']).find(|word| word.contains('/'))?;
    let (done, total) = counts.split_once('/')?;
    let (done, total) = (done.trim().parse().ok()?, total.trim().parse().ok()?);
    if !after.contains(':') || !(after.contains("it/s") || after.contains("s/it")) {
        return None;
    }
    let step_s = after.split([',', ']', ' ']).find_map(|word| {
        let slow = word.strip_suffix("s/it").and_then(|n| n.parse::<f64>().ok());
        let fast = || word.strip_suffix("it/s").and_then(|n| n.parse::<f64>().ok()).map(|n| 1.0 / n);
        slow.or_else(fast)
    });
    Some(Bar { done, total, step_s, loss: loss(after), lr: number_after(after, "lr") })
}

/// The first number that a name with `loss` in it stands before; averages count as well.
fn loss(text: &str) -> Option<f64> {
    ["loss", "avr_loss", "step_loss", "smooth loss"].iter().find_map(|name| number_after(text, name))
}

/// The number after `name`, an equals sign or a colon.
fn number_after(text: &str, name: &str) -> Option<f64> {
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        let boundary = rest[..at].chars().last().is_none_or(|c| !c.is_alphanumeric());
        rest = &rest[at + name.len()..];
        let value = rest.trim_start().strip_prefix(['=', ':']);
        if let (true, Some(value)) = (boundary, value) {
            let number: String =
                value.trim_start().chars().take_while(|c| !matches!(c, ',' | ' ' | ']' | '}')).collect();
            if let Ok(number) = number.parse() {
                return Some(number);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn bars_of_several_trainers_are_read() {
        let toolkit = "fox:  25%|██▌       | 10/40 [00:32<01:36,  3.20s/it, lr: 3.0e-04 loss: 4.762e-01]";
        let bar = parse_bar(toolkit).unwrap();
        assert_eq!((bar.done, bar.total, bar.step_s), (10, 40, Some(3.2)));
        assert_eq!((bar.loss, bar.lr), (Some(0.4762), Some(3e-4)));
        let musubi =
            parse_bar("steps:   5%|▌         | 80/1600 [02:11<41:33,  1.64s/it, avr_loss=0.0912]").unwrap();
        assert_eq!((musubi.done, musubi.total, musubi.loss), (80, 1600, Some(0.0912)));
        let diffusers =
            parse_bar("Steps:  12%|█▏ | 60/500 [00:21<02:31,  2.91it/s, loss=0.23, lr=0.0001]").unwrap();
        assert_eq!((diffusers.loss, diffusers.lr), (Some(0.23), Some(1e-4)));
        assert!((diffusers.step_s.unwrap() - 1.0 / 2.91).abs() < 1e-9);
        assert!(parse_bar("Fetching 4 of 7 [no bar]").is_none());
        assert!(parse_bar("model.safetensors: 12%|█ | 1.2G/9.9G [00:10<01:00, 120MB/s]").is_none());
    }

    #[test]
    fn troubles_are_recognised() {
        for (line, trouble) in [
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", Trouble::OutOfMemory),
            (
                "RuntimeError: OOM during training step 3 times in a row, aborting training",
                Trouble::OutOfMemory,
            ),
            ("OSError: [Errno 28] No space left on device", Trouble::DiskFull),
            ("RuntimeError: CUDA error: unspecified launch failure", Trouble::Driver),
            ("loss is nan at step 40", Trouble::NotFinite),
        ] {
            assert_eq!(recognise(line), Some(trouble), "{line}");
        }
        assert_eq!(recognise("banana loss"), None);
    }

    #[test]
    fn a_file_is_followed_as_it_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "of an earlier session: CUDA out of memory\n").unwrap();
        let mut tail = Tail::new(&path);
        let mut add = |text: &str| {
            File::options().append(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
            tail.follow();
            tail.bar.map(|b| b.done)
        };
        assert_eq!(add("Loading\nx: 1%| | 1/99 [00:01<00:10, 1.0s/it, loss=0.5]"), Some(1));
        assert_eq!(add("\rx: 2%| | 2/99 [00:02<00:10, 1.0s/i"), Some(1));
        assert_eq!(add("t, loss=0.4]"), Some(2));
        assert_eq!(add("\nCaching: 2%| | 1/24 [00:02<00:10, 1.0s/it]\n"), Some(2));
        add("Traceback (most recent call last):\nValueError: no such file\n");
        assert_eq!(tail.trouble(), (Trouble::Error, "ValueError: no such file".into()));
    }
}
