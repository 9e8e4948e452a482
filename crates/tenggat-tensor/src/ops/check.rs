//! Gradient checks shared by the ops' tests.

use crate::random::Philox;
use crate::{DType, Device, Tensor};

/// A tensor of standard normal numbers.
pub fn randn(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut values = vec![0.0f64; shape.iter().product()];
    Philox::new(seed).normal_f64(0, &mut values);
    Tensor::from_f64(&Device::cpu_poisoned(), dtype, &values, shape).unwrap()
}

/// Sum of the elementwise product: the scalar whose derivative a backward pass computes for the cotangent `dy`.
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
