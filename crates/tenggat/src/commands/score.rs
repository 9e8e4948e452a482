//! `tenggat score`: the errors that the timed contest ranks by, of a LoRA and of the bare model.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tenggat_train::contest::evaluate::{Evaluation, Measured, Measures};
use tenggat_train::contest::{rules, test_pictures};
use tenggat_train::data::pictures;
use tenggat_train::job::ErrorWeights;

use super::model::locate;
use super::run_folder::{self, Given};
use super::scorer::Scorer;
use crate::assets;
use crate::device::{self, Choice};
use crate::number::number;
use crate::output::{self, Bar, note};
use crate::when::{plural, span};

/// Where no bar is shown, a word is said once this has passed.
const SLOW: Duration = Duration::from_secs(5);

/// Long side of pictures that the built-in model draws.
const MINI_SIDE: usize = 128;

#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Model folder, hub id, or `mini` for the built-in model (default: that of the LoRA's run).
    #[arg(long)]
    model: Option<String>,
    /// LoRA file, or the folder of a run; without one the bare model alone is scored.
    #[arg(long, value_name = "PATH")]
    lora: Option<PathBuf>,
    /// Folder of test pictures with captions beside them, never trained on.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// What to measure: velocities (the contest's newest rule), redrawn pictures (its older one), or both.
    #[arg(long, value_enum, default_value_t = Measure::Both)]
    measure: Measure,
    /// Long side of the test pictures in pixels (default: 1024; 128 for `mini`).
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(16..=8192))]
    long_side: Option<u16>,
    /// Noises of the velocity error at each of its 16 levels.
    #[arg(long, default_value_t = rules::VELOCITY_NOISES, value_parser = clap::value_parser!(u64).range(1..=256))]
    noises: u64,
    /// Noises of each redrawn picture.
    #[arg(long, default_value_t = rules::REDRAWING.seeds as u64, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Steps of the sampler.
    #[arg(long, default_value_t = rules::REDRAWING.steps as u64, value_parser = clap::value_parser!(u64).range(1..=1000))]
    steps: u64,
    /// Classifier-free guidance of captioned pictures.
    #[arg(
        long, default_value_t = rules::REDRAWING.guidance, allow_negative_numbers = true,
        value_parser = number(0.0, 100.0)
    )]
    guidance: f64,
    /// Share of the noise that pictures are given before they are redrawn: 0.05 to 1.
    #[arg(long, default_value_t = rules::REDRAWING.denoise, value_parser = number(0.05, 1.0))]
    denoise: f64,
    /// Weights of the errors with captions and with the empty prompt: G.O.D d72aed9 (2025-12-12) has
    /// 0.25:0.75, notes on its rule of 2026-09-23 have 0.5:0.5.
    #[arg(long, value_name = "CAPTIONED:EMPTY", default_value_t)]
    weights: ErrorWeights,
    /// Leave the bare model out.
    #[arg(long, requires = "lora")]
    lora_only: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    Velocity,
    Picture,
    Both,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    lora: Option<&'a Path>,
    pictures: usize,
    /// Of errors with captions and with the empty prompt.
    weights: [f64; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    bare: Option<Evaluation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trained: Option<Evaluation>,
}

/// Measures and prints.
pub fn score(args: &ScoreArgs, choice: Choice) -> anyhow::Result<()> {
    let given = args.lora.as_deref().map(Given::find).transpose()?;
    let model = run_folder::model(args.model.as_deref(), given.as_ref())?;
    let usual = if model == assets::MINI { MINI_SIDE } else { rules::LONG_SIDE };
    let side = args.long_side.map_or(usual, usize::from);
    let pictures = test_pictures(&args.data, side).map_err(|error| match error {
        pictures::Error::Empty { path, .. } => anyhow::anyhow!(
            "--data {} has no image; name a folder of images with captions beside them",
            path.display()
        ),
        other => other.into(),
    })?;
    let folder = locate(model)?;
    let device = device::open(choice)?;
    let scorer = Scorer::load(&folder, &device, &pictures)?;
    let lora = given.as_ref().map(|given| scorer.lora(&given.file)).transpose()?;

    let redrawing = rules::Redrawing {
        steps: args.steps as usize,
        guidance: args.guidance,
        denoise: args.denoise,
        seeds: args.seeds as usize,
    };
    let measures = Measures {
        picture: (args.measure != Measure::Velocity).then_some(redrawing),
        velocity: (args.measure != Measure::Picture).then_some(args.noises),
        weights: args.weights,
    };
    let both = u64::from(!args.lora_only) + u64::from(lora.is_some());
    let all = both * measures.passes(pictures.len());
    let bar = Bar::new(all, "{msg:5} {bar:28} {percent:>3} %, {eta} left");
    let (began, mut done, mut is_told) = (Instant::now(), 0, output::shows_bars());
    let mut tick = |passes| {
        bar.inc(passes);
        done += passes;
        if !is_told && began.elapsed() >= SLOW {
            is_told = true;
            let left_s = began.elapsed().as_secs_f64() / done as f64 * all.saturating_sub(done) as f64;
            note!("this takes about {} more; --noises and --seeds make it shorter", span(left_s));
        }
    };
    bar.set_message("bare");
    let bare = if args.lora_only { None } else { Some(scorer.evaluate(None, measures, &mut tick)?) };
    bar.set_message("LoRA");
    let trained = match &lora {
        Some(lora) => Some(scorer.evaluate(Some(lora), measures, &mut tick)?),
        None => None,
    };
    drop(bar);
    let report = Report {
        model,
        lora: given.as_ref().map(|given| given.file.as_path()),
        pictures: pictures.len(),
        weights: [args.weights.captioned(), args.weights.empty()],
        bare,
        trained,
    };
    if args.json {
        output::json(&report)?;
    } else {
        output::block(&table(&report));
    }
    Ok(())
}

fn table(report: &Report<'_>) -> String {
    let header = ["bare", "LoRA", "change", "± (of the mean)"];
    let [bare, lora, change, error] = header;
    let images = plural(report.pictures as u64, "test image");
    let title = format!("error on {images}; lower is better");
    let mut text = format!("{title:<44} {bare:>9} {lora:>9} {change:>9}  {error}\n");
    let of = |e: &Option<Evaluation>, picture: bool| {
        let evaluation = e.as_ref()?;
        if picture { evaluation.picture.clone() } else { evaluation.velocity.clone() }
    };
    for (name, picture) in [("picture", true), ("velocity", false)] {
        let (bare, trained) = (of(&report.bare, picture), of(&report.trained, picture));
        if bare.is_none() && trained.is_none() {
            continue;
        }
        let mut row = |name: &str, value: fn(&Measured) -> f64, spread: bool| {
            let cell = |m: &Option<Measured>| {
                m.as_ref().map_or_else(|| "-".to_owned(), |m| format!("{:.5}", value(m)))
            };
            text += &format!("{name:<44} {:>9} {:>9}", cell(&bare), cell(&trained));
            if let (Some(bare), Some(trained)) = (&bare, &trained) {
                text += &format!(" {:>+8.2}%", 100.0 * (value(trained) / value(bare) - 1.0));
                if spread {
                    text += &format!("  {:.2}%", 100.0 * trained.difference(bare).1 / value(bare));
                }
            }
            text.push('\n');
        };
        let [captioned, empty] = report.weights.map(|share| (share * 1e4).round() / 1e4);
        row(&format!("{name}, {captioned} captioned + {empty} empty"), |m| m.total, true);
        row("  captioned", |m| m.captioned, false);
        row("  empty prompt", |m| m.empty, false);
        row("  deviation from image to image", |m| m.deviation, false);
    }
    text
}
