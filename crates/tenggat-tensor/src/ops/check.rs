//! Gradient checks shared by the ops' tests.

use std::sync::OnceLock;

use tenggat_gpu::{Cuda, Emulation, Options, Without};

use crate::random::Philox;
use crate::{DType, Device, Tensor};

/// A tensor of standard normal numbers.
pub fn randn(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut values = vec![0.0f64; shape.iter().product()];
    Philox::new(seed).normal_f64(0, &mut values);
    Tensor::from_f64(&Device::cpu_poisoned(), dtype, &values, shape).unwrap()
}

/// Sum of the elementwise product: the scalar whose derivative a backward pass computes for the cotangent
/// `dy`.
pub fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.to_f64().unwrap().iter().zip(b.to_f64().unwrap()).map(|(x, y)| x * y).sum()
}

/// Compares `dx` with central differences of `f` at `x` (f64, step 1e-5; error of the difference about 1e-9).
pub fn finite_differences(what: &str, x: &Tensor, dx: &Tensor, f: impl Fn(&Tensor) -> f64) {
    assert_eq!(x.dtype(), DType::F64, "differences are taken in f64");
    let (values, grad) = (x.to_f64().unwrap(), dx.to_f64().unwrap());
    let step = 1e-5;
    for i in 0..values.len() {
        let at = |delta: f64| {
            let mut v = values.clone();
            v[i] += delta;
            f(&Tensor::from_f64(&x.device(), DType::F64, &v, x.shape()).unwrap())
        };
        let numeric = (at(step) - at(-step)) / (2.0 * step);
        let error = (numeric - grad[i]).abs();
        assert!(
            error <= 1e-7 * (1.0 + numeric.abs()),
            "{what}[{i}]: backward {} but differences {numeric}",
            grad[i]
        );
    }
}

/// Largest absolute difference.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64().unwrap(), b.to_f64().unwrap());
    a.iter()
        .zip(b)
        .fold(0.0, |m, (x, y)| if (x - y).abs() > m || (x - y).is_nan() { (x - y).abs() } else { m })
}

/// Asserts that the f32 and f64 runs of an op agree to `tolerance`.
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = max_difference(a, b);
    assert!(error <= tolerance, "{what}: largest difference {error:e} > {tolerance:e}");
}

/// Where an op is tried: a device and an element type. Numbers are the same in all places, and exact in bf16.
pub struct Place {
    device: Device,
    dtype: DType,
}

impl Place {
    /// Standard normal numbers.
    pub fn randn(&self, shape: &[usize], seed: u64) -> Tensor {
        self.numbers(self.dtype, shape, seed)
    }

    /// The same in the type of sums and statistics.
    pub fn wide(&self, shape: &[usize], seed: u64) -> Tensor {
        self.numbers(self.dtype.wide(), shape, seed)
    }

    fn numbers(&self, dtype: DType, shape: &[usize], seed: u64) -> Tensor {
        let exact = randn(DType::BF16, shape, seed).to_f64().unwrap();
        Tensor::from_f64(&self.device, dtype, &exact, shape).unwrap()
    }

    /// Given numbers.
    pub fn values(&self, values: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_f64(&self.device, self.dtype, values, shape).unwrap()
    }

    /// A tensor to be written.
    pub fn empty(&self, shape: &[usize]) -> Tensor {
        Tensor::empty(&self.device, self.dtype, shape).unwrap()
    }

    /// A tensor of sums or statistics to be written.
    pub fn empty_wide(&self, shape: &[usize]) -> Tensor {
        Tensor::empty(&self.device, self.dtype.wide(), shape).unwrap()
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// The GPU that tests of ops share, see [`open_gpu`].
pub fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    GPU.get_or_init(open_gpu).clone()
}

/// A GPU of a test's own: a real one, opened as the environment says ([`tenggat_gpu::Options::from_env`]), if
/// `TENGGAT_TEST_GPU` is set, else an emulated one whose kernels are watched; none without a C++ compiler,
/// unless `TENGGAT_REQUIRE_CXX` is set.
pub fn open_gpu() -> Option<Device> {
    open_gpu_without(Without::default())
}

/// The same without some parts.
pub fn open_gpu_without(without: Without) -> Option<Device> {
    if std::env::var_os("TENGGAT_TEST_GPU").is_some() {
        let options = Options::from_env().unwrap();
        let options = Options { without: options.without.and(without), ..options };
        return Some(Device::cuda(&options).unwrap());
    }
    emulated(Emulation { without, is_watched: true, ..Emulation::default() })
}

/// An emulated GPU with this many bytes of memory, with the same exception.
pub fn emulated_gpu(memory_bytes: usize) -> Option<Device> {
    emulated(Emulation { memory_bytes, ..Emulation::default() })
}

/// A GPU that is emulated so, with the same exception.
pub fn emulated(emulation: Emulation) -> Option<Device> {
    match Cuda::emulated_as(&emulation) {
        Ok(cuda) => Some(Device::Cuda(cuda)),
        Err(e) => {
            tenggat_skip::skipped_without_cxx(e);
            None
        }
    }
}

/// Runs an op on the CPU in f64 and on the GPU in f32 and bf16, and compares every tensor that it returns:
/// errors against the value plus the tensor's mean magnitude, at most 1e-5 of it in f32 and 2^-7 in bf16 (two
/// roundings to 8 bits), 2^-8 where the result itself is kept in f32.
pub fn against_cpu(op: &str, run: impl Fn(&Place) -> Vec<(&'static str, Tensor)>) {
    against_cpu_within(op, 2f64.powi(-7), run);
}

/// The same with another limit for bf16, where rounded results enter others.
pub fn against_cpu_within(op: &str, limit: f64, run: impl Fn(&Place) -> Vec<(&'static str, Tensor)>) {
    let Some(gpu) = gpu() else { return };
    let reference = run(&Place { device: Device::cpu_poisoned(), dtype: DType::F64 });
    for dtype in [DType::F32, DType::BF16] {
        let place = Place { device: gpu.clone(), dtype };
        for ((name, got), (_, expected)) in run(&place).into_iter().zip(&reference) {
            let tolerance = match (dtype, got.dtype()) {
                (DType::F32, _) => 1e-5,
                (_, DType::BF16) => limit,
                _ => limit / 2.0,
            };
            assert_eq!(got.shape(), expected.shape(), "{op}: {name}");
            let (got, expected) = (got.to_f64().unwrap(), expected.to_f64().unwrap());
            let mean = expected.iter().map(|x| x.abs()).sum::<f64>() / expected.len().max(1) as f64;
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let error = (got - expected).abs() / (expected.abs() + mean + 1e-30);
                assert!(
                    error <= tolerance,
                    "{op}, {dtype:?}: {name}[{i}] is {got}, the CPU has {expected}: off by {error:e}"
                );
            }
        }
    }
}
