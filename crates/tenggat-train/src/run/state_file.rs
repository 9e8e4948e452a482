//! The checkpoint: everything that the next step depends on.
//!
//! A safetensors file whose metadata hold [`Progress`] as JSON under one key and a hash of everything under
//! another. It is written beside its name and renamed, so that it is whole however the process ends; the
//! previous one is kept in case the disk damages it. Parameters and averages are kept in full precision, the
//! optimiser's state in its own types; everything random or ordered is a function of the seed and the step,
//! so it takes no room. The loss curve is read back from the metrics.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use tenggat_tensor::{DType, Tensor};
use xxhash_rust::xxh3::Xxh3;

use super::{Error, Result};
use crate::files::tensor_file::{self, Entry};
use crate::lora::average::Ema;
use crate::step::optimiser::Optimiser;

/// Its name in the run's folder; no `.safetensors`, so that nobody takes it for a LoRA.
pub const STATE: &str = "resume.state";
/// Name of the previous one, which is used when the newest is damaged.
pub const PREVIOUS: &str = "resume.state.previous";
/// Key of the metadata.
pub(super) const KEY: &str = "tenggat_run";
/// Key of the hash: XXH3 with 128 bits, which guards against accidents at the speed of memory, and against
/// nothing else.
pub(super) const HASH: &str = "tenggat_xxh3_128";
/// Raised when older versions could not resume from a newer file. Since version 2 there is a hash.
const VERSION: u32 = 2;
/// Largest number of steps that a run can have done: that many milliseconds are thirty years.
const MOST_STEPS: u64 = 1_000_000_000_000;

/// What is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    pub version: u32,
    /// Text of the job file, variables replaced.
    pub job: String,
    /// What the command line may have changed: learning rate, rank, seed.
    pub lr: f64,
    pub rank: usize,
    pub seed: u64,
    /// What is trained on, see [`crate::data::batch::Prepared::fingerprint`].
    pub data: String,
    pub steps: u64,
    /// Progress of the learning-rate schedule.
    pub progress: f64,
    pub optimiser_steps: u64,
    /// Updates of the averaged weights.
    pub ema_steps: Option<u64>,
    /// Seconds on the run's clock.
    pub spent_s: f64,
    /// The deadline on that clock, and as seconds since 1970.
    pub deadline_s: Option<f64>,
    pub deadline_unix_s: Option<f64>,
    pub end: Option<End>,
}

/// Why a run that is finished ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// All steps of the job were done.
    Steps,
    /// The time was used up.
    Time,
}

impl Progress {
    pub const VERSION: u32 = VERSION;

    /// The value that no run can have, if there is one.
    fn implausible(&self) -> Option<&'static str> {
        let seconds = |s: f64| s.is_finite() && s >= 0.0;
        let finite = [self.deadline_s, self.deadline_unix_s].into_iter().flatten().all(f64::is_finite);
        // A step whose loss is no number counts as a step and updates nothing.
        let updates = [Some(self.optimiser_steps), self.ema_steps];
        if self.steps > MOST_STEPS || updates.into_iter().flatten().any(|n| n > self.steps) {
            Some("its step counts are impossible")
        } else if !(0.0..=1.0).contains(&self.progress) {
            Some("its progress is impossible")
        } else if !seconds(self.spent_s) || !finite {
            Some("its times are impossible")
        } else {
            None
        }
    }
}

/// The tensors.
pub(super) struct Tensors<'a> {
    pub parameters: &'a Tensor,
    pub optimiser: &'a Optimiser,
    pub ema: Option<&'a Ema>,
}

/// Name of the optimiser's tensor `part` in the file.
fn optimiser_part(part: &str) -> String {
    format!("optimiser.{part}")
}

/// Writes the file, atomically, and keeps the one before as [`PREVIOUS`].
///
/// # Errors
/// A value is not a finite number, or the file cannot be written; an older one is then untouched.
pub(super) fn write(path: &Path, progress: &Progress, tensors: &Tensors<'_>) -> io::Result<()> {
    let mut named = vec![("parameters".to_owned(), tensors.parameters)];
    named.extend(tensors.optimiser.state().into_iter().map(|(part, t)| (optimiser_part(part), t)));
    named.extend(tensors.ema.map(|ema| ("average".to_owned(), &ema.average().parameters)));
    let mut entries = named
        .into_iter()
        .map(|(name, t)| {
            let bytes = t.to_bytes().map_err(io::Error::other)?;
            if !is_finite(stored_type(t.dtype()), &bytes) {
                let text = format!("`{name}` holds values that are not finite numbers");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Ok(Entry { name, dtype: stored_type(t.dtype()), shape: t.shape().to_vec(), bytes })
        })
        .collect::<io::Result<Vec<_>>>()?;
    tensor_file::sort(&mut entries);
    let progress = serde_json::to_string(progress)?;
    let hash = hash(&progress, entries.iter().map(|e| (&e.name[..], e.dtype, &e.shape[..], &e.bytes[..])));
    let metadata = [(KEY.to_owned(), progress), (HASH.to_owned(), hash)];
    tensor_file::write_keeping(path, &path.with_file_name(PREVIOUS), &metadata, &entries)
}

/// Hash of the progress and of the tensors in the order of their names, 32 hexadecimal digits.
pub(super) fn hash<'a>(
    progress: &str,
    tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize], &'a [u8])>,
) -> String {
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_unstable_by_key(|(name, ..)| *name);
    let mut hash = Xxh3::new();
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(progress.as_bytes());
    for (name, dtype, shape, bytes) in tensors {
        add(format!("{name} {dtype} {shape:?}").as_bytes());
        add(bytes);
    }
    format!("{:032x}", hash.digest128())
}

/// Whether little-endian values of a float type are all finite; integers are.
fn is_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    // Without an early end, so that the loop is vectorised: almost every tensor is read to its end.
    fn none<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> bool {
        !bytes.as_chunks::<N>().0.iter().fold(false, |any, &value| any | bad(value))
    }
    match dtype {
        Dtype::F64 => none(bytes, |b| !f64::from_le_bytes(b).is_finite()),
        Dtype::F32 => none(bytes, |b| !f32::from_le_bytes(b).is_finite()),
        Dtype::BF16 => none(bytes, |b| !half::bf16::from_le_bytes(b).is_finite()),
        _ => true,
    }
}

fn stored_type(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::BF16 => Dtype::BF16,
        DType::U8 => Dtype::U8,
    }
}

/// A file as found.
#[derive(Debug)]
pub(super) struct Saved {
    path: PathBuf,
    map: Mmap,
    pub progress: Progress,
}

impl Saved {
    /// Opens a file and checks all of it; returns what is wrong with one that cannot be used.
    pub fn open(path: &Path) -> Result<Saved, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        // SAFETY: the map is read only, and the file is replaced by renaming, never rewritten in place.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| e.to_string())?;
        let broken = |e: &dyn std::fmt::Display| format!("it is damaged ({e})");
        // The whole of it: a tensor that lies outside the file is found here.
        let tensors = SafeTensors::deserialize(&map).map_err(|e| broken(&e))?;
        let (_, header) = SafeTensors::read_metadata(&map).map_err(|e| broken(&e))?;
        let field = |key: &str| header.metadata().as_ref().and_then(|all| all.get(key));
        let text = field(KEY).ok_or("it is not a checkpoint")?;
        let version = serde_json::from_str::<serde_json::Value>(text).map_err(|e| broken(&e))?;
        if version.get("version").and_then(serde_json::Value::as_u64) != Some(VERSION.into()) {
            return Err("it was written by another version of tenggat".into());
        }
        let progress: Progress = serde_json::from_str(text).map_err(|e| broken(&e))?;
        let views = tensors.tensors();
        let parts = views.iter().map(|(name, view)| (&name[..], view.dtype(), view.shape(), view.data()));
        if field(HASH) != Some(&hash(text, parts)) {
            return Err(broken(&"its contents do not match its hash"));
        }
        if let Some((name, _)) = views.iter().find(|(_, view)| !is_finite(view.dtype(), view.data())) {
            return Err(broken(&format!("`{name}` holds values that are not finite numbers")));
        }
        if let Some(why) = progress.implausible() {
            return Err(broken(&why));
        }
        Ok(Saved { path: path.to_path_buf(), map, progress })
    }

    /// Fills a tensor with its stored values.
    fn fill(&self, name: &str, to: &mut Tensor) -> Result<()> {
        let unfit = |reason: String| {
            Error::Job(format!(
                "{} does not fit this model: {reason}; was the model replaced? Train from scratch with \
                 --start-over",
                self.path.display()
            ))
        };
        let file = SafeTensors::deserialize(&self.map).map_err(|e| unfit(e.to_string()))?;
        let view = file.tensor(name).map_err(|e| unfit(format!("`{name}`: {e}")))?;
        let expected = (stored_type(to.dtype()), to.shape());
        if (view.dtype(), view.shape()) != expected {
            let got = (view.dtype(), view.shape());
            return Err(unfit(format!("`{name}`: expected {expected:?}, got {got:?}")));
        }
        Ok(to.set_bytes(view.data())?)
    }

    /// Brings back parameters, optimiser and average.
    ///
    /// # Errors
    /// They do not fit.
    pub fn restore(
        &self,
        parameters: &mut Tensor,
        optimiser: &mut Optimiser,
        ema: Option<&mut Ema>,
    ) -> Result<()> {
        self.fill("parameters", parameters)?;
        optimiser
            .restore(self.progress.optimiser_steps, &mut |part, to| self.fill(&optimiser_part(part), to))?;
        if let Some(ema) = ema {
            let steps = self.progress.ema_steps.unwrap_or(self.progress.steps);
            ema.restore(steps, &mut |to| self.fill("average", to))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tenggat_models::lora::{Candidate, Layout, Lora};
    use tenggat_tensor::Device;

    use super::*;
    use crate::step::optimiser::{AdamW8bitConfig, Method};

    fn progress() -> Progress {
        Progress {
            version: VERSION,
            job: "job: extension\n".into(),
            lr: 0.1 + 0.2,
            rank: 2,
            seed: 7,
            data: "abc".into(),
            steps: 3,
            progress: 1.0 / 3.0,
            optimiser_steps: 2,
            ema_steps: Some(2),
            spent_s: 1.5,
            deadline_s: None,
            deadline_unix_s: None,
            end: None,
        }
    }

    fn trained() -> (Lora, Optimiser, Ema) {
        let layer = (2000, vec![Candidate { name: "m".into(), output: 3000, trained: true }]);
        let layout = Layout::new(2, [layer], |_| true);
        let mut lora =
            crate::lora::initial::initialise(layout, 1, &Device::cpu_poisoned(), DType::F32).unwrap();
        let method = Method::AdamW8bit(AdamW8bitConfig::default());
        let mut optimiser = Optimiser::new(method, Some(1.0), &lora).unwrap();
        let mut ema = Ema::new(0.9, true, &lora).unwrap();
        for _ in 0..2 {
            let gradients = lora.parameters.duplicate().unwrap();
            optimiser.measure(&gradients).unwrap();
            optimiser.update(&mut lora, &gradients, 1e-3).unwrap();
            ema.update(&lora).unwrap();
        }
        (lora, optimiser, ema)
    }

    #[test]
    fn everything_comes_back_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE);
        let (lora, optimiser, ema) = trained();
        write(
            &path,
            &progress(),
            &Tensors { parameters: &lora.parameters, optimiser: &optimiser, ema: Some(&ema) },
        )
        .unwrap();
        // A process that is killed while it writes leaves a part of the new file under another name.
        fs::write(folder.path().join(".tenggat-unfinished-x"), &fs::read(&path).unwrap()[..99]).unwrap();
        let saved = Saved::open(&path).unwrap();
        assert_eq!(saved.progress, progress());
        let mut fresh =
            crate::lora::initial::initialise(lora.layout.clone(), 2, &Device::cpu(), DType::F32).unwrap();
        let method = Method::AdamW8bit(AdamW8bitConfig::default());
        let mut again = Optimiser::new(method, Some(1.0), &fresh).unwrap();
        let mut average = Ema::new(0.9, true, &fresh).unwrap();
        saved.restore(&mut fresh.parameters, &mut again, Some(&mut average)).unwrap();
        let bits = |t: &Tensor| t.to_bytes().unwrap().into_owned();
        assert_eq!(bits(&lora.parameters), bits(&fresh.parameters));
        assert_eq!(bits(&ema.average().parameters), bits(&average.average().parameters));
        assert_eq!((again.steps(), average.steps()), (2, 2));
        for ((name, a), (_, b)) in optimiser.state().into_iter().zip(again.state()) {
            assert_eq!(bits(a), bits(b), "{name}");
        }
        // Another rank: another length.
        let layout = Layout::new(4, [(2000, vec![])], |_| true);
        let mut other = Lora::zeros(layout, &Device::cpu(), DType::F32).unwrap();
        let error = saved.fill("parameters", &mut other.parameters).unwrap_err().to_string();
        assert!(error.contains("`parameters`") && error.contains("--start-over"), "{error}");
    }

    #[test]
    fn spoilt_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE);
        let (lora, optimiser, ema) = trained();
        let tensors = Tensors { parameters: &lora.parameters, optimiser: &optimiser, ema: Some(&ema) };
        write(&path, &progress(), &tensors).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, 8, 20, 200, whole.len() / 2, whole.len() - 1] {
            // Another file of that name, so that the map of the one before stays as it is.
            fs::remove_file(&path).unwrap();
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Saved::open(&path).is_err(), "{length} bytes");
        }
        write(&path, &Progress { version: VERSION + 1, ..progress() }, &tensors).unwrap();
        assert!(Saved::open(&path).unwrap_err().contains("another version"));
        assert!(Saved::open(&folder.path().join("none")).is_err());
    }

    #[test]
    fn numbers_that_cannot_be_true_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE);
        let (lora, optimiser, ema) = trained();
        let tensors = Tensors { parameters: &lora.parameters, optimiser: &optimiser, ema: Some(&ema) };
        let cases = [
            Progress { progress: f64::NAN, ..progress() },
            Progress { progress: 1.5, ..progress() },
            Progress { spent_s: -1.0, ..progress() },
            Progress { spent_s: f64::INFINITY, ..progress() },
            Progress { steps: 1 << 63, ..progress() },
            Progress { optimiser_steps: 4, ..progress() },
            Progress { optimiser_steps: u64::MAX, ..progress() },
            Progress { ema_steps: Some(1_000_000), ..progress() },
        ];
        for case in cases {
            write(&path, &case, &tensors).unwrap();
            assert!(Saved::open(&path).unwrap_err().contains("damaged"), "{case:?}");
        }
    }

    #[test]
    fn every_bit_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE);
        let layout =
            Layout::new(1, [(8, vec![Candidate { name: "m".into(), output: 8, trained: true }])], |_| true);
        let lora = crate::lora::initial::initialise(layout, 1, &Device::cpu(), DType::F32).unwrap();
        let optimiser = Optimiser::new(Method::default(), None, &lora).unwrap();
        let tensors = Tensors { parameters: &lora.parameters, optimiser: &optimiser, ema: None };
        let early = Progress { optimiser_steps: 0, ema_steps: None, ..progress() };
        write(&path, &early, &tensors).unwrap();
        let whole = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let padded = whole[8..header].iter().rev().take_while(|&&b| b == b' ').count();
        for byte in (0..whole.len()).filter(|at| !(header - padded..header).contains(at)) {
            let mut spoilt = whole.clone();
            spoilt[byte] ^= 1 << (byte % 8);
            // Another file of that name: the map of the one before must not change.
            let path = folder.path().join(format!("spoilt-{byte}"));
            fs::write(&path, spoilt).unwrap();
            assert!(Saved::open(&path).is_err(), "byte {byte}");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn values_that_are_not_finite_are_neither_written_nor_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE);
        let (mut lora, optimiser, ema) = trained();
        let good = |lora: &Lora| {
            let tensors = Tensors { parameters: &lora.parameters, optimiser: &optimiser, ema: Some(&ema) };
            write(&path, &progress(), &tensors)
        };
        good(&lora).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bytes = lora.parameters.to_bytes().unwrap().into_owned();
            bytes[400..404].copy_from_slice(&bad.to_le_bytes());
            lora.parameters.set_bytes(&bytes).unwrap();
            assert!(good(&lora).unwrap_err().to_string().contains("`parameters`"));
            assert!(Saved::open(&path).is_ok());
            // From a version that did not look: the hash fits, the values do not.
            let shape = lora.parameters.shape().to_vec();
            let entry = Entry { name: "parameters".into(), dtype: Dtype::F32, shape, bytes: bytes.into() };
            let text = serde_json::to_string(&progress()).unwrap();
            let digits = hash(&text, [(&entry.name[..], entry.dtype, &entry.shape[..], &entry.bytes[..])]);
            let other = folder.path().join("other.state");
            let metadata = [(KEY.to_owned(), text), (HASH.to_owned(), digits)];
            tensor_file::write(&other, &metadata, &[entry]).unwrap();
            assert!(Saved::open(&other).unwrap_err().contains("not finite"), "{bad}");
        }
        for (dtype, bytes) in [
            (Dtype::F64, f64::NAN.to_le_bytes().to_vec()),
            (Dtype::BF16, half::bf16::INFINITY.to_le_bytes().to_vec()),
        ] {
            assert!(!is_finite(dtype, &bytes), "{dtype:?}");
        }
        assert!(is_finite(Dtype::U8, &[255]) && is_finite(Dtype::F64, &f64::MAX.to_le_bytes()));
    }

    #[test]
    fn the_state_before_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE);
        let (lora, optimiser, ema) = trained();
        let tensors = Tensors { parameters: &lora.parameters, optimiser: &optimiser, ema: Some(&ema) };
        for steps in [3, 4, 5] {
            write(&path, &Progress { steps, ..progress() }, &tensors).unwrap();
        }
        let steps = |name: &str| Saved::open(&folder.path().join(name)).unwrap().progress.steps;
        assert_eq!((steps(STATE), steps(PREVIOUS)), (5, 4));
    }
}
