//! GPU flow path.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int};

use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "flow", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "flow");

/// Samples of a launch.
const SAMPLES: usize = 64;

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x0: Mat,
    noise: Mat,
    noisy: Mat,
    target: Mat,
    tokens: i32,
    sigmas: [f32; SAMPLES],
}

pub fn forward(
    op: &'static str,
    [x0, noise]: [View<'_>; 2],
    all_sigmas: &[f64],
    [mut noisy, mut target]: [ViewMut<'_>; 2],
) -> Result<()> {
    let tokens = x0.rows() / all_sigmas.len().max(1);
    for (group, sigmas) in all_sigmas.chunks(SAMPLES).enumerate() {
        let rows = group * SAMPLES * tokens..(group * SAMPLES + sigmas.len()) * tokens;
        let (noisy, target) =
            (noisy.reborrow().row_range(rows.clone()), target.reborrow().row_range(rows.clone()));
        let (cuda, to) = noisy.cuda(op)?;
        let mut args = Forward {
            x0: x0.row_range(rows.clone()).cuda(op)?.1,
            noise: noise.row_range(rows).cuda(op)?.1,
            noisy: to,
            target: target.cuda(op)?.1,
            tokens: int(tokens)?,
            sigmas: [0.0; SAMPLES],
        };
        args.sigmas.iter_mut().zip(sigmas).for_each(|(to, &sigma)| *to = sigma as f32);
        cuda.launch(FORWARD, &[noisy.dtype()], Grid::covering(noisy.rows() * noisy.cols()), args)?;
    }
    Ok(())
}
