//! What is too large to be an image.

/// Most pixels of an image. Pillow, and so ai-toolkit, refuses more. Source: Pillow `PIL/Image.py`, twice
/// `MAX_IMAGE_PIXELS`.
pub(super) const MOST_PIXELS: u64 = 178_956_970;
