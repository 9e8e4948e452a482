//! The closed set of ops.
//!
//! Each folder holds one op: its contract, dispatch and tests in `mod.rs`, the readable CPU reference in
//! `cpu.rs` and, where it pays, a fast CPU path in a file of its own; `cuda.rs` calls the kernels of `op.cu`.
//! The reference runs in f32 and f64; finite differences are taken in f64, and GPUs are held to the
//! reference.

mod activation;
pub mod adafactor;
pub mod adamw;
pub mod adamw8bit;
pub mod attention;
pub mod causal_attention;
mod columns;
pub mod conv2d;
pub mod copy;
pub mod embedding;
pub mod flow;
pub mod gated_residual;
pub mod gelu;
pub mod gemm;
pub mod group_norm;
pub mod guidance;
pub mod kronecker;
pub mod layer_norm;
pub mod layer_norm_modulate;
pub mod linear;
pub mod lion;
pub mod loss;
pub mod prodigy;
pub mod rms_norm;
pub mod rms_norm_rope;
pub mod rotary;
pub mod scale_shift;
pub mod silu;
pub mod softmax;
pub mod swiglu;
mod write;

#[cfg(test)]
pub(crate) mod check;

/// Runs a block with `$t` bound to the Rust type of a computing dtype.
macro_rules! dispatch_real {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            dtype => Err($crate::Error::DType { op: $op, dtype, device: "cpu" }),
        }
    };
}
pub(crate) use dispatch_real;

/// Kernels of GPUs that are compiled when a device is opened.
pub(crate) const KERNELS: &[&tenggat_gpu::Module] = &[
    &adafactor::cuda::MODULE,
    &adamw8bit::cuda::MODULE,
    &adamw::cuda::MODULE,
    &causal_attention::cuda::MODULE,
    &columns::MODULE,
    &conv2d::cuda::MODULE,
    &copy::cuda::MODULE,
    &embedding::cuda::MODULE,
    &flow::cuda::MODULE,
    &gated_residual::cuda::MODULE,
    &gelu::cuda::MODULE,
    &group_norm::cuda::MODULE,
    &guidance::cuda::MODULE,
    &kronecker::cuda::MODULE,
    &layer_norm::cuda::MODULE,
    &layer_norm_modulate::cuda::MODULE,
    &lion::cuda::MODULE,
    &loss::cuda::MODULE,
    &prodigy::cuda::MODULE,
    &crate::weight::quantised::cuda::MODULE,
    &rms_norm::cuda::MODULE,
    &rms_norm_rope::cuda::MODULE,
    &rotary::cuda::MODULE,
    &scale_shift::cuda::MODULE,
    &silu::cuda::MODULE,
    &softmax::cuda::MODULE,
    &swiglu::cuda::MODULE,
];

/// Kernels of GPUs that are compiled when they are first needed: where cuDNN does attention, never. They take
/// half of the time that all the others take together.
#[cfg(test)]
pub(crate) const RARE_KERNELS: &[&tenggat_gpu::Module] =
    &[&attention::cuda::MODULE, &tenggat_gpu::PRODUCT_MODULE];

/// Rows that one parallel task of a row-wise kernel takes. A constant, so that sums over rows are grouped the
/// same way whatever the number of threads.
pub(crate) const ROW_BLOCK: usize = 16;
