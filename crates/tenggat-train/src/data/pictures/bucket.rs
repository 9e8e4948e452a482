//! From the size of a picture to the size it is trained at.

use tenggat_tensor::random::Philox;

/// What a side must be divisible by: 8 for the VAE, 2 for patches, and ai-toolkit requires twice that.
/// Source: ai-toolkit `extensions_built_in/diffusion_models/qwen_image/qwen_image.py`,
/// `get_bucket_divisibility`.
pub const DIVISIBLE_BY: usize = 32;

/// How a picture becomes a training picture: resized to `scaled`, then cut to `width` × `height` at (`x`,
/// `y`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Crop {
    /// Width and height after resizing.
    pub scaled: (usize, usize),
    /// Left edge of the cut.
    pub x: usize,
    /// Top edge of the cut.
    pub y: usize,
    /// Width of the cut, which is the bucket's.
    pub width: usize,
    /// Height of the cut, which is the bucket's.
    pub height: usize,
}

/// Width and height of the bucket of a picture: of the four ways to round its sides down or up to multiples
/// of `divisible_by`, those that stay within `resolution`² pixels, and of these the one nearest in area. A
/// picture is never enlarged but for that rounding. Source: ai-toolkit `toolkit/buckets.py`; arithmetic in
/// its order, so that its caches fit.
pub fn bucket(width: usize, height: usize, resolution: usize, divisible_by: usize) -> (usize, usize) {
    let (total, most) = (width * height, resolution * resolution);
    let target = total.min(most);
    let scale = (target as f64 / total as f64).sqrt();
    let sides = |side: usize| {
        let raw = side as f64 * scale / divisible_by as f64;
        (raw.floor() as usize * divisible_by, raw.ceil() as usize * divisible_by)
    };
    let ((w0, w1), (h0, h1)) = (sides(width), sides(height));
    [(w0, h0), (w0, h1), (w1, h0), (w1, h1)]
        .into_iter()
        .filter(|&(w, h)| w > 0 && h > 0 && w * h <= most)
        .min_by_key(|&(w, h)| (w * h).abs_diff(target))
        .unwrap_or((w0.max(divisible_by), h0.max(divisible_by)))
}

impl Crop {
    /// Resizes by the larger of the two ratios, rounded up, and cuts the middle, rounded down.
    /// Source: ai-toolkit `toolkit/dataloader_mixins.py`, `setup_buckets`.
    pub fn to_bucket(width: usize, height: usize, resolution: usize) -> Crop {
        let (bw, bh) = bucket(width, height, resolution, DIVISIBLE_BY);
        let ratio = (bw as f64 / width as f64).max(bh as f64 / height as f64);
        let up = |side: usize| (side as f64 * ratio).ceil() as usize;
        let scaled = (up(width), up(height));
        Crop { scaled, x: (scaled.0 - bw) / 2, y: (scaled.1 - bh) / 2, width: bw, height: bh }
    }

    /// The same cut elsewhere: its place is drawn from a stream. Source: there.
    pub(super) fn moved(self, random: Philox, stream: u64) -> Crop {
        let drawn = |index, slack: usize| random.below(stream, index, slack + 1);
        Crop { x: drawn(0, self.scaled.0 - self.width), y: drawn(1, self.scaled.1 - self.height), ..self }
    }

    /// The square variant: the shorter side becomes `resolution`, the middle of the longer one is cut.
    pub fn to_square(width: usize, height: usize, resolution: usize) -> Crop {
        let ratio = (resolution as f64 / width as f64).max(resolution as f64 / height as f64);
        let up = |side: usize| (side as f64 * ratio).ceil() as usize;
        let scaled = (up(width), up(height));
        let (x, y) =
            if width > height { ((scaled.0 - resolution) / 2, 0) } else { (0, (scaled.1 - resolution) / 2) };
        Crop { scaled, x, y, width: resolution, height: resolution }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand for 1920 × 1080 at 512²: s = √(262144/2073600) = 0.35556, sides/32 = 21.33 and 12, so 672 ×
    /// 384 or 704 × 384; the latter is 270336 > 262144. Ratio max(672/1920, 384/1080) = 0.35556, 683 ×
    /// 384, x = 5. The others come from the upstream functions.
    #[test]
    fn sizes_are_those_of_the_reference() {
        let cases = [
            ((1920, 1080, 512), (672, 384, 683, 384, 5, 0)),
            ((1080, 1920, 512), (384, 672, 384, 683, 0, 5)),
            ((1000, 1500, 1024), (832, 1248, 832, 1248, 0, 0)),
            ((128, 128, 512), (128, 128, 128, 128, 0, 0)),
            ((512, 512, 512), (512, 512, 512, 512, 0, 0)),
            ((600, 400, 512), (576, 416, 624, 416, 24, 0)),
            ((100, 5000, 512), (64, 3648, 73, 3648, 4, 0)),
            ((20, 20, 512), (32, 32, 32, 32, 0, 0)),
            ((4000, 20, 512), (4000, 32, 6400, 32, 1200, 0)),
            ((130, 100, 512), (128, 96, 128, 99, 0, 1)),
            ((3024, 4032, 1024), (896, 1152, 896, 1195, 0, 21)),
            ((1023, 769, 768), (864, 672, 894, 672, 15, 0)),
            ((3, 1, 512), (32, 32, 96, 32, 32, 0)),
        ];
        for ((w, h, resolution), (width, height, sw, sh, x, y)) in cases {
            let expected = Crop { scaled: (sw, sh), x, y, width, height };
            assert_eq!(Crop::to_bucket(w, h, resolution), expected, "{w}x{h} at {resolution}");
        }
    }

    #[test]
    fn every_crop_lies_inside_and_is_divisible() {
        for w in (1..3000).step_by(67) {
            for h in (1..3000).step_by(71) {
                for resolution in [64, 512, 1024] {
                    let c = Crop::to_bucket(w, h, resolution);
                    assert!(c.x + c.width <= c.scaled.0 && c.y + c.height <= c.scaled.1, "{w} {h} {c:?}");
                    assert!(
                        c.width.is_multiple_of(32) && c.height.is_multiple_of(32) && c.width * c.height > 0,
                        "{w} {h} {c:?}"
                    );
                    if w >= 32 && h >= 32 && c.width > 32 && c.height > 32 {
                        assert!(c.width * c.height <= resolution * resolution, "{w} {h} {c:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn squares_cut_the_longer_side() {
        let wide = Crop::to_square(600, 400, 512);
        assert_eq!(wide, Crop { scaled: (768, 512), x: 128, y: 0, width: 512, height: 512 });
        assert_eq!(Crop::to_square(400, 600, 512).y, 128);
    }
}
