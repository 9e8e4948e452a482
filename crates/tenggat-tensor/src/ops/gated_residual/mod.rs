//! Residual connection with a gate per sample and channel: `out = x + gate · y`.
//!
//! `dx = dout` (nothing to do), `dy = gate · dout`, `dgate = Σ_tokens dout · y`. Saved: y.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

fn check_shapes(op: &'static str, y: [usize; 2], gate: [usize; 2], tokens: usize) -> Result<()> {
    expect_shape(op, "gate", &[y[0] / tokens.max(1), y[1]], &gate)?;
    expect_shape(op, "rows of y", &[gate[0] * tokens], &[y[0]])
}

/// `out = x + gate · y`; x, y, out: `[b·tokens, c]`; gate: `[b, c]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, gate: View<'_>, y: View<'_>, tokens: usize, out: ViewMut<'_>) -> Result<()> {
    const OP: &str = "gated_residual forward";
    check_shapes(OP, y.shape(), gate.shape(), tokens)?;
    expect_shape(OP, "x", &y.shape(), &x.shape())?;
    expect_shape(OP, "out", &y.shape(), &out.shape())?;
    if out.on_gpu() {
        return cuda::forward(OP, x, gate, y, tokens, out);
    }
    dispatch_real!(OP, out.dtype(), T => {
        cpu::forward::<T>(x.cpu(OP)?, gate.cpu(OP)?, y.cpu(OP)?, tokens, out.cpu(OP)?);
        Ok(())
    })
}

/// Writes `dy = gate · dout` (`[b·tokens, c]`) and, if asked, `dgate` (`[b, c]`).
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn backward(
    gate: View<'_>,
    y: View<'_>,
    dout: View<'_>,
    tokens: usize,
    dy: ViewMut<'_>,
    dgate: Option<ViewMut<'_>>,
) -> Result<()> {
    const OP: &str = "gated_residual backward";
    check_shapes(OP, y.shape(), gate.shape(), tokens)?;
    expect_shape(OP, "dout", &y.shape(), &dout.shape())?;
    expect_shape(OP, "dy", &y.shape(), &dy.shape())?;
    if let Some(dgate) = &dgate {
        expect_shape(OP, "dgate", &gate.shape(), &dgate.shape())?;
    }
    if dy.on_gpu() {
        return cuda::backward(OP, gate, y, dout, tokens, dy, dgate);
    }
    dispatch_real!(OP, dy.dtype(), T => {
        let (gate, y, dout, dy) = (gate.cpu::<T>(OP)?, y.cpu(OP)?, dout.cpu(OP)?, dy.cpu(OP)?);
        let dgate = dgate.map(|dgate| dgate.cpu(OP)).transpose()?;
        rayon::join(
            || cpu::backward_input(gate, dout, tokens, dy),
            || dgate.map(|dgate| cpu::backward_gate(y, dout, tokens, dgate)),
        );
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    #[test]
    fn backward_is_the_derivative() {
        let (b, tokens, c) = (2, 17, 3);
        let t = |seed| randn(DType::F64, &[b * tokens, c], seed);
        let (x, y, dout, gate) = (t(1), t(2), t(3), randn(DType::F64, &[b, c], 4));
        let loss = |gate: &Tensor, y: &Tensor| {
            let mut out = x.empty_like(x.shape()).unwrap();
            forward(x.view(), gate.view(), y.view(), tokens, out.view_mut()).unwrap();
            dot(&out, &dout)
        };
        let (mut dy, mut dgate) = (y.empty_like(y.shape()).unwrap(), gate.empty_like(gate.shape()).unwrap());
        backward(gate.view(), y.view(), dout.view(), tokens, dy.view_mut(), Some(dgate.view_mut())).unwrap();
        finite_differences("dy", &y, &dy, |y| loss(&gate, y));
        finite_differences("dgate", &gate, &dgate, |gate| loss(gate, &y));
    }

    #[test]
    fn gpus_agree() {
        for (batch, tokens, c) in [(2, 37, 48), (1, 5, 7), (2, 300, 264)] {
            against_cpu("gated residual", |on| {
                let x = on.randn(&[batch * tokens, c], 1);
                let (gate, y) = (on.randn(&[batch, 3 * c], 2), on.randn(&[batch * tokens, c], 3));
                let dout = on.randn(&[batch * tokens, c], 4);
                let gate = gate.view().columns(c..2 * c);
                let (mut out, mut dy) = (on.empty(&[batch * tokens, c]), on.empty(&[batch * tokens, c]));
                let mut dgate = on.empty(&[batch, c]);
                forward(x.view(), gate, y.view(), tokens, out.view_mut()).unwrap();
                let to = Some(dgate.view_mut());
                backward(gate, y.view(), dout.view(), tokens, dy.view_mut(), to).unwrap();
                let mut alone = on.empty(&[batch * tokens, c]);
                backward(gate, y.view(), dout.view(), tokens, alone.view_mut(), None).unwrap();
                vec![("out", out), ("dy", dy), ("dgate", dgate), ("dy alone", alone)]
            });
        }
    }
}
