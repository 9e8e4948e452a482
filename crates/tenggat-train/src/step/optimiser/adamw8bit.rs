//! AdamW with moments in 8 bits.
//!
//! As in bitsandbytes, every matrix has blocks of its own, and small matrices keep full precision. Source:
//! `bitsandbytes/optim/optimizer.py`, `Optimizer2State.init_state`.

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::adamw;
use tenggat_tensor::ops::adamw8bit::{self, BLOCK, Moment};
use tenggat_tensor::{DType, Result, Tensor, View};

use super::{AdamWConfig, Rule};

/// Settings that stay the same from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW8bitConfig {
    /// The numbers of AdamW.
    pub adamw: AdamWConfig,
    /// Elements from which on a matrix has moments in 8 bits.
    pub min_8bit_size: usize,
}

impl Default for AdamW8bitConfig {
    fn default() -> Self {
        AdamW8bitConfig { adamw: AdamWConfig::default(), min_8bit_size: 4096 }
    }
}

/// Neighbouring parameters whose moments are kept alike.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// First parameter.
    at: usize,
    len: usize,
    /// First code, or first full moment.
    moment: usize,
    /// First scale; unused by full moments.
    scale: usize,
}

#[derive(Debug)]
pub(super) struct AdamW8bit {
    config: AdamWConfig,
    /// One matrix each.
    large: Vec<Piece>,
    codes: [Tensor; 2],
    scales: [Tensor; 2],
    /// Runs of small matrices.
    small: Vec<Piece>,
    full: [Tensor; 2],
}

impl AdamW8bit {
    pub fn new(config: AdamW8bitConfig, lora: &Lora) -> Result<Self> {
        let (mut large, mut small) = (Vec::new(), Vec::<Piece>::new());
        let (mut codes, mut scales, mut full) = (0, 0, 0);
        for matrix in lora.layout.trained_matrices() {
            let (at, len) = (matrix.at, matrix.rows * matrix.cols);
            if len >= config.min_8bit_size {
                large.push(Piece { at, len, moment: codes, scale: scales });
                codes += len;
                scales += len.div_ceil(BLOCK);
                continue;
            }
            match small.last_mut() {
                Some(last) if last.at + last.len == at => last.len += len,
                _ => small.push(Piece { at, len, moment: full, scale: 0 }),
            }
            full += len;
        }
        let p = &lora.parameters;
        let zeros = |dtype, n| -> Result<[Tensor; 2]> {
            let one = || Tensor::zeros(&p.device(), dtype, &[n]);
            Ok([one()?, one()?])
        };
        Ok(AdamW8bit {
            config: config.adamw,
            large,
            codes: zeros(DType::U8, codes)?,
            scales: zeros(DType::F32, scales)?,
            small,
            full: zeros(p.dtype(), full)?,
        })
    }
}

impl Rule for AdamW8bit {
    fn update(
        &mut self,
        lora: &mut Lora,
        gradients: &Tensor,
        clip: View<'_>,
        lr: f64,
        step: u64,
    ) -> Result<()> {
        let hyper = self.config.at(lr, step);
        let ([m, v], [m_scales, v_scales]) = (&mut self.codes, &mut self.scales);
        for piece in &self.large {
            let blocks = piece.len.div_ceil(BLOCK);
            adamw8bit::step(
                lora.parameters.matrix_mut(piece.at, 1, piece.len)?,
                gradients.matrix(piece.at, 1, piece.len)?,
                clip,
                Moment {
                    codes: m.matrix_mut(piece.moment, 1, piece.len)?,
                    scales: m_scales.matrix_mut(piece.scale, 1, blocks)?,
                },
                Moment {
                    codes: v.matrix_mut(piece.moment, 1, piece.len)?,
                    scales: v_scales.matrix_mut(piece.scale, 1, blocks)?,
                },
                hyper,
            )?;
        }
        let [m, v] = &mut self.full;
        for piece in &self.small {
            adamw::step(
                lora.parameters.matrix_mut(piece.at, 1, piece.len)?,
                gradients.matrix(piece.at, 1, piece.len)?,
                clip,
                m.matrix_mut(piece.moment, 1, piece.len)?,
                v.matrix_mut(piece.moment, 1, piece.len)?,
                hyper,
            )?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        let ([m, v], [m_scales, v_scales], [small_m, small_v]) = (&self.codes, &self.scales, &self.full);
        vec![
            ("m", m),
            ("m_scales", m_scales),
            ("v", v),
            ("v_scales", v_scales),
            ("small_m", small_m),
            ("small_v", small_v),
        ]
    }

    fn state_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let ([m, v], [m_scales, v_scales]) = (&mut self.codes, &mut self.scales);
        let [small_m, small_v] = &mut self.full;
        vec![
            ("m", m),
            ("m_scales", m_scales),
            ("v", v),
            ("v_scales", v_scales),
            ("small_m", small_m),
            ("small_v", small_v),
        ]
    }
}

#[cfg(test)]
mod tests {
    use tenggat_models::lora::{Candidate, Layout};
    use tenggat_tensor::Device;

    use super::super::{Method, Optimiser};
    use super::*;

    /// Two bytes a parameter and two scales of four a block, as long as matrices are large.
    #[test]
    fn large_matrices_take_two_bytes_a_parameter_plus_scales() {
        let candidate = |name: &str, output| Candidate { name: name.into(), output, trained: true };
        let layers =
            [(3000, vec![candidate("q", 3000), candidate("k", 1000)]), (500, vec![candidate("s", 10)])];
        let layout = Layout::new(16, layers, |_| true);
        let device = Device::cpu();
        let lora = Lora::zeros(layout, &device, DType::F32).unwrap();
        let before = device.live_bytes();
        let method = Method::AdamW8bit(AdamW8bitConfig::default());
        let optimiser = Optimiser::new(method, Some(1.0), &lora).unwrap();
        // A and B of q and k, A of s; its B of 160 elements has two moments in full.
        let large = [16 * 3000, 3000 * 16, 16 * 3000, 1000 * 16, 16 * 500];
        let blocks: usize = large.iter().map(|n: &usize| n.div_ceil(256)).sum();
        let expected = 2 * large.iter().sum::<usize>() + 2 * 4 * blocks + 2 * 4 * 160;
        assert_eq!(optimiser.state_bytes(), expected);
        // The device's buffers come in sizes an eighth apart.
        let taken = device.live_bytes() - before;
        assert!((expected..expected * 9 / 8 + 1024).contains(&taken), "{taken} for {expected}");
    }
}
