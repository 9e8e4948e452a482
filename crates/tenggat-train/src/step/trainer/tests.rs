use tenggat_models::transformer::{Config, Recompute};
use tenggat_tensor::weight::Format;
use tenggat_tensor::{DType, Device};

use super::*;
use crate::lora::initial;
use crate::plan::bench::StepBench;
use crate::step::optimiser::{AdamWConfig, Method};

fn gpu(bytes: usize) -> Option<Device> {
    let gpu = Device::emulated_with(bytes);
    if gpu.is_err() {
        tenggat_skip::skipped_without_cxx("no C++ compiler");
    }
    gpu.ok()
}

fn bench() -> StepBench {
    let mut model = Config::qwen_image();
    (model.num_layers, model.num_attention_heads, model.attention_head_dim) = (2, 1, 16);
    (model.joint_attention_dim, model.axes_dims_rope) = (16, [4, 6, 6]);
    StepBench {
        model,
        format: Some(Format::Uint(3)),
        rank: 2,
        grid: (2, 3),
        text_tokens: 4,
        batch: 2,
        adam_8bit: false,
        compute: DType::BF16,
        fp8_products: false,
        recompute: Recompute { keep_all: 1, keep_results: 1 },
        modulation_steps: Some(3),
        direct: false,
    }
}

/// What a few steps came to.
#[derive(Debug, PartialEq)]
struct Course {
    losses: Vec<f64>,
    norms: Vec<f64>,
    parameters: Vec<f64>,
}

/// Steps with captions of three lengths, two of which are padded alike, pictures of two shapes with as many
/// tokens, and two micro-batches each; how many passes are captured at their end.
fn course(device: &Device, bench: &StepBench, objective: Objective, captures: bool) -> (Course, usize) {
    let steps = 6;
    let model = bench.random_model(device).unwrap();
    let lora = initial::initialise(model.lora_layout(bench.rank, |_| true), 1, device, DType::F32).unwrap();
    let optimiser = Optimiser::new(Method::AdamW(AdamWConfig::default()), Some(1.0), &lora).unwrap();
    let mut trainer = Trainer::new(&model, lora, optimiser, bench.recompute).unwrap().minimising(objective);
    if !captures {
        trainer.launch_each_kernel();
    }
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let grid = if step / 2 % 2 == 0 { bench.grid } else { (bench.grid.1, bench.grid.0) };
        let bench = StepBench { text_tokens: [4, 5, 12][step % 3], grid, ..bench.clone() };
        let fixed = bench.fixed(&model).unwrap();
        let batches = [0, 1].map(|i| bench.batch(&model, &fixed, 2 * step + i).unwrap());
        let outcome = trainer.step(&batches, 1e-2).unwrap();
        assert!(outcome.updated);
        losses.push(outcome.loss);
        norms.push(outcome.gradient_norm);
    }
    assert_eq!(trainer.take_notes(), Vec::<String>::new());
    let parameters = trainer.lora().parameters.to_f64().unwrap();
    (Course { losses, norms, parameters }, trainer.captured_passes())
}

/// Captured passes give the same results, to the bit: other noise, levels and modulation, gradients that
/// replace and that are added, an adapter that changes.
#[test]
fn captured_steps_are_the_same_steps() {
    let Some(device) = gpu(usize::MAX) else { return };
    for bench in [bench(), StepBench { format: None, fp8_products: true, modulation_steps: None, ..bench() }]
    {
        let (expected, none) = course(&device, &bench, Objective::default(), false);
        let (got, captured) = course(&device, &bench, Objective::default(), true);
        assert_eq!((none, captured), (0, 4));
        assert_eq!(got, expected);
        assert!(expected.losses.windows(2).all(|pair| pair[0] != pair[1]));
    }
}

/// What changes from pass to pass on the host is not captured, and stays as it is.
#[test]
fn steps_with_dropout_are_not_captured() {
    let Some(device) = gpu(usize::MAX) else { return };
    let dropout = Dropout { elements: 0.3, ranks: 0.0, modules: 0.0, seed: 1, pass: 0, samples: 0 };
    let objective = Objective { dropout: Some(dropout), ..Objective::default() };
    let (got, captured) = course(&device, &bench(), objective, true);
    assert_eq!(captured, 0);
    assert_eq!(got, course(&device, &bench(), objective, false).0);
}

/// Captured passes that lose their memory in the middle of a run cost nothing but themselves.
#[test]
fn a_lost_capture_is_a_direct_step() {
    let bench = StepBench { batch: 1, ..bench() };
    let run = |device: &Device, greedy_at: Option<usize>| {
        let model = bench.random_model(device).unwrap();
        let fixed = bench.fixed(&model).unwrap();
        let lora = initial::initialise(model.lora_layout(bench.rank, |_| true), 1, device, DType::F32);
        let lora = lora.unwrap();
        let optimiser = Optimiser::new(Method::AdamW(AdamWConfig::default()), None, &lora).unwrap();
        let mut trainer = Trainer::new(&model, lora, optimiser, Recompute::EVERYTHING).unwrap();
        let mut losses = Vec::new();
        for step in 0..6 {
            if greedy_at == Some(step) {
                assert_eq!(trainer.captured_passes(), 1);
                let mut all = Vec::new();
                while let Ok(some) = Tensor::empty(device, DType::U8, &[4096]) {
                    all.push(some);
                }
            }
            let batch = bench.batch(&model, &fixed, step).unwrap();
            losses.push(trainer.step(&[batch], 1e-2).unwrap().loss);
        }
        (losses, trainer.captured_passes(), trainer.passes.lost_so_far())
    };
    let Some(device) = gpu(usize::MAX) else { return };
    let (expected, captured, lost) = run(&device, None);
    assert_eq!((captured, lost), (1, 0));
    let Some(limited) = gpu(device.peak_bytes() + (64 << 10)) else { return };
    let (got, captured, lost) = run(&limited, Some(3));
    assert_eq!((got, captured, lost), (expected, 1, 1));
}

/// Steps with captions of several lengths in turn, on a card that has room for direct launches of the longest
/// and for hardly more, as a plan leaves it: CUDA graphs are still in use at the end, and what they come to
/// is what direct launches come to.
#[test]
fn graphs_stay_in_use_on_a_full_gpu_with_captions_of_many_lengths() {
    const LENGTHS: [usize; 5] = [28, 4, 36, 12, 20];
    const STEPS: usize = 30;
    let bench = StepBench { batch: 1, ..bench() };
    let run = |device: &Device, captures: bool| {
        let model = bench.random_model(device).unwrap();
        let lora = initial::initialise(model.lora_layout(bench.rank, |_| true), 1, device, DType::F32);
        let lora = lora.unwrap();
        let optimiser = Optimiser::new(Method::AdamW(AdamWConfig::default()), Some(1.0), &lora).unwrap();
        let mut trainer = Trainer::new(&model, lora, optimiser, bench.recompute).unwrap();
        if !captures {
            trainer.launch_each_kernel();
        }
        let step = |step: usize| {
            let bench = StepBench { text_tokens: LENGTHS[step % LENGTHS.len()], ..bench.clone() };
            let fixed = bench.fixed(&model).unwrap();
            trainer.step(&[bench.batch(&model, &fixed, step).unwrap()], 1e-2).unwrap().loss
        };
        let losses: Vec<f64> = (0..STEPS).map(step).collect();
        let lost = trainer.passes.lost_so_far();
        (losses, trainer.captured_passes(), lost, trainer.take_notes())
    };
    let Some(device) = gpu(usize::MAX) else { return };
    let (expected, ..) = run(&device, false);
    let Some(full) = gpu(device.peak_bytes() + device.peak_bytes() / 16) else { return };
    let (got, captured, lost, notes) = run(&full, true);
    assert_eq!(got, expected);
    // The first of the longest took the memory of those that were captured before it.
    assert_eq!((captured, lost, notes), (LENGTHS.len(), 1, Vec::new()));
}

/// A model whose blocks leave the GPU after a step was captured: the graph's weights are no longer there.
#[test]
fn offloading_ends_captured_passes() {
    let Some(device) = gpu(usize::MAX) else { return };
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen_image/transformer");
    let cache = tempfile::tempdir().unwrap();
    let wanted = tenggat_models::weights::Quantisation {
        format: "float8".parse().unwrap(),
        recovery: None,
        cache: Some(cache.path().to_path_buf()),
    };
    let bench = StepBench { model: Config::read(&folder).unwrap(), modulation_steps: None, ..bench() };
    let run = |offload_at: Option<usize>| {
        let options =
            tenggat_models::transformer::LoadOptions { quantisation: Some(&wanted), ..Default::default() };
        let precision = tenggat_models::transformer::Precision { compute: DType::BF16, weights: DType::BF16 };
        let model = Transformer::load_with(&folder, &device, precision, options).unwrap();
        let lora = initial::initialise(model.lora_layout(bench.rank, |_| true), 1, &device, DType::F32);
        let lora = lora.unwrap();
        let optimiser = Optimiser::new(Method::AdamW(AdamWConfig::default()), None, &lora).unwrap();
        let mut trainer = Trainer::new(&model, lora, optimiser, Recompute::EVERYTHING).unwrap();
        let fixed = bench.fixed(&model).unwrap();
        let step = |step| {
            if offload_at == Some(step) {
                assert!(trainer.captured_passes() == 1 && model.offload(1) == 1);
            }
            trainer.step(&[bench.batch(&model, &fixed, step).unwrap()], 1e-2).unwrap().loss
        };
        (0..6).map(step).collect::<Vec<_>>()
    };
    assert_eq!(run(Some(3)), run(None));
}

#[test]
fn captures_that_come_to_something_else_are_not_used() {
    let mut passes = Passes::default();
    passes.compare([1.0, 2.0], [1.0, 2.001]);
    assert!(passes.are_trusted() && passes.take_notes().is_empty());
    for other in [[1.0, 2.1], [1.1, 2.0], [1.0, f64::NAN]] {
        let mut passes = Passes::default();
        passes.compare([1.0, 2.0], other);
        assert!(!passes.are_trusted());
        assert!(passes.take_notes()[0].contains("CUDA graphs are not used"));
    }
}

/// A bench on a processor, and what trains its LoRA.
fn on_processor(model: &Transformer, objective: Objective) -> Trainer<'_> {
    let lora = initial::initialise(model.lora_layout(2, |_| true), 1, &Device::cpu(), DType::F32).unwrap();
    let optimiser = Optimiser::new(Method::AdamW(AdamWConfig::default()), None, &lora).unwrap();
    Trainer::new(model, lora, optimiser, Recompute::NOTHING).unwrap().minimising(objective)
}

/// Passes captured at one strength of the adapter are not used at another.
#[test]
fn captured_steps_have_the_strength_of_their_batch() {
    let Some(device) = gpu(usize::MAX) else { return };
    let bench = bench();
    let course = |captures: bool| {
        let model = bench.random_model(&device).unwrap();
        let fixed = bench.fixed(&model).unwrap();
        let lora =
            initial::initialise(model.lora_layout(bench.rank, |_| true), 1, &device, DType::F32).unwrap();
        let optimiser = Optimiser::new(Method::AdamW(AdamWConfig::default()), Some(1.0), &lora).unwrap();
        let mut trainer = Trainer::new(&model, lora, optimiser, bench.recompute).unwrap();
        if !captures {
            trainer.launch_each_kernel();
        }
        let step = |step: usize| {
            let batch = bench.batch(&model, &fixed, step).unwrap();
            let outcome = trainer.step(&[Batch { strength: [1.0, 0.5][step % 2], ..batch }], 1e-2).unwrap();
            (outcome.loss, outcome.gradient_norm)
        };
        let outcomes: Vec<(f64, f64)> = (0..8).map(step).collect();
        (outcomes, trainer.captured_passes())
    };
    let (expected, none) = course(false);
    let (got, captured) = course(true);
    assert_eq!((none, captured), (0, 2));
    assert_eq!(got, expected);
}

/// Added up or averaged, what is reported is the mean loss; the gradient of a sum is that of the mean times
/// their number.
#[test]
fn the_loss_reported_does_not_depend_on_how_gradients_are_added() {
    let bench = StepBench { compute: DType::F32, ..bench() };
    let model = bench.random_model(&Device::cpu()).unwrap();
    let fixed = bench.fixed(&model).unwrap();
    let batches = [0, 1, 2].map(|i| bench.batch(&model, &fixed, i).unwrap());
    let step = |batches: &[Batch], summed| {
        let objective = Objective { summed, ..Objective::default() };
        on_processor(&model, objective).step(batches, 1e-3).unwrap()
    };
    let (averaged, summed) = (step(&batches, false), step(&batches, true));
    assert!((summed.loss / averaged.loss - 1.0).abs() < 1e-9, "{summed:?} {averaged:?}");
    let ratio = summed.gradient_norm / averaged.gradient_norm;
    assert!((ratio - 3.0).abs() < 1e-4, "{summed:?} {averaged:?}");
    let alone: Vec<f64> = batches.chunks(1).map(|one| step(one, true).loss).collect();
    assert!(
        (averaged.loss - alone.iter().sum::<f64>() / 3.0).abs() < 1e-9 * averaged.loss,
        "{alone:?} {averaged:?}"
    );
}

/// What a batch asks of the adapter ends with its step: samples and scores use all of it.
#[test]
fn a_step_leaves_the_adapter_as_it_is_used_elsewhere() {
    let bench = StepBench { compute: DType::F32, ..bench() };
    let model = bench.random_model(&Device::cpu()).unwrap();
    let fixed = bench.fixed(&model).unwrap();
    let dropout = Dropout { elements: 0.3, ranks: 0.1, modules: 0.1, seed: 1, pass: 0, samples: 0 };
    let mut trainer = on_processor(&model, Objective { dropout: Some(dropout), ..Objective::default() });
    for step in 0..2 {
        let batch = Batch { strength: 0.25, ..bench.batch(&model, &fixed, step).unwrap() };
        trainer.step(&[batch], 1e-3).unwrap();
        assert_eq!((trainer.lora().scale, trainer.lora().dropout.is_none()), (1.0, true));
    }
    // Nor does a step that failed: its noise is of another size than its latents.
    let mut broken = Batch { strength: 0.25, ..bench.batch(&model, &fixed, 2).unwrap() };
    broken.noise = Tensor::empty(&Device::cpu(), DType::F32, &[1, 1]).unwrap();
    assert!(trainer.step(&[broken], 1e-3).is_err());
    assert_eq!((trainer.lora().scale, trainer.lora().dropout.is_none()), (1.0, true));
}
