//! Images that a run generated on the way.

use std::path::Path;

use serde::Serialize;

/// Folder of the images inside the run's.
const FOLDER: &str = "samples";
/// Most of them that are listed.
const MOST: usize = 20_000;

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Sample {
    /// Steps of the LoRA.
    pub step: u64,
    /// Number of the prompt, from 0.
    pub prompt: u32,
    /// Milliseconds since 1970 when it was made.
    pub unix_ms: u64,
    /// Its path inside the run's folder.
    pub file: String,
}

/// The images of a run by step and prompt; of several of one place, the newest.
///
/// Names are ai-toolkit's: `samples/<milliseconds>__<step>_<prompt>.<extension>`.
pub fn samples(folder: &Path) -> Vec<Sample> {
    let entries = std::fs::read_dir(folder.join(FOLDER)).into_iter().flatten().flatten();
    let mut found: Vec<Sample> =
        entries.filter_map(|entry| parse(entry.file_name().to_str()?)).take(MOST).collect();
    found.sort();
    // Of equal ones the last stays.
    found.reverse();
    found.dedup_by_key(|sample| (sample.step, sample.prompt));
    found.reverse();
    found
}

fn parse(name: &str) -> Option<Sample> {
    let (stem, extension) = name.rsplit_once('.')?;
    if !["jpg", "jpeg", "png", "webp"].contains(&extension.to_ascii_lowercase().as_str()) {
        return None;
    }
    let (time, place) = stem.split_once("__")?;
    let (step, prompt) = place.split_once('_')?;
    Some(Sample {
        step: step.parse().ok()?,
        prompt: prompt.parse().ok()?,
        unix_ms: time.parse().ok()?,
        file: format!("{FOLDER}/{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_sorted_and_strangers_left_out() {
        let folder = tempfile::tempdir().unwrap();
        assert!(samples(folder.path()).is_empty());
        let inner = folder.path().join(FOLDER);
        std::fs::create_dir(&inner).unwrap();
        for name in [
            "1700000000002__000000100_1.jpg",
            "1700000000001__000000100_0.jpg",
            "1700000000009__000000100_0.png",
            "1700000000000__000000000_0.jpg",
            "notes.txt",
            "a__b_c.jpg",
            "1__2.jpg",
            "__1_1.jpg",
            "1700000000001__000000100_0.exe",
        ] {
            std::fs::write(inner.join(name), "").unwrap();
        }
        let found: Vec<_> = samples(folder.path()).iter().map(|s| (s.step, s.prompt, s.unix_ms)).collect();
        assert_eq!(
            found,
            [(0, 0, 1_700_000_000_000), (100, 0, 1_700_000_000_009), (100, 1, 1_700_000_000_002)]
        );
    }
}
