//! Making a job fit: how many blocks keep their activations, and what to change if none may.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::dims::StepShape;
use super::memory::MemoryPlan;
use super::precision::Precision;
use super::rates::Machine;
use super::step::{Modulation, Optimiser, StepConfig};

/// Memory left free, as a share: allocators round up, other processes hold some, and a run that stops for
/// want of memory in its last step has cost everything.
const RESERVE: f64 = 0.03;

/// A change to a job that makes it smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Modulation matrices stay on the host.
    ModulationOnHost,
    /// 8-bit optimiser state.
    Adam8bit,
    /// The weights of this many blocks, of all of them, stay in their file.
    Offload(u64, u64),
    /// Coarser weights.
    Precision(Precision),
    /// A lower rank.
    Rank(u64),
    /// Fewer pictures per batch.
    Batch(u64),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ModulationOnHost => write!(f, "modulation weights on the host"),
            Self::Adam8bit => write!(f, "optimizer adamw8bit"),
            Self::Offload(blocks, layers) => {
                let share = *blocks as f64 / (*layers).max(1) as f64;
                write!(f, "layer_offloading with layer_offloading_transformer_percent {share:.2}")
            }
            Self::Precision(precision) => write!(f, "qtype {precision}"),
            Self::Rank(rank) => write!(f, "rank {rank}"),
            Self::Batch(batch) => write!(f, "batch_size {batch}"),
        }
    }
}

/// How a job fits a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// The job with as many blocks keeping their activations as fit; none if it does not fit at all.
    pub config: StepConfig,
    /// Its memory.
    pub memory: MemoryPlan,
    /// Memory that may be used.
    pub usable_bytes: f64,
    /// Whether it fits.
    pub fits: bool,
    /// If it does not: the changes that make it fit with least harm to the result. `None` if none do.
    pub nearest: Option<Nearest>,
}

/// The nearest job that fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nearest {
    /// What to change.
    pub changes: Vec<Change>,
    /// The job with these changes.
    pub config: StepConfig,
    /// Its memory.
    pub memory: MemoryPlan,
}

/// Fits a job, given by its largest bucket, into a machine, `limit_bytes` at most if given.
pub fn fit(config: &StepConfig, machine: &Machine, limit_bytes: Option<f64>) -> Fit {
    let memory_bytes = limit_bytes.map_or(machine.memory_bytes, |limit| limit.min(machine.memory_bytes));
    let usable_bytes = memory_bytes * (1.0 - RESERVE);
    match keep_most(config, machine, usable_bytes) {
        Some(config) => {
            Fit { config, memory: config.memory(machine), usable_bytes, fits: true, nearest: None }
        }
        None => {
            let config = StepConfig { keep_all: 0, keep_results: 0, ..*config };
            let nearest = nearest(&config, machine, usable_bytes);
            Fit { config, memory: config.memory(machine), usable_bytes, fits: false, nearest }
        }
    }
}

/// How many times as large as a table the matrices must be that it replaces.
const WORTHWHILE: f64 = 4.0;

impl StepConfig {
    /// How modulation is best used: as a table where that saves memory that counts, in the step otherwise.
    ///
    /// On a processor a table is also faster. On a GPU it is not: its matrices come over the host's link
    /// every time, while resident ones are read from the device's memory once a step. There it is a table
    /// only where fewer than half of the blocks could keep their activations beside the matrices.
    /// Assumed: which is faster between is not measured.
    pub fn advised_modulation(&self, machine: &Machine, limit_bytes: Option<f64>) -> Modulation {
        if !machine.shares_host_memory {
            let resident = StepConfig { modulation: Modulation::EveryStep, ..*self };
            let fit = fit(&resident, machine, limit_bytes);
            if fit.fits && 2 * fit.config.keep_all >= self.dims.layers {
                return Modulation::EveryStep;
            }
        }
        let every_steps = self.modulation_steps();
        let table_bytes = every_steps as f64 * self.table_bytes_per_step();
        if self.modulation_bytes() >= WORTHWHILE * table_bytes {
            Modulation::Table { every_steps }
        } else {
            Modulation::EveryStep
        }
    }
}

/// Keeps attention and MLP results in as many blocks as fit (they save the most time per byte), then all
/// activations in as many as still fit. `None` if the job does not fit even with every block recomputed.
fn keep_most(config: &StepConfig, machine: &Machine, usable_bytes: f64) -> Option<StepConfig> {
    let layers = config.dims.layers;
    let results = |keep_results: u64| StepConfig { keep_all: 0, keep_results, ..*config };
    let whole = |keep_all: u64| StepConfig { keep_all, keep_results: layers - keep_all, ..*config };
    let fits = |config: StepConfig| {
        let memory = config.memory(machine);
        let host_bytes = if machine.shares_host_memory { memory.host_bytes } else { 0.0 };
        memory.device_bytes() + host_bytes <= usable_bytes
    };
    if fits(whole(layers)) {
        return Some(whole(layers)); // without one that computes again, also its workspace is saved
    }
    let some = results(most(layers, |n| fits(results(n)))?);
    Some(most(layers - 1, |n| fits(whole(n))).map_or(some, whole))
}

/// The largest of 0 to `n` that fits, if 0 does. What fits grows smaller: it is found by halving.
fn most(n: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
    if !fits(0) {
        return None;
    }
    let (mut low, mut high) = (0, n + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(low)
}

/// Harm of a weight type to the result, in halvings of the rank. Assumed: 8 bits are hardly seen, 3 bits need
/// a recovery adapter, and 2 bits are the last resort.
pub(crate) fn harm(precision: Precision) -> f64 {
    match precision {
        Precision::F32 | Precision::Bf16 => 0.0,
        Precision::Float8 | Precision::Int8 => 0.5,
        Precision::Nf4 => 1.5,
        Precision::Uint(bits) => match bits {
            7.. => 0.6,
            6 => 0.8,
            5 => 1.2,
            4 => 1.8,
            3 => 2.6,
            _ => 6.0,
        },
    }
}

/// What reading weights again and again costs, in halvings of the rank: it takes steps from a budget, and
/// changes nothing else. Assumed.
fn slowness(more_offloaded: u64, layers: u64) -> f64 {
    if more_offloaded == 0 { 0.0 } else { 0.2 + 0.8 * more_offloaded as f64 / layers.max(1) as f64 }
}

/// Harm of a change, in halvings of the rank.
fn penalty(from: &StepConfig, to: &StepConfig) -> f64 {
    harm(to.precision) - harm(from.precision)
        + f64::from(from.rank.ilog2() - to.rank.ilog2())
        + 0.4 * f64::from(from.shape.batch.ilog2() - to.shape.batch.ilog2())
        + if to.optimiser == from.optimiser { 0.0 } else { 0.1 }
        + slowness(to.offloaded_blocks - from.offloaded_blocks, from.dims.layers)
}

/// `n`, and halved again and again while it is `least` or more.
fn halvings(n: u64, least: u64) -> impl Iterator<Item = u64> {
    (0..64).map(move |times| n >> times).take_while(move |n| *n >= least)
}

/// Coarser weights or as coarse, never finer: a finer base would make the job larger.
fn coarser(config: StepConfig) -> impl Iterator<Item = StepConfig> {
    let no_finer = move |p: &Precision| p.bytes_per_weight() <= config.precision.bytes_per_weight();
    Precision::ALL.into_iter().filter(no_finer).map(move |precision| StepConfig { precision, ..config })
}

fn lower_rank(config: StepConfig) -> impl Iterator<Item = StepConfig> {
    halvings(config.rank, config.rank.clamp(1, 4)).map(move |rank| StepConfig { rank, ..config })
}

fn smaller_batch(config: StepConfig) -> impl Iterator<Item = StepConfig> {
    let with = move |batch| StepConfig { shape: StepShape { batch, ..config.shape }, ..config };
    halvings(config.shape.batch, 1).map(with)
}

fn smaller_state(config: StepConfig) -> impl Iterator<Item = StepConfig> {
    let smaller = (config.optimiser == Optimiser::AdamW).then_some(Optimiser::AdamW8bit);
    std::iter::once(config).chain(smaller.map(|optimiser| StepConfig { optimiser, ..config }))
}

/// As many blocks offloaded as are, or more, in quarters of all.
fn offloaded(config: StepConfig, machine: &Machine) -> impl Iterator<Item = StepConfig> {
    let (now, layers) = (config.offloaded_blocks, config.dims.layers);
    let possible = config.precision.is_quantised() && !config.fp8_products && !machine.shares_host_memory;
    let quarters = (1..=4).map(move |quarter| quarter * layers / 4).filter(move |n| possible && *n > now);
    std::iter::once(now)
        .chain(quarters)
        .map(move |offloaded_blocks| StepConfig { offloaded_blocks, ..config })
}

fn nearest(config: &StepConfig, machine: &Machine, usable_bytes: f64) -> Option<Nearest> {
    let modulation = match config.modulation {
        Modulation::EveryStep => Modulation::Table { every_steps: 64 },
        table => table,
    };
    let mut candidates: Vec<StepConfig> = coarser(StepConfig { modulation, ..*config })
        .flat_map(lower_rank)
        .flat_map(smaller_batch)
        .flat_map(smaller_state)
        .flat_map(|candidate| offloaded(candidate, machine))
        .collect();
    candidates.sort_by(|a, b| penalty(config, a).total_cmp(&penalty(config, b)));
    let fitting = candidates.iter().find_map(|candidate| keep_most(candidate, machine, usable_bytes));
    fitting.map(|fitting| Nearest {
        changes: changes(config, &fitting),
        config: fitting,
        memory: fitting.memory(machine),
    })
}

/// What a job has to change to become another.
fn changes(from: &StepConfig, to: &StepConfig) -> Vec<Change> {
    let (offloaded, layers) = (to.offloaded_blocks, to.dims.layers);
    let all = [
        (to.modulation != from.modulation, Change::ModulationOnHost),
        (to.optimiser != from.optimiser, Change::Adam8bit),
        (to.precision != from.precision, Change::Precision(to.precision)),
        (offloaded != from.offloaded_blocks, Change::Offload(offloaded, layers)),
        (to.rank != from.rank, Change::Rank(to.rank)),
        (to.shape.batch != from.shape.batch, Change::Batch(to.shape.batch)),
    ];
    all.into_iter().filter(|(made, _)| *made).map(|(_, change)| change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{MemoryPart, ModelDims, OpClass};
    use crate::gpu::Gpu;

    fn job(rank: u64, precision: Precision) -> StepConfig {
        StepConfig {
            dims: ModelDims::QWEN_IMAGE,
            shape: StepShape { batch: 1, image_tokens: 4096, text_tokens: 128 },
            rank,
            precision,
            ara_rank: None,
            activation_bytes: 2.0,
            fp8_products: false,
            keep_all: 0,
            keep_results: 0,
            offloaded_blocks: 0,
            modulation: Modulation::Table { every_steps: 64 },
            optimiser: Optimiser::AdamW8bit,
            accumulation: 1,
        }
    }

    fn on(gpu: &str) -> Machine {
        Machine::from(Gpu::find(gpu).unwrap())
    }

    #[test]
    fn nothing_is_recomputed_on_80_gb() {
        let fit = fit(&job(128, Precision::Bf16), &on("h100 sxm"), None);
        assert!(fit.fits);
        assert_eq!(fit.config.keep_all, 60);
        // 13.6 G linear weights in bf16; 1.18 G parameters with 4-byte gradients.
        assert!((fit.memory.part(MemoryPart::Weights) / 27.3e9 - 1.0).abs() < 0.02);
        assert!((fit.memory.part(MemoryPart::Gradients) / 4.72e9 - 1.0).abs() < 0.01);
    }

    #[test]
    fn an_unquantised_base_with_modulation_needs_more_than_40_gb() {
        let all = StepConfig { modulation: Modulation::EveryStep, ..job(16, Precision::Bf16) };
        assert!(all.memory(&on("a100 40")).device_bytes() > 40e9);
        assert!(!fit(&all, &on("a100 40"), None).fits);
    }

    #[test]
    fn a_24_gb_card_takes_float8_at_moderate_rank() {
        let fit = fit(&job(16, Precision::Float8), &on("4090"), None);
        assert!(fit.fits, "{:?}", fit.memory);
        assert!(fit.config.keep_all > 0 && fit.config.keep_all < 60);
    }

    #[test]
    fn what_does_not_fit_names_the_nearest_that_does() {
        let machine = on("4090");
        let fit = fit(&job(128, Precision::Bf16), &machine, None);
        assert!(!fit.fits);
        let nearest = fit.nearest.unwrap();
        assert!(nearest.memory.device_bytes() <= fit.usable_bytes);
        assert!(!nearest.changes.is_empty());
        // Undoing any one change makes it too large again, else it was not the nearest.
        for change in &nearest.changes {
            let original = job(128, Precision::Bf16);
            let mut undone = nearest.config;
            match change {
                Change::Precision(_) => undone.precision = original.precision,
                Change::Rank(_) => undone.rank = original.rank,
                Change::Batch(_) => undone.shape.batch = original.shape.batch,
                Change::Adam8bit => undone.optimiser = original.optimiser,
                Change::Offload(..) => undone.offloaded_blocks = 0,
                Change::ModulationOnHost => undone.modulation = original.modulation,
            }
            assert!(keep_most(&undone, &machine, fit.usable_bytes).is_none(), "{change}");
        }
    }

    /// Rather than to 2 bits, weights of 3 go to their file, as many quarters of the blocks as must, but for
    /// the two at work. They come over the host's link for each pass but at its turn, while others are at
    /// work, or longer than that.
    #[test]
    fn weights_leave_a_card_that_has_no_room_for_them() {
        let machine = Machine { memory_bytes: 9.5e9, ..on("4090") };
        let fit = fit(&job(16, Precision::Uint(3)), &machine, None);
        assert!(!fit.fits);
        let nearest = fit.nearest.unwrap();
        let [Change::Offload(blocks, 60)] = nearest.changes[..] else { panic!("{:?}", nearest.changes) };
        let per_block = job(16, Precision::Uint(3)).dims.linear_weights_per_block();
        let weights = |config: StepConfig| config.memory(&machine).part(MemoryPart::Weights);
        let kept = StepConfig { offloaded_blocks: 0, keep_all: 0, keep_results: 0, ..nearest.config };
        let offloaded = StepConfig { offloaded_blocks: blocks, ..kept };
        assert!((weights(kept) - weights(offloaded) - blocks as f64 * per_block * 3.0 / 8.0).abs() < 1.0);
        let stored = per_block * (3.0 / 8.0 + 3.0 / 64.0);
        let transfers = |config: StepConfig| config.work().of(OpClass::Prefetch);
        assert_eq!(transfers(kept).bytes(), 0.0);
        let expected = 2.0 * (blocks - 1) as f64 * stored;
        let bytes = transfers(offloaded).bytes();
        assert!((bytes / expected - 1.0).abs() < 1e-3, "{bytes} {expected}");
        let at_work = offloaded.memory(&machine).part(MemoryPart::OffloadedAtWork);
        assert!((at_work / (2.0 * stored) - 1.0).abs() < 1e-3, "{at_work} {stored}");
        let seconds = |config: StepConfig, machine: &Machine| machine.rates.step_seconds(&config.work());
        assert_eq!(seconds(offloaded, &machine), seconds(kept, &machine));
        let mut slow = machine.clone();
        slow.rates.host_bytes_per_s = bytes / 100.0;
        assert!((seconds(offloaded, &slow) - 100.0 - slow.rates.step_s).abs() < 1e-6);
        assert!(nearest.changes[0].to_string().contains("layer_offloading_transformer_percent 0."));
        // What is not quantised does not lie in a file, and a processor's memory is the host's.
        let dense = StepConfig { precision: Precision::Bf16, ..offloaded };
        assert_eq!(weights(dense), weights(StepConfig { offloaded_blocks: 0, ..dense }));
    }

    #[test]
    fn more_blocks_keep_more_and_never_over_the_limit() {
        for limit_gb in [26.0, 32.0, 40.0, 48.0, 60.0, 80.0] {
            let fit = fit(&job(64, Precision::Float8), &on("h200"), Some(limit_gb * 1e9));
            assert!(fit.fits);
            assert!(fit.memory.device_bytes() <= 0.97 * limit_gb * 1e9);
            if fit.config.keep_all < 60 {
                let more = StepConfig { keep_all: fit.config.keep_all + 1, ..fit.config };
                assert!(more.memory(&on("h200")).device_bytes() > 0.97 * limit_gb * 1e9);
            }
        }
    }

    #[test]
    fn a_hopeless_job_has_no_nearest() {
        let fit = fit(&job(16, Precision::Bf16), &on("4090"), Some(1e9));
        assert!(!fit.fits && fit.nearest.is_none());
    }

    #[test]
    fn a_table_replaces_large_matrices_and_not_small_ones() {
        let of = |dims| StepConfig {
            dims,
            shape: StepShape { batch: 1, image_tokens: 256, text_tokens: 128 },
            activation_bytes: 4.0,
            modulation: Modulation::EveryStep,
            optimiser: Optimiser::AdamW,
            ..job(16, Precision::Uint(3))
        };
        let large = of(ModelDims::QWEN_IMAGE);
        let machine = Machine::uncalibrated_cpu("cpu", 2, 24e9);
        let advised = |config: StepConfig| config.advised_modulation(&machine, None);
        let Modulation::Table { every_steps } = advised(large) else { panic!("no table") };
        // 60 blocks · 12 · 3072 · 4 bytes = 8.8 MB a step.
        assert_eq!(every_steps, 28);
        let bytes = |config: StepConfig| config.memory(&machine).device_bytes();
        let table = StepConfig { modulation: advised(large), ..large };
        let saved = large.modulation_bytes() - 28.0 * 60.0 * 12.0 * 3072.0 * 4.0;
        assert!((bytes(large) - bytes(table) - saved).abs() < 1.0);
        let many = StepConfig { shape: StepShape { batch: 64, ..large.shape }, ..large };
        assert_eq!(many.modulation_steps(), 1);
        let small = ModelDims { layers: 6, heads: 6, head_dim: 32, ..ModelDims::QWEN_IMAGE };
        assert_eq!(advised(of(small)), Modulation::EveryStep);
        // 41 GB of bf16 weights and all activations fit 141 GB and not 24.
        let bf16 = StepConfig { precision: Precision::Bf16, activation_bytes: 2.0, ..large };
        let on = |name, memory_bytes| bf16.advised_modulation(&Machine::gpu(name, memory_bytes), None);
        assert_eq!(on("NVIDIA H200", 141e9), Modulation::EveryStep);
        assert_ne!(on("NVIDIA GeForce RTX 4090", 24e9), Modulation::EveryStep);
    }

    /// With more memory first every block keeps its results, then the last ones keep everything; each makes
    /// the step shorter.
    #[test]
    fn results_are_kept_before_whole_blocks() {
        let least = job(16, Precision::Uint(3)).memory(&on("4090")).device_bytes();
        let mut before = f64::INFINITY;
        let mut seen = [false; 3];
        for more_gb in 1..40 {
            let limit = (least + f64::from(more_gb) * 1e9) / (1.0 - RESERVE);
            let config = fit(&job(16, Precision::Uint(3)), &on("h200"), Some(limit)).config;
            let (whole, results) = (config.keep_all, config.keep_results);
            assert!(whole == 0 || whole + results == 60, "{whole} {results}");
            seen[usize::from(whole > 0) + usize::from(whole == 60)] = true;
            let seconds = on("h200").rates.step_seconds(&config.work());
            assert!(seconds <= before, "{more_gb} GB: {seconds} s, {before} s with less");
            before = seconds;
        }
        assert_eq!(seen, [true; 3]);
    }

    /// The largest number that fits, both ends included.
    #[test]
    fn halving_finds_the_largest_that_fits() {
        for n in 0..9 {
            assert_eq!(most(n, |_| true), Some(n));
            assert_eq!(most(n, |_| false), None);
            for limit in 0..n {
                assert_eq!(most(n, |tried| tried <= limit), Some(limit), "{n}");
            }
        }
    }

    /// A limit between that of all results and that of one whole block leaves every block its results.
    #[test]
    fn all_blocks_may_keep_their_results_and_none_all_of_it() {
        let (config, machine) = (job(16, Precision::Uint(3)), on("h200"));
        let bytes = |keep_all, keep_results| {
            StepConfig { keep_all, keep_results, ..config }.memory(&machine).device_bytes()
        };
        assert!(bytes(0, 60) < bytes(1, 59));
        for (between, expected) in [
            ([bytes(0, 60), bytes(1, 59)], (0, 60)),
            ([bytes(0, 59), bytes(0, 60)], (0, 59)),
            ([bytes(0, 0), bytes(0, 1)], (0, 0)),
            ([bytes(1, 59), bytes(2, 58)], (1, 59)),
        ] {
            let limit = (between[0] + between[1]) / 2.0 / (1.0 - RESERVE);
            let kept = fit(&config, &machine, Some(limit)).config;
            assert_eq!((kept.keep_all, kept.keep_results), expected);
        }
        let all = bytes(60, 0) * 1.001 / (1.0 - RESERVE);
        assert_eq!(fit(&config, &machine, Some(all)).config.keep_all, 60);
        let none = bytes(0, 0) * 0.999 / (1.0 - RESERVE);
        assert!(!fit(&config, &machine, Some(none)).fits);
    }

    /// A processor's memory holds what stands around the run as well.
    #[test]
    fn a_processor_has_room_for_the_host_part_too() {
        let machine = Machine::uncalibrated_cpu("cpu", 2, 1e12);
        let config = StepConfig { activation_bytes: 4.0, ..job(16, Precision::Uint(3)) };
        let least = config.memory(&machine);
        let needed = (least.device_bytes() + least.host_bytes) / (1.0 - RESERVE);
        assert!(least.host_bytes > 0.5e9);
        assert!(fit(&config, &machine, Some(needed * 1.0001)).fits);
        assert!(!fit(&config, &machine, Some(needed * 0.9999)).fits);
    }

    /// A limit above the machine's own memory gives none.
    #[test]
    fn the_smaller_of_limit_and_memory_rules() {
        let machine = Machine { memory_bytes: 10e9, ..on("h200") };
        let usable = |limit| fit(&job(16, Precision::Uint(3)), &machine, limit).usable_bytes;
        assert_eq!(usable(None), 10e9 * (1.0 - RESERVE));
        assert_eq!(usable(Some(40e9)), usable(None));
        assert_eq!(usable(Some(5e9)), 5e9 * (1.0 - RESERVE));
    }

    /// Each halving of rank and batch, each step of precision, 8-bit state and offloading has its price.
    #[test]
    fn every_change_has_its_price() {
        let from = StepConfig {
            shape: StepShape { batch: 4, ..job(16, Precision::Bf16).shape },
            optimiser: Optimiser::AdamW,
            ..job(64, Precision::Bf16)
        };
        let to = |change: Change| match change {
            Change::Batch(batch) => StepConfig { shape: StepShape { batch, ..from.shape }, ..from },
            Change::Rank(rank) => StepConfig { rank, ..from },
            Change::Precision(precision) => StepConfig { precision, ..from },
            Change::Adam8bit => StepConfig { optimiser: Optimiser::AdamW8bit, ..from },
            Change::Offload(offloaded_blocks, _) => StepConfig { offloaded_blocks, ..from },
            Change::ModulationOnHost => from,
        };
        let coarse = Precision::Float8;
        for (change, expected) in [
            (Change::ModulationOnHost, 0.0),
            (Change::Batch(2), 0.4),
            (Change::Batch(1), 0.8),
            (Change::Rank(16), 2.0),
            (Change::Precision(coarse), harm(coarse)),
            (Change::Adam8bit, 0.1),
            (Change::Offload(30, 60), 0.2 + 0.8 / 2.0),
        ] {
            let price = penalty(&from, &to(change));
            assert!((price - expected).abs() < 1e-12, "{change}: {price}, expected {expected}");
        }
        let harms: Vec<f64> = Precision::ALL.into_iter().map(harm).collect();
        assert!(harms.is_sorted() && harms[0] == 0.0, "{harms:?}");
    }

    /// A batch that fits with weights of 8 bits stays whole: halving it would be the more expensive change.
    #[test]
    fn a_batch_that_fits_by_coarser_weights_alone_is_kept() {
        let shape = StepShape { batch: 4, image_tokens: 1024, text_tokens: 128 };
        let from = StepConfig { shape, ..job(4, Precision::Bf16) };
        let machine = on("h200");
        let least = |precision| StepConfig { precision, ..from }.memory(&machine).device_bytes();
        // More than 8 bits need and less than any batch needs without them.
        let single = StepConfig { shape: StepShape { batch: 1, ..shape }, ..from };
        assert!(least(Precision::Float8) * 1.01 < single.memory(&machine).device_bytes());
        let limit = least(Precision::Float8) * 1.01 / (1.0 - RESERVE);
        let nearest = fit(&from, &machine, Some(limit)).nearest.unwrap();
        assert_eq!(nearest.config.shape.batch, 4);
        assert_eq!(nearest.changes, [Change::Precision(Precision::Float8)]);
    }
}
