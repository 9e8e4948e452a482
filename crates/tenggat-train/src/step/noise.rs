//! Noise of images as PyTorch's CPU generator draws it, so that a seed gives the same noise everywhere.

use tenggat_tensor::random::Mt19937;

/// Noise for latents `[channels/4, h, w]` drawn in that order, as the diffusers pipeline and ComfyUI draw it,
/// packed into `grid` = (rows, columns) patches: `[rows·columns, channels]`.
pub fn packed(seed: u64, (rows, columns): (usize, usize), channels: usize) -> Vec<f32> {
    let z = channels / 4;
    let (h, w) = (2 * rows, 2 * columns);
    let mut latents = vec![0.0; z * h * w];
    Mt19937::new(seed).randn(&mut latents);
    let mut packed = Vec::with_capacity(latents.len());
    for token in 0..rows * columns {
        let (row, column) = (token / columns, token % columns);
        for c in 0..channels {
            let (y, x) = (2 * row + c % 4 / 2, 2 * column + c % 2);
            packed.push(latents[(c / 4) * h * w + y * w + x]);
        }
    }
    packed
}
