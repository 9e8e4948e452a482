//! The whole training step of the mini model, batch 4 at 128², rank 16: `cargo bench -p tenggat-bench --bench
//! step`.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use tenggat_models::qwen_image::TextBatch;
use tenggat_models::transformer::{Inputs, Precision, Recompute, Transformer};
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};
use tenggat_train::lora::initial;
use tenggat_train::step::optimiser::{Method, Optimiser};
use tenggat_train::step::random::Level;
use tenggat_train::step::{Batch, Trainer};

const BATCH: usize = 4;
const GRID: (usize, usize) = (8, 8);
const TEXT: usize = 12;

fn randn(device: &Device, shape: &[usize], seed: u64) -> Tensor {
    let mut values = vec![0.0f32; shape.iter().product()];
    Philox::new(seed).normal(0, &mut values);
    Tensor::from_f32(device, DType::F32, &values, shape).unwrap()
}

fn step(c: &mut Criterion) {
    let device = Device::cpu();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/mini/model/transformer");
    let precision = Precision { compute: DType::F32, weights: DType::F32 };
    let model = Transformer::load(&folder, &device, precision).unwrap();
    let tokens = GRID.0 * GRID.1;
    let channels = model.config().in_channels;
    let shape = [BATCH * tokens, channels];
    let (latents, noise) = (randn(&device, &shape, 1), randn(&device, &shape, 2));
    let caption = randn(&device, &[TEXT, model.config().joint_attention_dim], 3);
    let text = || TextBatch::new(&[&caption; BATCH]).unwrap();
    let positions = Arc::new(model.positions(GRID, TEXT).unwrap());
    let lora = initial::initialise(model.lora_layout(16, |_| true), 1, &device, DType::F32).unwrap();
    let optimiser = Optimiser::new(Method::default(), Some(1.0), &lora).unwrap();
    let mut trainer = Trainer::new(&model, lora, optimiser, Recompute::NOTHING).unwrap();

    let mut group = c.benchmark_group("mini model, batch 4, rank 16");
    group.sample_size(20);
    group.bench_function("step", |b| {
        b.iter(|| {
            let batch = Batch {
                mask: None,
                share: 1.0,
                strength: 1.0,
                number: 0,
                latents: latents.duplicate().unwrap(),
                noise: noise.duplicate().unwrap(),
                levels: vec![Level { sigma: 0.5, weight: 1.0 }; BATCH],
                text: text(),
                positions: Arc::clone(&positions),
            };
            black_box(trainer.step(&[batch], 1e-4).unwrap());
        });
    });
    let text = text();
    group.bench_function("forward", |b| {
        b.iter(|| {
            let inputs = Inputs {
                latents: &latents,
                sigmas: &[0.5; BATCH],
                text: &text.embeds,
                text_lens: &text.lens,
                positions: &positions,
                global: None,
            };
            black_box(model.forward(inputs, None).unwrap());
        });
    });
    group.finish();
}

criterion_group!(training, step);
criterion_main!(training);
