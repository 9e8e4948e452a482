//! What a step costs, part by part, against counts by hand.
//!
//! A part of the memory that is forgotten ends a run for want of memory, so each has its own line here; c is
//! the width of the model, m the rows of both streams, L the number of blocks.

use tenggat_plan::{
    Gpu, Machine, MemoryPart, MemoryPlan, ModelDims, Modulation, OpClass, Optimiser, Precision, StepConfig,
    StepShape, Work,
};

const DIMS: ModelDims = ModelDims::QWEN_IMAGE;
const C: f64 = 3072.0;
const L: f64 = 60.0;
const HEADS: f64 = 24.0;

/// Two pictures a batch, with activations in 16 bits.
fn config() -> StepConfig {
    StepConfig {
        dims: DIMS,
        shape: StepShape { batch: 2, image_tokens: 1000, text_tokens: 100 },
        rank: 16,
        precision: Precision::Uint(3),
        ara_rank: None,
        activation_bytes: 2.0,
        fp8_products: false,
        keep_all: 60,
        keep_results: 0,
        offloaded_blocks: 0,
        modulation: Modulation::EveryStep,
        optimiser: Optimiser::AdamW,
        accumulation: 1,
    }
}

const ROWS: f64 = 2.0 * 1100.0;

fn gpu() -> Machine {
    Machine::from(Gpu::find("H200").unwrap())
}

fn processor() -> Machine {
    Machine::uncalibrated_cpu("processor", 2, 64e9)
}

fn close(what: &str, got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-9 * expected.abs(), "{what}: {got}, expected {expected}");
}

/// Bytes that a change to the job moves from or to a part.
fn part(config: &StepConfig, machine: &Machine, part: MemoryPart) -> f64 {
    config.memory(machine).part(part)
}

#[test]
fn frozen_weights_and_their_scales() {
    let (linear, modulation) = (24.0 * C * C, 12.0 * C * C);
    let ends = 64.0 * C + 3584.0 * C + (256.0 * C + C * C) + 2.0 * C * C + 64.0 * C;
    for (precision, weight, scale) in [
        (Precision::F32, 4.0, 0.0),
        (Precision::Bf16, 2.0, 0.0),
        (Precision::Float8, 1.0, 2.0 / C),
        (Precision::Int8, 1.0, 2.0 / C),
        (Precision::Uint(5), 5.0 / 8.0, 3.0 / 64.0),
    ] {
        let all = StepConfig { precision, ..config() };
        // What lies outside the blocks is kept in 16 bits at least.
        let expected = L * (linear + modulation) * weight + ends * f64::max(weight, 2.0);
        close("weights", part(&all, &gpu(), MemoryPart::Weights), expected);
        let expected = L * (linear + modulation) * scale;
        close("scales", part(&all, &gpu(), MemoryPart::QuantisationScales), expected);
        let table = StepConfig { modulation: Modulation::Table { every_steps: 4 }, ..all };
        let expected = L * linear * weight + ends * f64::max(weight, 2.0);
        close("weights without modulation", part(&table, &gpu(), MemoryPart::Weights), expected);
        // They lie on the host then, and come from their file on a processor.
        let more = table.memory(&gpu()).host_bytes - all.memory(&gpu()).host_bytes;
        close("modulation on the host", more, L * modulation * (weight + scale));
        assert_eq!(table.memory(&processor()).host_bytes, all.memory(&processor()).host_bytes);
    }
}

#[test]
fn offloaded_blocks_leave_but_for_two() {
    let per_block = 24.0 * C * C * (3.0 / 8.0 + 3.0 / 64.0);
    for (blocks, at_work) in [(0, 0.0), (1, 1.0), (2, 2.0), (15, 2.0), (99, 2.0)] {
        let config = StepConfig { offloaded_blocks: blocks, ..config() };
        let left = blocks.min(60) as f64;
        let stored = |machine: &Machine| {
            let memory: MemoryPlan = config.memory(machine);
            memory.part(MemoryPart::Weights) + memory.part(MemoryPart::QuantisationScales)
        };
        let whole = StepConfig { offloaded_blocks: 0, ..config }.memory(&gpu());
        let all = whole.part(MemoryPart::Weights) + whole.part(MemoryPart::QuantisationScales);
        close("offloaded", all - stored(&gpu()), left * per_block);
        close("at work", part(&config, &gpu(), MemoryPart::OffloadedAtWork), at_work * per_block);
        assert_eq!(part(&config, &processor(), MemoryPart::OffloadedAtWork), 0.0);
        close("pages of the file", config.memory(&gpu()).host_bytes - whole.host_bytes, left * per_block);
        close("stored on a processor", all - stored(&processor()), left * per_block);
    }
}

#[test]
fn adapter_gradients_and_optimiser() {
    // Σ(in + out) of the 14 linears of a block is 50 c.
    let parameters = |rank: f64| L * rank * 50.0 * C;
    let of = |config: StepConfig, which| part(&config, &gpu(), which);
    // 32-bit weights and a copy of one block's in 16 bits.
    close("LoRA", of(config(), MemoryPart::Lora), parameters(16.0) * (4.0 + 2.0 / L));
    let wide = StepConfig { activation_bytes: 4.0, ..config() };
    close("LoRA of 32-bit products", of(wide, MemoryPart::Lora), parameters(16.0) * 4.0);
    close("gradients", of(config(), MemoryPart::Gradients), parameters(16.0) * 4.0);
    for (optimiser, bytes) in [
        (Optimiser::AdamW, 8.0),
        (Optimiser::AdamW8bit, 2.0 + 8.0 / 256.0),
        (Optimiser::Lion, 4.0),
        (Optimiser::Prodigy, 16.0),
        (Optimiser::Adafactor, 4.0 / 16.0),
    ] {
        let got = of(StepConfig { optimiser, ..config() }, MemoryPart::Optimiser);
        close("optimiser", got, parameters(16.0) * bytes);
    }
    let recovered = StepConfig { ara_rank: Some(8), ..config() };
    close("recovery adapter", of(recovered, MemoryPart::RecoveryAdapter), parameters(8.0) * 2.0);
    assert_eq!(of(config(), MemoryPart::RecoveryAdapter), 0.0);
    // A copy in 16 bits while it is written.
    let host = |rank| StepConfig { rank, ..config() }.memory(&gpu()).host_bytes;
    close("copy on the host", host(32) - host(16), parameters(16.0) * 2.0);
}

/// 12 c numbers per block, picture, micro-batch and step.
#[test]
fn the_table_of_modulation_grows_with_all_that_is_drawn_ahead() {
    for accumulation in [0_u32, 1, 3] {
        let levels = 2.0 * f64::from(accumulation.max(1));
        let per_step = levels * L * 12.0 * C * 2.0;
        let modulation = Modulation::Table { every_steps: 5 };
        let config = StepConfig { modulation, accumulation: accumulation.into(), ..config() };
        close("table", part(&config, &gpu(), MemoryPart::ModulationTable), 5.0 * per_step);
        assert_eq!(config.modulation_steps(), (256e6 / per_step) as u64);
    }
    let small = ModelDims { layers: 2, ..DIMS };
    assert_eq!(StepConfig { dims: small, ..config() }.modulation_steps(), 64);
    assert_eq!(StepConfig { accumulation: 1000, ..config() }.modulation_steps(), 1);
}

/// What is kept, what is recomputed, and the current block; the last is there only if any block computes
/// again.
#[test]
fn activations_by_what_a_block_keeps() {
    // 21 rows of c and 6 of the rank, and the 32-bit statistics of two norms, two head norms and the
    // attention.
    let per_block = ROWS * ((21.0 * C + 6.0 * 16.0) * 2.0 + 4.0 * (4.0 + 3.0 * HEADS));
    let results = ROWS * ((2.0 * C + 16.0) * 2.0 + 4.0 * HEADS);
    let working = 12.0 * C * ROWS * 2.0;
    close("per block", config().activation_bytes_per_block(), per_block);
    for (kept, partly) in [(60, 0), (59, 0), (59, 1), (40, 10), (0, 60), (0, 0)] {
        let config = StepConfig { keep_all: kept, keep_results: partly, ..config() };
        let of = |which| part(&config, &gpu(), which);
        let again = (60 - kept) as f64;
        let expected = kept as f64 * per_block + partly as f64 * results;
        close("kept", of(MemoryPart::KeptActivations), expected);
        close("inputs", of(MemoryPart::BlockInputs), again * ROWS * C * 2.0);
        let expected = working + if kept < 60 { per_block } else { 0.0 };
        close("at work", of(MemoryPart::BlockAtWork), expected);
    }
}

#[test]
fn workspaces_and_the_program() {
    let of = |config: &StepConfig, machine: &Machine, which| part(config, machine, which);
    let attention = |machine: &Machine| of(&config(), machine, MemoryPart::AttentionWorkspace);
    close("attention", attention(&gpu()), ROWS * 4.0 * (C + HEADS));
    assert_eq!(attention(&processor()), 0.0);
    let libraries = 2.0 * 32.0 * 1024.0 * 1024.0;
    let (dense, fp8) = (
        StepConfig { precision: Precision::Bf16, ..config() },
        StepConfig { fp8_products: true, ..config() },
    );
    let workspace = |config: &StepConfig, machine: &Machine| of(config, machine, MemoryPart::GemmWorkspace);
    close("products", workspace(&dense, &gpu()), libraries);
    close("expanded weights", workspace(&config(), &gpu()), libraries + 24.0 * C * C * 2.0);
    close("the other operand", workspace(&fp8, &gpu()), libraries + 4.0 * C * ROWS);
    close("packed activations", workspace(&dense, &processor()), 5.0 * C * ROWS * 2.0);
    assert_eq!(workspace(&config(), &processor()), 0.0);
    assert!(of(&config(), &gpu(), MemoryPart::Context) > 0.5e9);
    assert!(of(&config(), &processor(), MemoryPart::Context) > 0.01e9);
}

/// The sum is of all parts, each once, and what stands before the first step is the part of it that lasts.
#[test]
fn the_whole_is_the_sum_of_its_parts() {
    use MemoryPart::{
        AttentionWorkspace, BlockAtWork, BlockInputs, Context, GemmWorkspace, Gradients, KeptActivations,
        Lora, ModulationTable, OffloadedAtWork, Optimiser, QuantisationScales, RecoveryAdapter, Weights,
    };
    let standing = [Weights, QuantisationScales, RecoveryAdapter, Lora, Optimiser, Context];
    let passing = [
        Gradients,
        ModulationTable,
        KeptActivations,
        BlockInputs,
        BlockAtWork,
        AttentionWorkspace,
        GemmWorkspace,
        OffloadedAtWork,
    ];
    let all = StepConfig {
        ara_rank: Some(8),
        keep_all: 30,
        keep_results: 10,
        offloaded_blocks: 10,
        modulation: Modulation::Table { every_steps: 4 },
        ..config()
    };
    let memory = all.memory(&gpu());
    let sum = |parts: &[MemoryPart]| parts.iter().map(|part| memory.part(*part)).sum::<f64>();
    assert!(standing.iter().chain(&passing).all(|part| memory.part(*part) > 0.0), "{memory:?}");
    close("standing", memory.standing_bytes(), sum(&standing));
    close("all", memory.device_bytes(), sum(&standing) + sum(&passing));
    assert_eq!(memory.parts.len(), standing.len() + passing.len());
}

fn bytes(work: &Work, class: OpClass) -> f64 {
    work.of(class).bytes()
}

/// Norms, rotations, gates and GELU of both streams; the text stream ends with the attention of the last
/// block.
#[test]
fn elementwise_traffic_of_both_directions() {
    let (image, text) = (2.0 * 1000.0, 2.0 * 100.0);
    let per_pass = |before: f64, after: f64| {
        C * 2.0 * (image * L * (before + after) + text * (L * before + (L - 1.0) * after))
    };
    // Before the attention: norm 2, head norms with rotation 6. After it: gather 2, gates 6, norm 2, GELU 8.
    let forward = bytes(&config().blocks_forward(), OpClass::Elementwise);
    close("forward", forward, per_pass(2.0 + 6.0, 2.0 + 6.0 + 2.0 + 8.0));
    // Gates 6, GELU 12, norm 4, gather and scatter 4; head norms 9, norm 4.
    let backward = bytes(&config().blocks_backward(), OpClass::Elementwise);
    close("backward", backward, per_pass(9.0 + 4.0, 6.0 + 12.0 + 4.0 + 4.0));
}

/// `4·S²·c` forward and two and a half times as much backward; tensors of q, k, v, o and of their gradients.
#[test]
fn attention_of_both_directions() {
    let (forward, backward) = (config().blocks_forward(), config().blocks_backward());
    let square = L * 2.0 * 1100.0 * 1100.0 * C;
    close("forward", forward.of(OpClass::AttentionForward).flops(), 4.0 * square);
    close("backward", backward.of(OpClass::AttentionBackward).flops(), 10.0 * square);
    close("tensors", bytes(&forward, OpClass::AttentionForward), L * 4.0 * ROWS * C * 2.0);
    close("tensors and gradients", bytes(&backward, OpClass::AttentionBackward), L * 8.0 * ROWS * C * 2.0);
}

/// An offloaded block comes once a pass, but for the one at which a pass ends and the next begins.
#[test]
fn offloaded_blocks_come_in_every_pass_inference_included() {
    let stored = 24.0 * C * C * (3.0 / 8.0 + 3.0 / 64.0);
    for blocks in [0_u64, 1, 2, 15] {
        let config = StepConfig { offloaded_blocks: blocks, accumulation: 3, ..config() };
        let times = blocks.saturating_sub(1) as f64;
        close("inference", bytes(&config.inference(), OpClass::Prefetch), times * stored);
        close("step", bytes(&config.work(), OpClass::Prefetch), 3.0 * 2.0 * times * stored);
    }
}

/// The optimiser moves each parameter once a step, however many batches; a table is made once for its steps.
#[test]
fn what_is_done_once_a_step() {
    let parameters = L * 16.0 * 50.0 * C;
    for (optimiser, moved) in [
        (Optimiser::AdamW, 16.0 + 2.0 * 8.0),
        (Optimiser::AdamW8bit, 16.0 + 2.0 * (2.0 + 8.0 / 256.0)),
        (Optimiser::Lion, 16.0 + 2.0 * 4.0),
        (Optimiser::Prodigy, 16.0 + 2.0 * 16.0 + 4.0),
        (Optimiser::Adafactor, 16.0 + 2.0 * 4.0 / 16.0 + 12.0),
    ] {
        let work = StepConfig { optimiser, accumulation: 3, ..config() }.work();
        close("optimiser", bytes(&work, OpClass::Optimiser), parameters * moved);
    }
    let table = StepConfig { modulation: Modulation::Table { every_steps: 4 }, accumulation: 3, ..config() };
    let expected = L * 12.0 * C * C * (3.0 / 8.0 + 3.0 / 64.0) / 4.0;
    close("table", bytes(&table.work(), OpClass::HostTransfer), expected);
    assert_eq!(bytes(&config().work(), OpClass::HostTransfer), 0.0);
}

/// Packed weights are read and written wide, once per pass that needs them.
#[test]
fn packed_weights_are_expanded_in_every_pass() {
    let table = StepConfig { modulation: Modulation::Table { every_steps: 4 }, ..config() };
    let once = L * 24.0 * C * C * (3.0 / 8.0 + 3.0 / 64.0 + 2.0);
    close("forward", bytes(&table.blocks_forward(), OpClass::Dequantise), once);
    close("backward", bytes(&table.blocks_backward(), OpClass::Dequantise), once);
    let modulation = L * 12.0 * C * C * (3.0 / 8.0 + 3.0 / 64.0 + 2.0);
    close("with modulation", bytes(&config().blocks_forward(), OpClass::Dequantise), once + modulation);
    close("backward with modulation", bytes(&config().blocks_backward(), OpClass::Dequantise), once);
    for again in [0_u64, 20, 60] {
        let config = StepConfig { keep_all: 60 - again, ..table };
        let share = again as f64 / L;
        close("step", bytes(&config.work(), OpClass::Dequantise), (2.0 + share) * once);
    }
}
