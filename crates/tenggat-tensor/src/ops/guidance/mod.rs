//! True classifier-free guidance with the norm of the conditional prediction, per token:
//! `g = u + s·(c − u)`, `out = g · ‖c‖/‖g‖` over the channels of a token.
//!
//! Source: diffusers `pipeline_qwenimage.py`, the block under `do_true_cfg`. Forward only: sampling trains nothing.

mod cpu;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Turns the conditional prediction into the guided one in place; all `[m, n]`, one token a row.
///
/// # Errors
/// Shapes or types differ.
pub fn forward(conditional: ViewMut<'_>, unconditional: View<'_>, scale: f64) -> Result<()> {
    const OP: &str = "guidance";
    expect_shape(OP, "unconditional", &conditional.shape(), &unconditional.shape())?;
    dispatch_real!(OP, conditional.dtype(), T => {
        cpu::forward::<T>(conditional.cpu(OP)?, unconditional.cpu(OP)?, scale as T);
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
        forward(c.view_mut(), u.view(), 3.0).unwrap();
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        for ((out, c), u) in c.to_f64().unwrap().chunks(8).zip(before.chunks(8)).zip(uv.chunks(8)) {
            let guided: Vec<f64> = c.iter().zip(u).map(|(c, u)| u + 3.0 * (c - u)).collect();
            let factor = norm(c) / norm(&guided);
            assert!(out.iter().zip(guided).all(|(o, g)| (o - g * factor).abs() < 1e-12));
        }
    }

    #[test]
    fn a_token_of_zeros_stays_zero() {
        let mut c = randn(DType::F32, &[1, 4], 1);
        c.fill(0.0);
        let u = c.duplicate().unwrap();
        forward(c.view_mut(), u.view(), 4.0).unwrap();
        assert_eq!(c.to_f32().unwrap(), [0.0; 4]);
    }
}
