//! Latents as the transformer sees them: 2×2 squares as tokens.
//!
//! Packed channel `c·4 + dy·2 + dx`, token `row·columns + column`.
//! Source: `_pack_latents` and `_unpack_latents` of diffusers 0.42 `pipeline_qwenimage.py`.

use tenggat_tensor::{Error as TensorError, Tensor};

use super::geometry::PATCH;
use crate::Result;

/// Latents `[b, h, w, z]` → tokens `[b, (h/2)·(w/2), 4z]`; h and w even.
///
/// # Errors
/// The shape is not of that form.
pub fn pack(latents: &Tensor) -> Result<Tensor> {
    let [b, h, w, z] = match *latents.shape() {
        [b, h, w, z] if h % PATCH == 0 && w % PATCH == 0 => [b, h, w, z],
        ref other => {
            // Batch and channels stay as they are; height and width must be even.
            let round = |(axis, n): (usize, &usize)| {
                if axis == 1 || axis == 2 { n.next_multiple_of(PATCH) } else { *n }
            };
            let even: Vec<usize> = other.iter().enumerate().map(round).collect();
            return Err(TensorError::shape("pack", "latents [b, h, w, z]", &even, other).into());
        }
    };
    let values = latents.to_f64()?;
    let mut packed = vec![0.0; values.len()];
    for_each_pair([b, h, w, z], |from, to| packed[to] = values[from]);
    let shape = [b, h / PATCH * (w / PATCH), PATCH * PATCH * z];
    Ok(Tensor::from_f64(&latents.device(), latents.dtype(), &packed, &shape)?)
}

/// Tokens `[b, rows·columns, 4z]` → latents `[b, 2·rows, 2·columns, z]`: the inverse of [`pack`].
///
/// # Errors
/// The shape is not of that form.
pub fn unpack(tokens: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let [b, z] = match *tokens.shape() {
        [b, n, c] if n == rows * columns && c % (PATCH * PATCH) == 0 => [b, c / (PATCH * PATCH)],
        ref other => {
            let channels = other.get(2).map_or(PATCH * PATCH, |c| c.next_multiple_of(PATCH * PATCH));
            let expected = [other.first().copied().unwrap_or(1), rows * columns, channels];
            return Err(TensorError::shape("unpack", "tokens [b, rows·columns, 4z]", &expected, other).into());
        }
    };
    let shape = [b, PATCH * rows, PATCH * columns, z];
    let values = tokens.to_f64()?;
    let mut latents = vec![0.0; values.len()];
    for_each_pair(shape, |to, from| latents[to] = values[from]);
    Ok(Tensor::from_f64(&tokens.device(), tokens.dtype(), &latents, &shape)?)
}

/// Calls `f` with the index in `[b, h, w, z]` and the index in the packed tokens of each element.
fn for_each_pair([b, h, w, z]: [usize; 4], mut f: impl FnMut(usize, usize)) {
    for row in 0..b * h {
        // b · h rows of latents are b · h/2 rows of tokens: h is even.
        for col in 0..w {
            let token = row / PATCH * (w / PATCH) + col / PATCH;
            let corner = row % PATCH * PATCH + col % PATCH;
            for c in 0..z {
                f((row * w + col) * z + c, (token * z + c) * PATCH * PATCH + corner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tenggat_tensor::{DType, Device};

    use super::*;

    #[test]
    fn channel_and_token_order_are_upstreams_and_unpack_inverts() {
        let (b, rows, columns, z) = (2, 3, 4, 5);
        let place = |b: usize, y: usize, x: usize, c: usize| (((b * 6 + y) * 8 + x) * 5 + c) as f64;
        let values: Vec<f64> = (0..b * 4 * rows * columns * z).map(|i| i as f64).collect();
        let shape = [b, 2 * rows, 2 * columns, z];
        let latents = Tensor::from_f64(&Device::cpu(), DType::F32, &values, &shape).unwrap();
        let tokens = pack(&latents).unwrap();
        assert_eq!(tokens.shape(), [b, rows * columns, 4 * z]);
        for (i, v) in tokens.to_f64().unwrap().into_iter().enumerate() {
            let (token, channel) = (i / (4 * z), i % (4 * z));
            let (picture, row, column) = (token / 12, token % 12 / columns, token % columns);
            let (c, dy, dx) = (channel / 4, channel / 2 % 2, channel % 2);
            assert_eq!(v, place(picture, 2 * row + dy, 2 * column + dx, c));
        }
        let back = unpack(&tokens, rows, columns).unwrap();
        assert_eq!((back.shape(), back.to_f64().unwrap()), (&shape[..], values));
    }

    #[test]
    fn odd_sizes_are_refused() {
        let latents = Tensor::zeros(&Device::cpu(), DType::F32, &[1, 3, 4, 16]).unwrap();
        let message = pack(&latents).unwrap_err().to_string();
        assert!(message.contains("expected [1, 4, 4, 16], got [1, 3, 4, 16]"), "{message}");
        let tokens = Tensor::zeros(&Device::cpu(), DType::F32, &[1, 6, 64]).unwrap();
        assert!(unpack(&tokens, 2, 4).is_err() && unpack(&latents, 2, 3).is_err());
    }
}
