//! Gives the fuzz targets access to checkpoints, which are private otherwise.

use std::path::Path;

use safetensors::SafeTensors;
use tenggat_models::lora::Lora;

use super::state_file::{HASH, KEY, Progress, Saved, Tensors, hash, write};
use crate::lora::average::Ema;
use crate::step::optimiser::Optimiser;

/// Opens a checkpoint and resumes from it.
///
/// # Errors
/// It cannot be used, or does not fit.
pub fn resume(path: &Path, lora: &mut Lora, optimiser: &mut Optimiser, ema: &mut Ema) -> Result<(), String> {
    let saved = Saved::open(path)?;
    saved.restore(&mut lora.parameters, optimiser, Some(ema)).map_err(|e| e.to_string())
}

/// Writes a checkpoint.
///
/// # Errors
/// The file cannot be written.
pub fn save(path: &Path, lora: &Lora, optimiser: &Optimiser, ema: &Ema) -> std::io::Result<()> {
    let progress = Progress {
        version: Progress::VERSION,
        job: "job: extension\n".into(),
        lr: 1e-3,
        rank: 2,
        seed: 7,
        data: "abc".into(),
        steps: 3,
        progress: 0.25,
        optimiser_steps: optimiser.steps(),
        ema_steps: Some(ema.steps()),
        spent_s: 1.5,
        deadline_s: Some(60.0),
        deadline_unix_s: Some(1.9e9),
        end: None,
    };
    write(path, &progress, &Tensors { parameters: &lora.parameters, optimiser, ema: Some(ema) })
}

/// A checkpoint whose hash is made that of its contents; `None` for bytes that hold none.
pub fn signed(bytes: &[u8]) -> Option<Vec<u8>> {
    let tensors = SafeTensors::deserialize(bytes).ok()?;
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let metadata = header.metadata().as_ref()?;
    let (text, old) = (metadata.get(KEY)?, metadata.get(HASH)?);
    let views = tensors.tensors();
    let parts = views.iter().map(|(name, view)| (&name[..], view.dtype(), view.shape(), view.data()));
    let new = hash(text, parts);
    let place = bytes.windows(old.len()).position(|window| window == old.as_bytes())?;
    let mut signed = bytes.to_vec();
    signed
        .get_mut(place..place + new.len())
        .filter(|_| old.len() == new.len())?
        .copy_from_slice(new.as_bytes());
    Some(signed)
}
