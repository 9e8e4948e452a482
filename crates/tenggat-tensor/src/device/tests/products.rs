//! Products that no library computes.

use tenggat_gpu::{Batch, Epilogue, Factor, Product};

use crate::ops::{check, gemm};
use crate::{DType, Device, Tensor};

/// An operand, at an offset within longer rows.
fn factor(
    device: &Device,
    dtype: DType,
    [rows, cols]: [usize; 2],
    transposed: bool,
    seed: u64,
) -> (Tensor, Factor) {
    let shape = if transposed { [cols, rows] } else { [rows, cols] };
    let padded = check::randn(DType::BF16, &[shape[0], shape[1] + 3], seed).to_dtype(dtype).unwrap();
    let there = padded.into_device(device).unwrap();
    let address = there.view().cuda("product").unwrap().1.data + dtype.bytes() as u64;
    let factor = Factor { address, dtype, stride: shape[1] + 3, transposed, scales: 0 };
    (there, factor)
}

/// The kernel that stands in for cuBLASLt, for all layouts and types, on shapes that are no multiples of its
/// tiles: sums of length 1 and single rows, as the modulation's gradient has them, among them.
#[test]
fn gpus_compute_products_by_a_kernel_of_our_own() {
    let Some(gpu) = check::gpu() else { return };
    let Device::Cuda(cuda) = &gpu else { panic!("not a GPU") };
    let cpu = Device::cpu();
    for [m, n, k] in [[33, 20, 37], [1, 40, 18], [35, 1, 16], [19, 6, 1]] {
        for (dtype, c_dtype) in
            [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)]
        {
            for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false)] {
                for beta in [0.0, 0.5] {
                    let (a_there, a) = factor(&gpu, dtype, [m, k], a_transposed, 1);
                    let (b_there, b) = factor(&gpu, dtype, [k, n], b_transposed, 2);
                    let old = check::randn(DType::BF16, &[m, n], 3).to_dtype(c_dtype).unwrap();
                    let bias = check::randn(DType::BF16, &[1, n], 4).to_dtype(c_dtype).unwrap();
                    let (mut c, bias_there) = (
                        old.duplicate().unwrap().into_device(&gpu).unwrap(),
                        bias.duplicate().unwrap().into_device(&gpu).unwrap(),
                    );
                    let address = |t: &Tensor| t.view().cuda("product").unwrap().1.data;
                    let epilogue =
                        if beta == 0.0 { Epilogue::Bias(address(&bias_there)) } else { Epilogue::None };
                    let (c_address, alpha) = (c.view_mut().cuda("product").unwrap().1.data, 0.75);
                    let product = Product {
                        batch: Batch::ONE,
                        rows: m,
                        cols: n,
                        inner: k,
                        alpha,
                        a,
                        b,
                        beta,
                        c: c_address,
                        c_dtype,
                        c_stride: n,
                        epilogue,
                        fast: false,
                    };
                    cuda.product_by_kernel(product).unwrap();

                    let exact = |t: &Tensor| {
                        let columns = t.view().cols() - 1;
                        let whole =
                            Tensor::from_f64(&cpu, DType::F64, &t.to_f64().unwrap(), t.shape()).unwrap();
                        let mut part =
                            Tensor::empty(&cpu, DType::F64, &[t.view().rows(), columns - 2]).unwrap();
                        crate::ops::copy::forward(whole.view().columns(1..columns - 1), part.view_mut())
                            .unwrap();
                        part
                    };
                    let (a, b) = (exact(&a_there), exact(&b_there));
                    let mut sums = Tensor::zeros(&cpu, DType::F64, &[m, n]).unwrap();
                    let multiply = match (a_transposed, b_transposed) {
                        (false, false) => gemm::nn,
                        (false, true) => gemm::nt,
                        _ => gemm::tn,
                    };
                    multiply(f64::from(alpha), a.view(), b.view(), 0.0, sums.view_mut()).unwrap();
                    let (old, bias) = (old.to_f64().unwrap(), bias.to_f64().unwrap());
                    let tolerance = if c_dtype == DType::BF16 { 2f64.powi(-8) } else { 1e-6 };
                    for (i, (got, sum)) in c.to_f64().unwrap().iter().zip(sums.to_f64().unwrap()).enumerate()
                    {
                        let more = if beta == 0.0 { bias[i % n] } else { f64::from(beta) * old[i] };
                        let (expected, size) = (sum + more, sum.abs() + more.abs() + (k as f64).sqrt());
                        assert!(
                            (got - expected).abs() <= tolerance * size,
                            "{m} {n} {k} {dtype:?} {c_dtype:?} {a_transposed} {b_transposed} {beta}: [{i}] is {got}, not \
                             {expected}"
                        );
                    }
                }
            }
        }
    }
}
