//! Held-out pictures, encoded for measuring.

use sha2::{Digest, Sha256};
use tenggat_models::Result;
use tenggat_models::qwen_image::geometry::token_grid;
use tenggat_models::qwen_image::{PromptEncoder, TextBatch, patchify};
use tenggat_models::vae::Vae;
use tenggat_tensor::{DType, Device, Tensor};

/// A picture with its caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Caption.
    pub caption: String,
    /// Width and height, multiples of 16.
    pub size: (usize, usize),
    /// Red, green and blue of each pixel, row by row.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Name of its content: SHA-256, in hexadecimal, of the bytes and of the size as Python writes it, `(w,
    /// h)`.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.rgb);
        hash.update(format!("({}, {})", self.size.0, self.size.1));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Some of the held-out pictures, all of one size.
#[derive(Debug)]
pub struct HeldOut {
    /// Captions as text.
    pub labels: Vec<String>,
    /// Names of the pictures' contents, which choose their noise.
    pub digests: Vec<String>,
    /// `[n, h, w, 3]` in [-1, 1].
    pub pictures: Tensor,
    /// Packed latents, `[n, tokens, channels]`.
    pub latents: Tensor,
    /// Rows and columns of patches.
    pub grid: (usize, usize),
    /// Captions.
    pub captions: TextBatch,
    /// The empty prompt, n times.
    pub empty: TextBatch,
}

impl HeldOut {
    /// Encodes pictures in groups of one size, in their order, `at_once` or fewer in each.
    ///
    /// # Errors
    /// An encoder failed.
    pub fn encode(
        pictures: &[Picture],
        at_once: usize,
        device: &Device,
        vae: &Vae,
        text: &PromptEncoder,
    ) -> Result<Vec<Self>> {
        let empty = text.encode_each(&[""])?;
        let mut groups = Vec::new();
        let mut rest = pictures;
        while let Some(next) = rest.first() {
            let n = rest.iter().take(at_once.max(1)).take_while(|other| other.size == next.size).count();
            let (some, after) = rest.split_at(n);
            let (width, height) = next.size;
            let bytes = some.iter().flat_map(|picture| &picture.rgb);
            let values: Vec<f32> = bytes.map(|&b| f32::from(b) / 255.0 * 2.0 - 1.0).collect();
            let tensor = Tensor::from_f32(device, DType::F32, &values, &[n, height, width, 3])?;
            let latents = patchify::pack(&vae.normalise(&vae.encode(&tensor)?.mode()?)?)?;
            let [rows, channels] = latents.view().shape();
            let captions: Vec<&str> = some.iter().map(|picture| picture.caption.as_str()).collect();
            groups.push(HeldOut {
                labels: captions.iter().map(|caption| (*caption).to_owned()).collect(),
                digests: some.iter().map(Picture::digest).collect(),
                pictures: tensor,
                latents: latents.reshape(&[n, rows / n, channels])?,
                grid: token_grid(next.size),
                captions: TextBatch::new(&text.encode_each(&captions)?.iter().collect::<Vec<_>>())?,
                empty: TextBatch::new(&empty.iter().cycle().take(n).collect::<Vec<_>>())?,
            });
            rest = after;
        }
        Ok(groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hashlib.sha256(bytes(range(12)) + str((2, 2)).encode()).hexdigest()` of Python.
    #[test]
    fn digests_are_pythons() {
        let picture = Picture { caption: String::new(), size: (2, 2), rgb: (0..12).collect() };
        assert_eq!(picture.digest(), "8d9f988c405788715bbd9e2e733729e460b14faae3b62d00cf60a68ae01e55e0");
    }
}
