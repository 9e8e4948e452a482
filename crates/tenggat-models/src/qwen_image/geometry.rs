//! How pixels, latents and tokens of Qwen-Image relate. `VaeConfig` and `Config` are read from files; a test
//! below holds the published ones against these numbers.

/// Pixels to a latent, along each side.
pub const LATENT_PX: usize = 8;

/// Latents to a token, along each side.
pub const PATCH: usize = 2;

/// Pixels to a token, along each side: sides of images are multiples of it.
pub const TOKEN_PX: usize = LATENT_PX * PATCH;

/// Latents to a token. A packed channel `c` holds latent channel `c / 4` of the patch's latent `c % 4`.
pub const LATENTS_PER_TOKEN: usize = PATCH * PATCH;

/// Rows and columns of latents of an image of `width` × `height` pixels.
pub const fn latent_grid((width, height): (usize, usize)) -> (usize, usize) {
    (height / LATENT_PX, width / LATENT_PX)
}

/// Rows and columns of tokens of an image of `width` × `height` pixels.
pub const fn token_grid((width, height): (usize, usize)) -> (usize, usize) {
    (height / TOKEN_PX, width / TOKEN_PX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::Config;
    use crate::vae::VaeConfig;

    #[test]
    fn geometry_is_that_of_the_published_model() {
        assert_eq!(VaeConfig::default().spatial_factor(), LATENT_PX);
        assert_eq!(Config::qwen_image().patch_size, PATCH);
        assert_eq!(Config::qwen_image().in_channels, VaeConfig::default().z_dim * LATENTS_PER_TOKEN);
        assert_eq!((token_grid((32, 64)), latent_grid((32, 64))), ((4, 2), (8, 4)));
    }
}
