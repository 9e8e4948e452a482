//! What the encoder says about the latents of a picture.

use tenggat_tensor::ops::copy;
use tenggat_tensor::{Error, Tensor};

use crate::Result;

/// Range that log-variances are clamped to.
const LOG_VARIANCE: [f64; 2] = [-30.0, 20.0];

/// A normal distribution per latent channel, independent of each other. Not normalised: see `Vae::normalise`.
///
/// Source: `DiagonalGaussianDistribution` of diffusers 0.42 `autoencoders/vae.py`.
#[derive(Debug)]
pub struct Posterior {
    /// `[b, h/f, w/f, z]`.
    pub mean: Tensor,
    /// Natural logarithm of the variance, clamped to -30..20; `[b, h/f, w/f, z]`.
    pub logvar: Tensor,
}

impl Posterior {
    /// Splits moments `[b, h, w, 2z]` into mean and log-variance.
    pub(super) fn from_moments(moments: &Tensor) -> Result<Self> {
        let mut shape = moments.shape().to_vec();
        let z = shape.last().map_or(0, |c| c / 2);
        if let Some(channels) = shape.last_mut() {
            *channels = z;
        }
        let mut mean = moments.empty_like(&shape)?;
        copy::forward(moments.view().columns(0..z), mean.view_mut())?;
        let mut logvar = moments.empty_like(&shape)?;
        copy::forward(moments.view().columns(z..2 * z), logvar.view_mut())?;
        let mut values = logvar.to_f64()?;
        values.iter_mut().for_each(|v| *v = v.clamp(LOG_VARIANCE[0], LOG_VARIANCE[1]));
        let logvar = Tensor::from_f64(&moments.device(), moments.dtype(), &values, &shape)?;
        Ok(Posterior { mean, logvar })
    }

    /// The most likely latents: a copy of the mean.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn mode(&self) -> Result<Tensor> {
        Ok(self.mean.duplicate()?)
    }

    /// `mean + exp(logvar / 2) · eps`; eps: standard normal numbers, of the mean's shape.
    ///
    /// # Errors
    /// eps has another shape.
    pub fn sample(&self, eps: &Tensor) -> Result<Tensor> {
        if eps.shape() != self.mean.shape() {
            return Err(Error::shape("vae sample", "eps", self.mean.shape(), eps.shape()).into());
        }
        let (mut latents, logvar) = (self.mean.to_f64()?, self.logvar.to_f64()?);
        for ((x, v), e) in latents.iter_mut().zip(logvar).zip(eps.to_f64()?) {
            *x += (v / 2.0).exp() * e;
        }
        Ok(Tensor::from_f64(&self.mean.device(), self.mean.dtype(), &latents, self.mean.shape())?)
    }
}

#[cfg(test)]
mod tests {
    use tenggat_tensor::{DType, Device};

    use super::*;

    #[test]
    fn moments_split_by_channel_and_the_variance_is_clamped() {
        let tensor = |v: &[f64], shape: &[usize]| {
            Tensor::from_f64(&Device::cpu_poisoned(), DType::F64, v, shape).unwrap()
        };
        let moments = tensor(&[1.0, 2.0, 0.0, 99.0, 3.0, 4.0, -99.0, 1.5], &[1, 1, 2, 4]);
        let posterior = Posterior::from_moments(&moments).unwrap();
        assert_eq!(posterior.mode().unwrap().to_f64().unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(posterior.logvar.to_f64().unwrap(), [0.0, 20.0, -30.0, 1.5]);
        let eps = tensor(&[0.5, 0.0, 1.0, -1.0], &[1, 1, 2, 2]);
        let sample = posterior.sample(&eps).unwrap().to_f64().unwrap();
        let expected = [1.5, 2.0, 3.0 + (-15f64).exp(), 4.0 - 0.75f64.exp()];
        assert!(sample.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{sample:?}");
        assert!(posterior.sample(&moments).is_err());
    }
}
