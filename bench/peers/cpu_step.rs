//! tenggat's side of `cpu_step.py`: training steps of a transformer with random weights, on request.
//!
//! Arguments: `layers=6 heads=8 head_dim=64 joint_dim=256 height=16 width=16 text=64 batch=1 rank=16
//! dtype=f32 threads=2`. Prints `ready`; then for every line with a number runs so many steps and prints
//! their wall-clock seconds on one line.

mod turns;

use std::collections::HashMap;

use tenggat_models::transformer::Precision;
use tenggat_tensor::{DType, Device};
use tenggat_train::plan::calibrate::rehearsal::Rehearsal;
use turns::Error;

fn serve(arguments: &HashMap<String, String>) -> Result<(), Error> {
    let text = |key: &str| arguments.get(key).ok_or_else(|| format!("argument `{key}=` is missing"));
    let number = |key: &str| -> Result<usize, Error> { Ok(text(key)?.parse()?) };
    let step = Rehearsal {
        layers: number("layers")?,
        heads: number("heads")?,
        head_dim: number("head_dim")?,
        joint_dim: number("joint_dim")?,
        grid: (number("height")?, number("width")?),
        text_tokens: number("text")?,
        batch: number("batch")?,
        rank: number("rank")?,
    };
    let weights = match text("dtype")?.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => return Err(format!("dtype `{other}`: expected f32 or bf16").into()),
    };
    let model = step.model_in(&Device::cpu(), Precision { compute: DType::F32, weights })?;
    let mut stage = step.stage(&model)?;
    stage.step()?;
    turns::take(|| Ok(stage.step().map(drop)?))
}

fn main() -> Result<(), Error> {
    turns::with_arguments(serve)
}
