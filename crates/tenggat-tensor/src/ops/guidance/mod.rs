//! True classifier-free guidance: `g = u + s·(c − u)`, as it is or with the norm of the conditional
//! prediction, per token: `g · ‖c‖/‖g‖` over its channels.
//!
//! Source of the latter: diffusers `pipeline_qwenimage.py`, the block under `do_true_cfg`; the former is
//! ComfyUI's. Forward only: sampling trains nothing.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// What becomes of the length of a guided prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Each token keeps the conditional prediction's.
    Conditional,
    /// It is as guidance makes it.
    Guided,
}

/// Turns the conditional prediction into the guided one in place; all `[m, n]`, one token a row.
///
/// # Errors
/// Shapes or types differ.
pub fn forward(conditional: ViewMut<'_>, unconditional: View<'_>, scale: f64, norm: Norm) -> Result<()> {
    const OP: &str = "guidance";
    expect_shape(OP, "unconditional", &conditional.shape(), &unconditional.shape())?;
    if conditional.on_gpu() {
        return cuda::forward(OP, conditional, unconditional, scale, norm);
    }
    dispatch_real!(OP, conditional.dtype(), T => {
        cpu::forward::<T>(conditional.cpu(OP)?, unconditional.cpu(OP)?, scale as T, norm);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::DType;

    #[test]
    fn keeps_the_conditional_norm_and_points_along_the_guided_direction() {
        let (mut c, u) = (randn(DType::F64, &[20, 8], 1), randn(DType::F64, &[20, 8], 2));
        let (before, uv) = (c.to_f64().unwrap(), u.to_f64().unwrap());
        let mut plain = c.duplicate().unwrap();
        forward(c.view_mut(), u.view(), 3.0, Norm::Conditional).unwrap();
        forward(plain.view_mut(), u.view(), 3.0, Norm::Guided).unwrap();
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (out, plain) = (c.to_f64().unwrap(), plain.to_f64().unwrap());
        for (i, (c, u)) in before.chunks(8).zip(uv.chunks(8)).enumerate() {
            let guided: Vec<f64> = c.iter().zip(u).map(|(c, u)| u + 3.0 * (c - u)).collect();
            let factor = norm(c) / norm(&guided);
            let token = 8 * i..8 * (i + 1);
            assert!(plain[token.clone()].iter().zip(&guided).all(|(o, g)| (o - g).abs() < 1e-12));
            assert!(out[token].iter().zip(guided).all(|(o, g)| (o - g * factor).abs() < 1e-12));
        }
    }

    #[test]
    fn a_token_of_zeros_stays_zero() {
        let mut c = randn(DType::F32, &[1, 4], 1);
        c.fill(0.0).unwrap();
        let u = c.duplicate().unwrap();
        forward(c.view_mut(), u.view(), 4.0, Norm::Conditional).unwrap();
        assert_eq!(c.to_f32().unwrap(), [0.0; 4]);
    }

    /// Tokens of one pass and of several, and tokens of zeros.
    #[test]
    fn gpus_agree() {
        for (m, n) in [(21, 64), (9, 7), (10, 520)] {
            against_cpu("guidance", |on| {
                let (mut kept, mut plain) = (on.randn(&[m, n], 1), on.randn(&[m, n], 1));
                let (mut zeros, u) = (on.values(&vec![0.0; m * n], &[m, n]), on.randn(&[m, n], 2));
                forward(kept.view_mut(), u.view(), 3.5, Norm::Conditional).unwrap();
                forward(plain.view_mut(), u.view(), 3.5, Norm::Guided).unwrap();
                let none = on.values(&vec![0.0; m * n], &[m, n]);
                forward(zeros.view_mut(), none.view(), 3.5, Norm::Conditional).unwrap();
                vec![("conditional norm", kept), ("guided norm", plain), ("zeros", zeros)]
            });
        }
    }
}
