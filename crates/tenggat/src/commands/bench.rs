//! `tenggat bench step`: a training step of a model of any size, measured and held against the plan.

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tenggat_gpu::Cuda;
use tenggat_models::qwen_image::geometry::TOKEN_PX;
use tenggat_models::transformer::{
    Config, LoadOptions, ModulationStorage, Precision, Recompute, Transformer,
};
use tenggat_models::weights::Quantisation;
use tenggat_plan::{Clock, Fit, MemoryPart, MemoryPlan, Modulation, StepConfig, WallClock, fit};
use tenggat_tensor::weight::Format;
use tenggat_tensor::{DType, Device};
use tenggat_train::plan::bench::{Measured, News, StepBench, StepTime, product_flops_per_s};
use tenggat_train::plan::calibrate::timing::median;
use tenggat_train::step::Part;

use super::model::locate;
use crate::device::{self, Choice};
use crate::number::{MOST_RANK, whole};
use crate::output::{self, Bar, note, warning};
use crate::processor;
use crate::{assets, process};

/// Name that stands for the published dimensions; it needs no file.
const QWEN_IMAGE: &str = "qwen-image";

/// `tenggat bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run training steps of a model of any size and compare what they take with the plan.
    #[command(after_help = "\
Examples:
  tenggat bench step --model qwen-image --random-weights --qtype uint3 --rank 16 --resolution 256 --steps 1
  tenggat bench step --model qwen-image --random-weights --layers 8 --qtype float8 --json")]
    Step(StepArgs),
}

#[derive(Debug, Args)]
struct StepArgs {
    /// `qwen-image` for the published dimensions, `mini`, a model folder, or a hub id.
    #[arg(long, default_value = QWEN_IMAGE)]
    model: String,
    /// Generate the weights instead of reading them: no file is needed.
    #[arg(long)]
    random_weights: bool,
    /// Blocks, instead of the model's; with random weights.
    #[arg(long, value_name = "N", requires = "random_weights", value_parser = whole::<usize>(1, 1000))]
    layers: Option<usize>,
    /// How frozen matrices are stored: uint2 to uint7, qfloat8, float8, qint8, int8, or bf16.
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    qtype: String,
    /// Multiply the frozen linears in 8-bit floats, if the GPU supports it, whatever --qtype is. Products are
    /// then off by a few percent.
    #[arg(long)]
    fp8_products: bool,
    /// Rank of the LoRA.
    #[arg(long, default_value_t = 16, value_parser = whole::<usize>(1, MOST_RANK as u64))]
    rank: usize,
    /// Side of the square pictures, pixels.
    #[arg(long, value_name = "PIXELS", default_value_t = 1024, value_parser = whole::<usize>(32, 8192))]
    resolution: usize,
    /// Text tokens of the captions.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = whole::<usize>(1, 4096))]
    text_tokens: usize,
    /// Pictures per step.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>(1, 1024))]
    batch: usize,
    /// Optimiser.
    #[arg(long, value_enum, default_value_t = Adam::Adamw)]
    optimizer: Adam,
    /// Whether blocks recompute their activations instead of keeping them; `auto`: those that do not fit.
    #[arg(long, value_enum, default_value_t = RecomputeArg::Auto)]
    gradient_checkpointing: RecomputeArg,
    /// Whether the modulation matrices stay in memory; `auto`: unless the plan advises against it.
    #[arg(long, value_enum, default_value_t = Storage::Auto)]
    modulation: Storage,
    /// Blocks whose weights stay in their file and are read for each pass; with quantised weights of a model.
    #[arg(
        long, value_name = "N", default_value_t = 0, conflicts_with = "random_weights",
        value_parser = whole::<usize>(0, 1000)
    )]
    offloaded_blocks: usize,
    /// Launch every kernel on its own, without CUDA graphs.
    #[arg(long)]
    direct: bool,
    /// Memory that may be used: 14GB, 22.5GiB (default: half of the machine's).
    #[arg(long, value_name = "MEMORY", value_parser = tenggat_plan::parse_bytes)]
    memory_limit: Option<f64>,
    /// Steps before the measured ones.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>(0, 1_000_000))]
    warm_up: usize,
    /// Steps to measure.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>(1, 1_000_000))]
    steps: usize,
    /// Start no more steps after this time, loading included: 60s, 4.5m.
    #[arg(long, value_name = "TIME", value_parser = tenggat_plan::parse_duration_s)]
    seconds: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print a line of JSON after each step, then one with everything measured; a run that is cut off leaves
    /// its lines.
    #[arg(long, conflicts_with = "json")]
    json_lines: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Adam {
    Adamw,
    Adamw8bit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RecomputeArg {
    Auto,
    True,
    False,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Storage {
    Auto,
    Resident,
    Streamed,
}

/// What came out, as JSON says it.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    machine: String,
    model: String,
    blocks: usize,
    block_weights: f64,
    random_weights: bool,
    qtype: String,
    fp8_products: bool,
    rank: usize,
    resolution: usize,
    text_tokens: usize,
    batch: usize,
    kept_blocks: u64,
    /// Blocks that keep the results of attention and MLP and recompute the rest.
    result_blocks: u64,
    /// Steps whose modulation is worked out together; null if its matrices are resident.
    steps_ahead: Option<usize>,
    /// Whether a GPU was asked for whole passes.
    recorded: bool,
    /// How a GPU does attention: `cudnn` or `own`; null on a CPU.
    attention: Option<&'static str>,
    /// What a GPU is used with, and without what; null on a CPU.
    libraries: Option<String>,
    without: Option<String>,
    /// What makes it slower than it could be.
    notes: Vec<String>,
    /// Seconds until the weights were there.
    load_s: f64,
    /// Seconds of the steps that warmed up, and of those that count, without modulation ahead of the step.
    warm_up_s: Vec<f64>,
    steps_s: Vec<f64>,
    seconds: Seconds,
    /// Processor seconds of a step, all threads together, without modulation; null where the system does not
    /// say.
    processor_s: Option<f64>,
    /// Of the step, by the plan's count.
    tflop: f64,
    tflop_per_s: f64,
    /// Of a large dense product of the device's own type, measured before.
    product_tflop_per_s: f64,
    share_of_product: f64,
    memory: Memory,
}

/// A line of JSON for each step, as it ends.
#[derive(Debug, Serialize)]
struct StepLine {
    /// From 1, those that warm up included.
    step: usize,
    warm_up: bool,
    forward_s: f64,
    backward_s: f64,
    update_s: f64,
    loss: f64,
    /// Whether a GPU has captured such a step.
    recorded: bool,
}

/// Medians over the steps that count.
#[derive(Debug, Serialize)]
struct Seconds {
    /// One step's share of the modulation ahead of it.
    modulation: f64,
    forward: f64,
    backward: f64,
    update: f64,
    step: f64,
}

#[derive(Debug, Serialize)]
struct Memory {
    planned_bytes: f64,
    /// Peak of the resident set, on a GPU of its memory; null where the system does not say.
    measured_bytes: Option<u64>,
    /// Planned over measured, less 1.
    error: Option<f64>,
    plan: MemoryPlan,
}

/// Runs a benchmark.
pub fn bench(args: &BenchArgs, choice: Choice) -> anyhow::Result<()> {
    match &args.what {
        What::Step(args) => step(args, choice),
    }
}

fn step(args: &StepArgs, choice: Choice) -> anyhow::Result<()> {
    let device = device::open(choice)?;
    let (bench, fit) = chosen(args, &device)?;
    let clock = WallClock::start();
    let product = product_flops_per_s(&device, &clock, bench.model.inner())?;
    let until_s = args.seconds.map(|seconds| clock.now_s() + seconds);
    let bar = Bar::spinner();
    bar.set_message("weights");
    let began_s = clock.now_s();
    let model = if args.random_weights { bench.random_model(&device)? } else { load(args, &bench, &device)? };
    let load_s = clock.now_s() - began_s;
    note!("weights: {:.2} GB in {load_s:.1} s", model.weight_bytes() as f64 / 1e9);
    let (mut processor, mut before_s) = (Vec::new(), process::processor_s());
    let mut show = |news: News| match news {
        News::Modulation(steps, seconds) => {
            before_s = process::processor_s();
            note!("modulation of {steps} steps: {seconds:.1} s");
        }
        News::Part(step, part, seconds) => {
            if part == Part::Update {
                let now_s = process::processor_s();
                processor.extend(now_s.zip(before_s).map(|(now_s, before_s)| now_s - before_s));
                before_s = now_s;
            }
            note!("step {step}, {}: {seconds:.1} s", name(part));
            bar.set_message(&format!("step {step} of {}", args.warm_up + args.steps));
        }
        News::Step(step, time, recorded) if args.json_lines => {
            let StepTime { forward_s, backward_s, update_s, loss, .. } = time;
            let warm_up = step <= args.warm_up;
            let line = StepLine { step, warm_up, forward_s, backward_s, update_s, loss, recorded };
            // A closed output is reported at the end.
            let _ = output::json_line(&line);
        }
        News::Step(..) => {}
    };
    let measured = bench.measure(&model, &clock, (args.warm_up, args.steps), until_s, &mut show)?;
    drop(bar);
    measured.notes.iter().for_each(|note| warning!("{note}"));
    let processor = processor.get(args.warm_up..).filter(|steps| !steps.is_empty()).map(median);
    let report = report(args, &bench, &fit, &measured, (load_s, product, processor), &device);
    if args.json_lines {
        output::json_line(&report)?;
    } else if args.json {
        output::json(&report)?;
    } else {
        output::block(&table(&report));
    }
    Ok(())
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Forward => "forward",
        Part::Backward => "backward",
        Part::Update => "update",
    }
}

/// The step that the arguments describe, with what the plan chooses for it.
fn chosen(args: &StepArgs, device: &Device) -> anyhow::Result<(StepBench, Fit)> {
    let format = match args.qtype.as_str() {
        "bf16" => None,
        name => Some(name.parse::<Format>().context("--qtype")?),
    };
    let mut model = config(args)?;
    model.num_layers = args.layers.unwrap_or(model.num_layers);
    let patches = args.resolution / TOKEN_PX;
    if args.fp8_products && !device.fp8_products() {
        warning!("--fp8-products has no effect: this device does not multiply 8-bit floats");
    }
    let mut bench = StepBench {
        model,
        format,
        fp8_products: args.fp8_products && device.fp8_products(),
        rank: args.rank,
        grid: (patches, patches),
        text_tokens: args.text_tokens,
        batch: args.batch,
        adam_8bit: args.optimizer == Adam::Adamw8bit,
        compute: device.activations(),
        recompute: Recompute::EVERYTHING,
        modulation_steps: None,
        direct: args.direct,
    };
    let mut config = bench.step_config();
    let machine = device::machine(device)?;
    let usable_bytes = if machine.shares_host_memory { processor::usable_bytes() } else { None };
    let limit_bytes = args.memory_limit.or(usable_bytes).unwrap_or(machine.memory_bytes);
    config.modulation = match args.modulation {
        Storage::Auto => config.advised_modulation(&machine, Some(limit_bytes)),
        Storage::Resident => Modulation::EveryStep,
        Storage::Streamed => Modulation::Table { every_steps: config.modulation_steps() },
    };
    let mut fit = fit(&config, &machine, Some(limit_bytes));
    match args.gradient_checkpointing {
        RecomputeArg::Auto => {}
        RecomputeArg::True => (fit.config.keep_all, fit.config.keep_results) = (0, 0),
        RecomputeArg::False => (fit.config.keep_all, fit.config.keep_results) = (config.dims.layers, 0),
    }
    fit.memory = fit.config.memory(&machine);
    let needed_bytes = fit.memory.device_bytes() + fit.memory.host_bytes;
    // Beyond what there is the system ends the process, whatever the limit was.
    ensure!(
        !machine.shares_host_memory || machine.memory_bytes <= 0.0 || needed_bytes <= machine.memory_bytes,
        "about {:.1} GB are needed, and this machine has {:.1} GB; take fewer --layers, a smaller --batch, \
         --resolution or --qtype",
        needed_bytes / 1e9,
        machine.memory_bytes / 1e9
    );
    if !fit.fits {
        warning!(
            "about {:.1} GB are needed, more than {:.1} GB",
            fit.memory.device_bytes() / 1e9,
            limit_bytes / 1e9
        );
    }
    let StepConfig { keep_all, keep_results, .. } = fit.config;
    bench.recompute = Recompute { keep_all: keep_all as usize, keep_results: keep_results as usize };
    bench.modulation_steps = match fit.config.modulation {
        Modulation::EveryStep => None,
        Modulation::Table { every_steps } => Some(every_steps as usize),
    };
    Ok((bench, fit))
}

/// Dimensions of the model that is named.
fn config(args: &StepArgs) -> anyhow::Result<Config> {
    if args.model == QWEN_IMAGE {
        if !args.random_weights {
            bail!(
                "`--model {QWEN_IMAGE}` names dimensions, not files; add --random-weights, or name a folder"
            );
        }
        return Ok(Config::qwen_image());
    }
    Ok(Config::read(&locate(&args.model)?.join("transformer"))?)
}

/// The model's own weights.
fn load(args: &StepArgs, bench: &StepBench, device: &Device) -> anyhow::Result<Transformer> {
    let cache = assets::cache_folder()?;
    let quantisation = bench.format.map(|format| Quantisation { format, recovery: None, cache: Some(cache) });
    let modulation = match bench.modulation_steps {
        Some(_) => ModulationStorage::Streamed,
        None => ModulationStorage::Resident,
    };
    let offloaded_blocks = args.offloaded_blocks;
    let quantisation = quantisation.as_ref();
    let fp8_products = bench.fp8_products;
    let options =
        LoadOptions { quantisation, modulation, fp8_products, offloaded_blocks, ..LoadOptions::default() };
    let precision = Precision { compute: bench.compute, weights: DType::BF16 };
    Ok(Transformer::load_with(&locate(&args.model)?.join("transformer"), device, precision, options)?)
}

fn report(
    args: &StepArgs,
    bench: &StepBench,
    fit: &Fit,
    measured: &Measured,
    (load_s, product, processor_s): (f64, f64, Option<f64>),
    device: &Device,
) -> Report {
    let of = |part: fn(&StepTime) -> f64| median(&measured.steps.iter().map(part).collect::<Vec<_>>());
    let modulation = match bench.modulation_steps {
        Some(steps) => median(&measured.modulation_s) / steps as f64,
        None => 0.0,
    };
    let seconds = Seconds {
        modulation,
        forward: of(|step| step.forward_s),
        backward: of(|step| step.backward_s),
        update: of(|step| step.update_s),
        step: modulation + of(StepTime::total_s),
    };
    let flops = fit.config.work().flops();
    let planned_bytes = fit.memory.device_bytes();
    let measured_bytes = match device {
        Device::Cpu(_) => process::peak_bytes(),
        // What the planned context takes is not the process's own.
        Device::Cuda(_) => Some(device.peak_bytes() as u64 + fit.memory.part(MemoryPart::Context) as u64),
    };
    let totals = |steps: &[StepTime]| steps.iter().map(StepTime::total_s).collect();
    Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: device.description().unwrap_or_else(processor::name),
        model: args.model.clone(),
        blocks: bench.model.num_layers,
        block_weights: fit.config.dims.block_weights(),
        random_weights: args.random_weights,
        qtype: args.qtype.clone(),
        fp8_products: bench.fp8_products,
        rank: args.rank,
        resolution: args.resolution,
        text_tokens: args.text_tokens,
        batch: args.batch,
        kept_blocks: fit.config.keep_all,
        result_blocks: fit.config.partly_recomputed_blocks(),
        steps_ahead: bench.modulation_steps,
        recorded: measured.captured_passes > 0,
        attention: gpu(device).map(|gpu| if attention_is_fused(gpu) { "cudnn" } else { "own" }),
        libraries: gpu(device).map(Cuda::versions),
        without: gpu(device).map(|gpu| format!("{:?}", gpu.without())),
        notes: measured.notes.iter().cloned().chain(gpu(device).into_iter().flat_map(Cuda::notes)).collect(),
        load_s,
        warm_up_s: totals(&measured.warm_up),
        steps_s: totals(&measured.steps),
        tflop: flops / 1e12,
        tflop_per_s: flops / seconds.step / 1e12,
        product_tflop_per_s: product / 1e12,
        share_of_product: flops / seconds.step / product,
        seconds,
        processor_s,
        memory: Memory {
            planned_bytes,
            measured_bytes,
            error: measured_bytes.map(|bytes| planned_bytes / bytes as f64 - 1.0),
            plan: fit.memory.clone(),
        },
    }
}

fn gpu(device: &Device) -> Option<&Cuda> {
    match device {
        Device::Cuda(gpu) => Some(gpu),
        Device::Cpu(_) => None,
    }
}

/// Whether attention ran on cuDNN: it is installed, and nothing was noted about it.
fn attention_is_fused(gpu: &Cuda) -> bool {
    gpu.dnn().is_some() && !gpu.notes().iter().any(|note| note.starts_with("attention"))
}

fn table(report: &Report) -> String {
    let weights = report.block_weights / 1e9;
    let mut rows = vec![
        ("machine", report.machine.clone()),
        ("model", format!("{}, {} blocks, {weights:.2} G weights", report.model, report.blocks)),
        (
            "weights",
            format!(
                "{}{}, there in {:.1} s",
                report.qtype,
                if report.fp8_products { ", multiplied in 8-bit floats" } else { "" },
                report.load_s
            ),
        ),
        (
            "step",
            format!(
                "{0}×{0} pixels, {1} text tokens, batch {2}, rank {3}",
                report.resolution, report.text_tokens, report.batch, report.rank
            ),
        ),
        (
            "activations",
            format!(
                "kept in {} of {} blocks, some of them in {}",
                report.kept_blocks, report.blocks, report.result_blocks
            ),
        ),
    ];
    rows.push(match report.steps_ahead {
        Some(steps) => ("modulation", format!("ahead of the step, {steps} steps together")),
        None => ("modulation", "in the step".into()),
    });
    let Seconds { modulation, forward, backward, update, step } = report.seconds;
    for (part, seconds) in
        [("modulation", modulation), ("forward", forward), ("backward", backward), ("update", update)]
    {
        rows.push((part, format!("{seconds:8.2} s {:5.1} %", 100.0 * seconds / step)));
    }
    let busy = report.processor_s.map_or(String::new(), |s| format!(", {s:.2} s of processor time"));
    rows.push(("a step", format!("{step:8.2} s{busy}")));
    rows.push((
        "speed",
        format!(
            "{:.3} TFLOP/s ({:.2} TFLOP), {:.0} % of a dense product's {:.3} TFLOP/s measured before",
            report.tflop_per_s,
            report.tflop,
            100.0 * report.share_of_product,
            report.product_tflop_per_s
        ),
    ));
    let memory = &report.memory;
    rows.push(("memory planned", format!("{:.2} GB", memory.planned_bytes / 1e9)));
    if let (Some(bytes), Some(error)) = (memory.measured_bytes, memory.error) {
        let measured = bytes as f64 / 1e9;
        rows.push(("memory at most", format!("{measured:.2} GB; the plan says {:+.1} %", 100.0 * error)));
    }
    rows.into_iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect()
}
