//! Optimisers against references that tests write down, in f64 and f32, interrupted and put back on the way.

use tenggat_models::lora::{Candidate, Layout, Lora};
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};

use super::{Method, Optimiser};

/// One trained matrix as a reference sees it.
pub(super) struct Matrix {
    pub rows: usize,
    pub cols: usize,
    /// Parameters, row-major.
    pub p: Vec<f64>,
    /// Gradient of this step, clipped.
    pub g: Vec<f64>,
    /// Whatever the reference keeps; empty at first.
    pub state: Vec<f64>,
}

const STEPS: u64 = 12;
const MAX_NORM: f64 = 3.0;

/// Takes twelve steps, the fifth at rate 0, with an adapter that has a module without gradients, and compares
/// every parameter with those of `reference`, which receives the step from 1, the rate, and the matrices.
/// After the seventh step the state goes into a fresh optimiser.
///
/// The tolerances are relative to parameters of about 1: rounding of 1e-16 and 6e-8 over twelve steps.
pub(super) fn against(method: Method, reference: &mut dyn FnMut(u64, f64, &mut [Matrix])) {
    // The reference runs once, alongside f64.
    let mut replay: Vec<Vec<Vec<f64>>> = Vec::new();
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let candidate = |name: &str, output, trained| Candidate { name: name.into(), output, trained };
        let layers = [
            (300, vec![candidate("q", 20, true), candidate("k", 7, true)]),
            (5, vec![candidate("unused", 4, false)]),
        ];
        let layout = Layout::new(3, layers, |_| true);
        let n = layout.len();
        let device = Device::cpu_poisoned();
        let normal = |stream: u64| {
            let mut values = vec![0.0; n];
            Philox::new(1).normal_f64(stream, &mut values);
            values
        };
        let parameters = Tensor::from_f64(&device, dtype, &normal(0), &[n]).unwrap();
        let mut lora = Lora::new(layout, parameters);
        let matrices = lora.layout.trained_matrices();
        let mut theirs: Vec<Matrix> = matrices
            .iter()
            .map(|m| {
                let p = normal(0)[m.at..m.at + m.rows * m.cols].to_vec();
                Matrix { rows: m.rows, cols: m.cols, p, g: Vec::new(), state: Vec::new() }
            })
            .collect();
        let mut optimiser = Optimiser::new(method, Some(MAX_NORM), &lora).unwrap();
        let first_run = replay.is_empty();
        for step in 1..=STEPS {
            let lr = if step == 5 { 0.0 } else { 0.02 / step as f64 + 0.01 };
            let mut gradient = vec![0.0; n];
            let (values, drift) = (normal(step), normal(99));
            for m in &matrices {
                for i in m.at..m.at + m.rows * m.cols {
                    gradient[i] = 0.3 * values[i] + 0.5 * drift[i];
                }
            }
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            let gradients = Tensor::from_f64(&device, dtype, &gradient, &[n]).unwrap();
            optimiser.measure(&gradients).unwrap();
            optimiser.update(&mut lora, &gradients, lr).unwrap();
            if first_run {
                for (m, theirs) in matrices.iter().zip(&mut theirs) {
                    let clip = (MAX_NORM / (norm + 1e-6)).min(1.0);
                    theirs.g = gradient[m.at..m.at + m.rows * m.cols].iter().map(|g| g * clip).collect();
                }
                reference(step, lr, &mut theirs);
                replay.push(theirs.iter().map(|m| m.p.clone()).collect());
            }
            let got = lora.parameters.to_f64().unwrap();
            let step_expected = &replay[step as usize - 1];
            for (m, p) in matrices.iter().zip(step_expected) {
                for (i, (a, b)) in got[m.at..].iter().zip(p).enumerate() {
                    let error = (a - b).abs();
                    assert!(error <= tolerance, "{dtype:?}, step {step}, [{i}]: {a} for {b}");
                }
            }
            if step == 7 {
                optimiser = put_back(method, &optimiser, &lora);
            }
        }
        // What has no gradient stays, whatever the decay.
        let (unused, before) = (lora.layout.modules().iter().find(|m| !m.trained).unwrap(), normal(0));
        let got = lora.parameters.to_f64().unwrap();
        assert!(
            got[unused.a..unused.a + 15].iter().zip(&before[unused.a..]).all(|(a, b)| (a - b).abs() < 1e-6)
        );
    }
}

/// A fresh optimiser with the state of another.
fn put_back(method: Method, from: &Optimiser, lora: &Lora) -> Optimiser {
    let kept: Vec<(String, Vec<u8>)> = from
        .state()
        .into_iter()
        .map(|(name, t)| (name.to_owned(), t.to_bytes().unwrap().into_owned()))
        .collect();
    let mut to = Optimiser::new(method, Some(MAX_NORM), lora).unwrap();
    to.restore(from.steps(), &mut |name, tensor| {
        let (_, bytes) = kept.iter().find(|(n, _)| n == name).unwrap();
        tensor.set_bytes(bytes)
    })
    .unwrap();
    to
}
