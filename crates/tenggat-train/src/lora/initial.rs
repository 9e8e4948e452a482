//! A new adapter's first values.

use tenggat_models::lora::{Kind, Layout, Lora};
use tenggat_models::transformer::Config;
use tenggat_tensor::ops::copy;
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Result, Tensor};

use crate::job::{Network, NetworkKind};

/// Random stream of the initial values.
const STREAM: u64 = 0x10_7a;

/// Layout of the adapter that a job describes.
///
/// # Errors
/// The job's patterns leave no module that the loss depends on, so that nothing would be trained.
pub fn layout(network: &Network, config: &Config) -> std::result::Result<Layout, &'static str> {
    let layout = Layout::new(kind(network), config.lora_layers(), |module| network.trains(module));
    if layout.modules().iter().any(|module| module.trained) {
        return Ok(layout);
    }
    Err("no module is trained: `only_if_contains` or `ignore_if_contains` leaves none")
}

/// What the job's network adds to each layer.
fn kind(network: &Network) -> Kind {
    match network.kind {
        NetworkKind::Lora => Kind::LowRank(network.rank),
        NetworkKind::Lokr { factor } => Kind::Kronecker { factor },
    }
}

/// An adapter as ai-toolkit starts it: A uniform in ±1/√input (kaiming uniform with a = √5), B zero, strength
/// 1; of a Kronecker product, W₁ alike over its own columns, W₂ zero.
///
/// # Errors
/// Out of device memory.
pub fn initialise(layout: Layout, seed: u64, device: &Device, dtype: DType) -> Result<Lora> {
    let random = Philox::new(seed);
    let mut parameters = Tensor::zeros(device, dtype, &[layout.len()])?;
    // Module by module: all values in 64 bits would be the largest buffer of a run.
    for module in layout.modules() {
        let [rows, columns] = module.a_shape;
        let bound = 1.0 / (columns as f64).sqrt();
        let range = module.a..module.a + rows * columns;
        let values: Vec<f64> =
            range.map(|i| bound * (2.0 * random.uniform(STREAM, i as u64) - 1.0)).collect();
        let values = Tensor::from_f64(device, dtype, &values, &[rows, columns])?;
        copy::forward(values.view(), parameters.matrix_mut(module.a, rows, columns)?)?;
    }
    Ok(Lora::new(layout, parameters))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_models::lora::Candidate;

    #[test]
    fn patterns_that_leave_nothing_to_train_are_refused() {
        let mut config = Config::qwen_image();
        config.num_layers = 2;
        let trains = |only: &[&str], ignore: &[&str]| {
            let owned = |parts: &[&str]| parts.iter().map(|part| part.to_string()).collect();
            let network = Network {
                kind: crate::job::NetworkKind::Lora,
                rank: 1,
                only_if_contains: owned(only),
                ignore_if_contains: owned(ignore),
                dropout: 0.0,
                rank_dropout: 0.0,
                module_dropout: 0.0,
                pretrained: None,
            };
            layout(&network, &config).is_ok()
        };
        assert!(trains(&[], &[]) && trains(&["attn.to_q"], &["blocks.0"]));
        assert!(!trains(&["nothing_matches"], &[]) && !trains(&[], &["transformer_blocks"]));
        // The text half of the last block feeds nothing, so that these alone would learn nothing.
        assert!(!trains(&["transformer_blocks.1.txt_mlp"], &[]));
    }

    #[test]
    fn a_is_uniform_and_b_is_zero() {
        let candidate = Candidate { name: "m".into(), output: 30, trained: true };
        let layout = Layout::new(8, [(400, vec![candidate])], |_| true);
        let lora = initialise(layout, 1, &Device::cpu(), DType::F64).unwrap();
        let values = lora.parameters.to_f64().unwrap();
        let (a, b) = values.split_at(8 * 400);
        let bound = 1.0 / 20.0;
        assert!(b.iter().all(|&x| x == 0.0) && b.len() == 240);
        assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.98 * bound));
        let variance = a.iter().map(|x| x * x).sum::<f64>() / a.len() as f64;
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "{variance}");
    }
}
