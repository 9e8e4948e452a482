//! A warm training step takes no new memory for tensors or for operands of products: all buffers go round.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they found")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tenggat_models::qwen_image::TextBatch;
use tenggat_models::transformer::{Precision, Recompute};
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};
use tenggat_train::lora::initial;
use tenggat_train::plan::calibrate::rehearsal::Rehearsal;
use tenggat_train::step::optimiser::{Method, Optimiser};
use tenggat_train::step::random::Level;
use tenggat_train::step::{Batch, Trainer};

/// Counts what is asked of the system's allocator.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    LARGEST.fetch_max(bytes, Relaxed);
    TOTAL.fetch_add(bytes, Relaxed);
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: by the caller.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: by the caller.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GRID: (usize, usize) = (16, 12);
const TEXT: usize = 20;
const TEXT_WIDTH: usize = 40;
const RANK: usize = 4;

fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut values = vec![0.0f32; shape.iter().product()];
    Philox::new(seed).normal(0, &mut values);
    Tensor::from_f32(&Device::cpu(), DType::F32, &values, shape).unwrap()
}

/// Bytes of the largest piece and of all that a warm step asks for.
fn warm_step(weights: DType) -> (usize, usize) {
    let rehearsal = Rehearsal {
        layers: 2,
        heads: 4,
        head_dim: 32,
        joint_dim: TEXT_WIDTH,
        grid: GRID,
        text_tokens: TEXT,
        batch: 1,
        rank: RANK,
    };
    let device = Device::cpu();
    let model = rehearsal.model_in(&device, Precision { compute: DType::F32, weights }).unwrap();
    let lora = initial::initialise(model.lora_layout(RANK, |_| true), 1, &device, DType::F32).unwrap();
    let optimiser = Optimiser::new(Method::default(), Some(1.0), &lora).unwrap();
    let mut trainer = Trainer::new(&model, lora, optimiser, Recompute::NOTHING).unwrap();
    let shape = [GRID.0 * GRID.1, model.config().in_channels];
    let batches = [Batch {
        mask: None,
        share: 1.0,
        strength: 1.0,
        number: 0,
        latents: normal(&shape, 2),
        noise: normal(&shape, 3),
        levels: vec![Level { sigma: 0.5, weight: 1.0 }],
        text: TextBatch::new(&[&normal(&[TEXT, TEXT_WIDTH], 1)]).unwrap(),
        positions: Arc::new(model.positions(GRID, TEXT).unwrap()),
    }];
    // One thread: with more, one of them may meet its first large task in any step.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let mut step = || assert!(trainer.step(&batches, 1e-4).unwrap().updated);
        (0..2).for_each(|_| step());
        LARGEST.store(0, Relaxed);
        TOTAL.store(0, Relaxed);
        step();
    });
    (LARGEST.load(Relaxed), TOTAL.load(Relaxed))
}

#[test]
fn a_warm_step_allocates_no_buffer() {
    if !tenggat_tensor::weight::packs(DType::F32) {
        tenggat_skip::skipped("products of this processor are a library's, which has memory of its own");
        return;
    }
    for weights in [DType::F32, DType::BF16].into_iter().filter(|&dtype| tenggat_tensor::weight::packs(dtype))
    {
        let (largest, total) = warm_step(weights);
        println!("{weights:?} weights: {total} bytes in all, the largest piece {largest}");
        // The smallest activation of the picture is [192, 128] in 32 bits: 98304 bytes. Shapes and lists are
        // tiny.
        assert!(largest <= 4096, "{weights:?}: a piece of {largest} bytes");
        assert!(total <= 98_304, "{weights:?}: {total} bytes in all");
    }
}
