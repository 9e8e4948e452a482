//! Noise of images as PyTorch's CPU generator draws it, so that a seed gives the same noise everywhere.

use tenggat_models::qwen_image::geometry::{LATENTS_PER_TOKEN, PATCH};
use tenggat_tensor::random::Mt19937;

/// Noise for latents `[channels/4, h, w]` drawn in that order, as the diffusers pipeline and ComfyUI draw it,
/// packed into `grid` = (rows, columns) patches: `[rows·columns, channels]`.
pub fn packed(seed: u64, (rows, columns): (usize, usize), channels: usize) -> Vec<f32> {
    let z = channels / LATENTS_PER_TOKEN;
    let (h, w) = (PATCH * rows, PATCH * columns);
    let mut latents = vec![0.0; z * h * w];
    Mt19937::new(seed).randn(&mut latents);
    let mut packed = Vec::with_capacity(latents.len());
    for token in 0..rows * columns {
        let (row, column) = (token / columns, token % columns);
        for c in 0..channels {
            let part = c % LATENTS_PER_TOKEN;
            let (y, x) = (PATCH * row + part / PATCH, PATCH * column + part % PATCH);
            packed.push(latents[(c / LATENTS_PER_TOKEN) * h * w + y * w + x]);
        }
    }
    packed
}
