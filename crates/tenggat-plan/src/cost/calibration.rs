//! What was measured on a device, and its correction by whole steps.

use serde::{Deserialize, Serialize};

use super::rates::{Machine, Rate, Rates};
use super::work::{OpClass, Work};

/// What `plan calibrate` measured on a device, to be stored by the caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Name of the device as the caller knows it; a calibration is for this device only.
    pub device: String,
    /// Bytes per activation in the measurements (4 for f32).
    pub activation_bytes: f64,
    /// What was measured.
    pub rates: Rates,
    /// Memory for weights and activations in bytes.
    pub memory_bytes: f64,
}

/// Kinds of work that are corrected together; the gaps between kernels are one more.
const GROUPS: usize = 5;
/// Unknowns of the correction: a factor per group, and the one that they lean towards.
const UNKNOWNS: usize = GROUPS + 1;
/// Relative error of a predicted step that is worth as much as a group twice as slow as the others.
const DOUBT: f64 = 0.1;

fn group(class: OpClass) -> usize {
    match class {
        OpClass::Gemm | OpClass::GemmFp8 => 0,
        OpClass::LoraGemm | OpClass::LoraGemmF32 | OpClass::LoraWeights | OpClass::Optimiser => 1,
        OpClass::AttentionForward | OpClass::AttentionBackward => 2,
        OpClass::Elementwise | OpClass::Dequantise | OpClass::HostTransfer | OpClass::Prefetch => 3,
    }
}

impl Calibration {
    /// Corrects the rates by whole steps that were measured.
    ///
    /// Micro-benchmarks run alone and warm; in a step, operations share caches with their neighbours. So each
    /// group of kinds of work gets a factor: those with the least sum of squared relative errors of the
    /// steps, and of `(DOUBT · (factor − common factor))²`, because a handful of steps tells the groups
    /// apart only roughly and noise must not make up the difference. Where a factor comes out that no
    /// machine has, all get the mean ratio.
    pub fn settle(&mut self, steps: &[(Work, f64)]) {
        // One row per step, as a share of what was measured: seconds of each group.
        let rows: Vec<([f64; GROUPS], f64)> = steps
            .iter()
            .filter(|(_, measured_s)| measured_s.is_finite() && *measured_s > 0.0)
            .map(|(work, measured_s)| {
                let mut row = [0.0; GROUPS];
                work.ops.iter().for_each(|op| row[group(op.class)] += self.rates.busy_s(op) / measured_s);
                row[GROUPS - 1] = work.kernels() * self.rates.kernel_s / measured_s;
                (row, 1.0 - self.rates.step_s / measured_s)
            })
            .collect();
        if rows.is_empty() {
            return;
        }
        let mut normal = [[0.0; UNKNOWNS]; UNKNOWNS];
        let mut right = [0.0; UNKNOWNS];
        for (row, wanted) in &rows {
            for i in 0..GROUPS {
                right[i] += row[i] * wanted;
                (0..GROUPS).for_each(|j| normal[i][j] += row[i] * row[j]);
            }
        }
        let doubt = DOUBT * DOUBT;
        for i in 0..GROUPS {
            normal[i][i] += doubt;
            normal[i][GROUPS] -= doubt;
            normal[GROUPS][i] -= doubt;
            normal[GROUPS][GROUPS] += doubt;
        }
        let sound = |factor: &f64| (0.1..10.0).contains(factor);
        let factors = match solve(normal, right) {
            Some(factors) if factors.iter().all(sound) => factors,
            _ => {
                let ratios = rows.iter().map(|(row, wanted)| wanted / row.iter().sum::<f64>());
                let mean = ratios.sum::<f64>() / rows.len() as f64;
                [if mean.is_finite() && mean > 0.0 { mean } else { 1.0 }; UNKNOWNS]
            }
        };
        self.slow_down(factors);
    }

    /// Makes each group take `factor` times as long.
    fn slow_down(&mut self, [products, lora, attention, traffic, kernels, _]: [f64; UNKNOWNS]) {
        let rates = &mut self.rates;
        let slow = |rate: &mut Rate, factor: f64| rate.per_s /= factor;
        slow(&mut rates.gemm, products);
        rates.gemm_fp8.iter_mut().for_each(|rate| slow(rate, products));
        rates.operand_bytes_per_s /= products;
        slow(&mut rates.lora_gemm, lora);
        slow(&mut rates.lora_gemm_f32, lora);
        rates.lora_bytes_per_s /= lora;
        rates.lora_activation_bytes_per_s /= lora;
        rates.optimiser_bytes_per_s /= lora;
        slow(&mut rates.attention_forward, attention);
        slow(&mut rates.attention_backward, attention);
        rates.attention_bytes_per_s /= attention;
        rates.elementwise_bytes_per_s /= traffic;
        rates.host_bytes_per_s /= traffic;
        rates.kernel_s *= kernels;
    }
}

/// Solves a symmetric positive definite system by elimination; `None` if it is not one.
fn solve<const N: usize>(mut a: [[f64; N]; N], mut b: [f64; N]) -> Option<[f64; N]> {
    for i in 0..N {
        let pivot = a[i][i];
        if !(pivot.is_finite() && pivot > 1e-12) {
            return None;
        }
        let above = a[i];
        for row in i + 1..N {
            let factor = a[row][i] / pivot;
            (i..N).for_each(|column| a[row][column] -= factor * above[column]);
            b[row] -= factor * b[i];
        }
    }
    for i in (0..N).rev() {
        let known: f64 = (i + 1..N).map(|j| a[i][j] * b[j]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    Some(b)
}

impl From<&Calibration> for Machine {
    fn from(calibration: &Calibration) -> Self {
        Self {
            name: calibration.device.clone(),
            rates: calibration.rates,
            memory_bytes: calibration.memory_bytes,
            activation_bytes: calibration.activation_bytes,
            shares_host_memory: true,
            flash_attention_2: 1.0,
            assumed: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::work::Op;
    use crate::gpu::Gpu;

    fn calibration(rates: Rates) -> Calibration {
        Calibration { device: "some CPU".into(), activation_bytes: 4.0, rates, memory_bytes: 16e9 }
    }

    fn machine() -> Machine {
        Machine::from(Gpu::find("4090").unwrap())
    }

    /// Steps that ask for products, elementwise work and kernels in different shares.
    fn steps() -> Vec<Work> {
        let work = |tokens: f64, bytes: f64, kernels: f64| {
            let mut work = Work::default();
            work.gemm(OpClass::Gemm, 1000.0, [tokens, 512.0, 512.0], [4.0, 4.0]);
            work.traffic(OpClass::Elementwise, 1.0, bytes, kernels);
            work.push(Op {
                class: OpClass::AttentionForward,
                times: 100.0,
                flops: 1e6 * tokens,
                bytes: 0.0,
                extent: tokens,
                kernels: 1.0,
            });
            work
        };
        vec![
            work(100.0, 1e8, 9000.0),
            work(800.0, 4e9, 3000.0),
            work(3000.0, 1e8, 700.0),
            work(50.0, 5e9, 100.0),
        ]
    }

    #[test]
    fn elimination() {
        let solved = solve([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]], [6.0, 10.0, 8.0]).unwrap();
        for (got, expected) in solved.iter().zip([1.0, 2.0, 3.0]) {
            assert!((got - expected).abs() < 1e-12, "{solved:?}");
        }
        assert_eq!(solve([[1.0, 1.0], [1.0, 1.0]], [1.0, 2.0]), None);
    }

    #[test]
    fn settling_brings_steps_near_what_was_measured() {
        let mut truth = calibration(machine().rates);
        truth.slow_down([1.3, 1.3, 1.0, 2.0, 0.7, 1.0]);
        let steps: Vec<(Work, f64)> =
            steps().into_iter().map(|work| (work.clone(), truth.rates.step_seconds(&work))).collect();
        let off = |calibration: &Calibration| {
            let off = |(work, s): &(Work, f64)| (calibration.rates.step_seconds(work) / s - 1.0).abs();
            steps.iter().map(off).fold(0.0, f64::max)
        };
        let mut settled = calibration(machine().rates);
        assert!(off(&settled) > 0.2);
        settled.settle(&steps);
        assert!(off(&settled) < 0.03, "{}", off(&settled));
        // What all steps have in common is found whole.
        let mut truth = calibration(machine().rates);
        truth.slow_down([1.7; UNKNOWNS]);
        let slow: Vec<(Work, f64)> =
            steps.iter().map(|(work, _)| (work.clone(), truth.rates.step_seconds(work))).collect();
        let mut settled = calibration(machine().rates);
        settled.settle(&slow);
        assert!((settled.rates.gemm.per_s / truth.rates.gemm.per_s - 1.0).abs() < 1e-6);
        assert!((settled.rates.kernel_s / truth.rates.kernel_s - 1.0).abs() < 1e-6);
    }

    #[test]
    fn nonsense_settles_nothing() {
        let mut settled = calibration(machine().rates);
        settled.settle(&[(Work::default(), f64::NAN), (Work::default(), 0.0)]);
        assert_eq!(settled, calibration(machine().rates));
        settled.settle(&[(Work::default(), 1.0)]);
        assert_eq!(settled, calibration(machine().rates));
    }

    #[test]
    fn a_calibration_survives_storing() {
        let calibration = calibration(machine().rates);
        let text = serde_json::to_string(&calibration).unwrap();
        assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), calibration);
        assert!(!Machine::from(&calibration).assumed);
    }
}
