//! What people report of ai-toolkit on Qwen-Image, beside what arithmetic and memory traffic come to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cost::{Machine, Precision, StepConfig};
use crate::gpu::Gpu;
use crate::plan::PlanJob;
use crate::quantity::{Span, format_duration};
use crate::trainer::Trainer;

/// One reported speed of ai-toolkit: rank 128, 3-bit base with recovery adapter.
struct Reported {
    /// As it is in the catalogue.
    gpu: &'static str,
    step_s: Span,
    /// Minutes for 1500 steps.
    minutes: Span,
}

const REPORTED: [Reported; 2] = [
    Reported {
        gpu: "H100 SXM",
        step_s: Span { low: 4.0, high: 5.0 },
        minutes: Span { low: 100.0, high: 125.0 },
    },
    Reported {
        gpu: "A100 80GB",
        step_s: Span { low: 5.0, high: 6.0 },
        minutes: Span { low: 125.0, high: 150.0 },
    },
];
const REPORTED_STEPS: u64 = 1500;
const REPORTED_RANK: u64 = 128;
/// A rank of 128 is reported to be slower than one of 64 by this much.
const RANK_SLOWDOWN: Span = Span { low: 1.2, high: 1.3 };
/// An 8-bit base is reported "a little slower" than a 3-bit one.
const FLOAT8_SLOWDOWN: Span = Span { low: 1.0, high: 1.1 };
/// Memory that an unquantised base is reported to exceed.
const UNQUANTISED_BYTES: f64 = 40e9;

/// A reported figure beside the predicted ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What it is about.
    pub subject: String,
    /// What is reported of ai-toolkit.
    pub reported: String,
    /// What first principles say of ai-toolkit.
    pub predicted: String,
    /// What they say of tenggat, where that makes sense.
    pub tenggat: Option<String>,
    /// If the two contradict: how.
    pub contradiction: Option<String>,
}

/// All reported figures, each beside what first principles predict for the same job (1024², batch 1).
pub fn compare_with_reports() -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for reported in &REPORTED {
        let Ok(gpu) = Gpu::find(reported.gpu) else { continue };
        comparisons.extend(speed(reported, &Machine::from(gpu)));
    }
    if let Ok(gpu) = Gpu::find(REPORTED[0].gpu) {
        let machine = Machine::from(gpu);
        comparisons.push(rank(&machine));
        comparisons.push(float8(&machine));
        comparisons.push(unquantised(&machine));
    }
    comparisons
}

/// The reported job with some precision and rank.
fn config(precision: Precision, rank: u64, machine: &Machine, trainer: Trainer) -> StepConfig {
    let job = PlanJob {
        precision,
        rank,
        ara_rank: matches!(precision, Precision::Uint(_)).then_some(16),
        ..PlanJob::qwen_image()
    };
    let config = job.step_config(&job.buckets[0], machine.activation_bytes);
    let config = StepConfig { kept_blocks: config.dims.layers, ..config };
    trainer.adapt(&config, machine)
}

fn step_s(precision: Precision, rank: u64, machine: &Machine, trainer: Trainer) -> f64 {
    trainer.step_seconds(&config(precision, rank, machine, trainer), machine)
}

fn speed(reported: &Reported, machine: &Machine) -> [Comparison; 2] {
    let at = |trainer| step_s(Precision::Uint(3), REPORTED_RANK, machine, trainer);
    let (upstream_s, own_s) = (at(Trainer::AiToolkit), at(Trainer::Tenggat));
    let contradiction = if upstream_s < 0.85 * reported.step_s.low {
        Some(format!(
            "arithmetic and memory traffic of such a step take {upstream_s:.1} s on this card, {:.0} to {:.0} % of the \
             reported time; the rest is not the card's work, or the report includes sampling, saving or waiting",
            100.0 * upstream_s / reported.step_s.high,
            100.0 * upstream_s / reported.step_s.low
        ))
    } else if upstream_s > 1.15 * reported.step_s.high {
        Some(format!("first principles come to {upstream_s:.1} s, more than reported"))
    } else {
        None
    };
    let minutes = |step_s: f64| format_duration((REPORTED_STEPS as f64 * step_s / 60.0).round() * 60.0);
    let per_step = Comparison {
        subject: format!("{}, s/step", machine.name),
        reported: reported.step_s.to_string(),
        predicted: format!("{upstream_s:.2}"),
        tenggat: Some(format!("{own_s:.2}")),
        contradiction,
    };
    let whole = Comparison {
        subject: format!("{}, {REPORTED_STEPS} steps", machine.name),
        reported: format!("{} min", reported.minutes),
        predicted: minutes(upstream_s),
        tenggat: Some(minutes(own_s)),
        contradiction: None,
    };
    [per_step, whole]
}

/// Compares a ratio of step times with a reported one; a hundredth more or less is no contradiction.
fn ratio(subject: &str, reported: Span, predicted: f64, own: f64, cause: &str) -> Comparison {
    let percent = |ratio: f64| format!("{:+.0} %", 100.0 * (ratio - 1.0));
    let reported_text = format!("{} to {}", percent(reported.low), percent(reported.high));
    let outside = predicted < reported.low - 0.01 || predicted > reported.high + 0.01;
    Comparison {
        subject: subject.to_owned(),
        reported: reported_text,
        predicted: percent(predicted),
        tenggat: Some(percent(own)),
        contradiction: outside.then(|| cause.to_owned()),
    }
}

fn rank(machine: &Machine) -> Comparison {
    let at = |trainer| {
        let rank = |rank| step_s(Precision::Uint(3), rank, machine, trainer);
        rank(REPORTED_RANK) / rank(REPORTED_RANK / 2)
    };
    let cause = "the LoRA's products double, also in true f32, but they are a small part of the step; casts and \
                 launches do not depend on the rank";
    ratio("rank 128 against 64", RANK_SLOWDOWN, at(Trainer::AiToolkit), at(Trainer::Tenggat), cause)
}

fn float8(machine: &Machine) -> Comparison {
    let at = |trainer| {
        let precision = |precision| step_s(precision, REPORTED_RANK, machine, trainer);
        precision(Precision::Float8) / precision(Precision::Uint(3))
    };
    let cause = "expanding 8-bit weights takes fewer operations and less traffic than expanding 3-bit ones, and no \
                 recovery adapter runs beside them, so 8 bits should be the faster";
    ratio("float8 against uint3", FLOAT8_SLOWDOWN, at(Trainer::AiToolkit), at(Trainer::Tenggat), cause)
}

fn unquantised(machine: &Machine) -> Comparison {
    let bytes = |trainer| config(Precision::Bf16, 16, machine, trainer).memory(machine).device_bytes();
    let upstream = bytes(Trainer::AiToolkit);
    let gigabytes = |bytes: f64| format!("{:.0} GB", bytes / 1e9);
    let own = config(Precision::Bf16, 16, machine, Trainer::Tenggat);
    let least = StepConfig { kept_blocks: 0, result_blocks: 0, ..own }.memory(machine).device_bytes();
    Comparison {
        subject: "unquantised, memory".to_owned(),
        reported: format!("over {}", gigabytes(UNQUANTISED_BYTES)),
        predicted: gigabytes(upstream),
        tenggat: Some(format!("{} and up", gigabytes(least))),
        contradiction: (upstream <= UNQUANTISED_BYTES)
            .then(|| "the weights and what goes with them are less than reported".to_owned()),
    }
}

/// Comparisons as a table, contradictions below it.
#[derive(Debug, Clone, Copy)]
pub struct ComparisonTable<'a>(
    /// The lines.
    pub &'a [Comparison],
);

impl fmt::Display for ComparisonTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["ai-toolkit, rank 128, uint3", "reported", "predicted", "tenggat"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for line in self.0 {
            let own = line.tenggat.clone().unwrap_or_default();
            rows.push(vec![line.subject.clone(), line.reported.clone(), line.predicted.clone(), own]);
        }
        f.write_str(&crate::plan::aligned(&rows))?;
        for line in self.0 {
            if let Some(contradiction) = &line.contradiction {
                writeln!(f, "contradiction, {}: {contradiction}", line.subject)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reported_figure_is_beside_a_predicted_one() {
        let comparisons = compare_with_reports();
        assert_eq!(comparisons.len(), 7);
        let text = ComparisonTable(&comparisons).to_string();
        for figure in ["4 to 5", "5 to 6", "100 to 125 min", "125 to 150 min", "+20 % to +30 %", "over 40 GB"]
        {
            assert!(text.contains(figure), "{figure} is missing from\n{text}");
        }
        assert!(text.contains("contradiction, H100 SXM"), "{text}");
    }

    #[test]
    fn the_other_trainer_is_slower_everywhere() {
        for gpu in crate::gpu::GPUS {
            let machine = Machine::from(gpu);
            for precision in [Precision::Bf16, Precision::Float8, Precision::Uint(3)] {
                let at = |trainer| step_s(precision, 64, &machine, trainer);
                assert!(at(Trainer::AiToolkit) > 1.5 * at(Trainer::Tenggat), "{} {precision}", gpu.name);
            }
        }
    }
}
