//! Which card to rent for a job that must be done by a deadline, and for what money.
//!
//! Every offer is tried with the job as it is. Where that does not fit, or does not end in time at the slow
//! end of its range, or costs too much, the job is made smaller in the way that harms the result least:
//! coarser weights, a lower rank, smaller images, fewer steps.

use serde::Serialize;

use crate::cost::{Machine, Precision, harm};
use crate::gpu::Gpu;
use crate::job::PlanJob;
use crate::plan::{Plan, PlanError, PlanOptions, Verdict};
use crate::prices::Offer;
use crate::program::Program;
use crate::range::{Range, rough_duration, two_digits};

/// What is asked of a choice.
#[derive(Debug, Clone)]
pub struct ChoiceOptions {
    /// Who trains.
    pub program: Program,
    /// Time for everything, fetching the model included, seconds.
    pub deadline_s: f64,
    /// Most that may be spent, in US dollars.
    pub most_usd: Option<f64>,
    /// What there is to rent.
    pub offers: Vec<Offer>,
    /// Storage, measured speeds.
    pub plan: PlanOptions,
    /// Whether the job may be made smaller where it must be.
    pub may_shrink: bool,
}

/// A job on an offer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// What is rented.
    pub offer: Offer,
    /// Steps.
    pub steps: u64,
    /// Storage of the frozen weights.
    pub precision: Precision,
    /// Rank.
    pub rank: u64,
    /// Sides of the images, as a share of the job's.
    pub side_share: f64,
    /// What it loses of the job's result, in halvings of the rank; 0 if nothing.
    pub loss: f64,
    /// Seconds for everything, fetching the model included.
    pub total_s: Range,
    /// Seconds of that for fetching the model.
    pub download_s: f64,
    /// Disk that is needed, bytes.
    pub disk_bytes: f64,
    /// US dollars for everything.
    pub usd: Range,
    /// Peak of device memory, bytes.
    pub memory_bytes: Range,
    /// Whether it fits.
    pub verdict: Verdict,
}

/// An offer that does not do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rejected {
    /// What would be rented.
    pub offer: Offer,
    /// Why not.
    pub why: String,
}

/// The offers that do, best first, and those that do not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// Those that end in time: the ones that lose least of the result first, of these the cheapest.
    pub candidates: Vec<Candidate>,
    /// Those that do not, and why.
    pub rejected: Vec<Rejected>,
}

/// Ranks and image sides, as shares of the job's.
const RANK_SHARES: [f64; 3] = [1.0, 0.5, 0.25];
const SIDE_SHARES: [f64; 3] = [1.0, 0.75, 0.5];
/// Least rank that is tried.
const LEAST_RANK: u64 = 8;
/// Fewest steps that are worth a run, as a share of those asked for.
const FEWEST_STEPS: f64 = 0.25;
/// Harm of halving the sides of the images, in halvings of the rank. Assumed: details are lost for good.
const SIDE_HARM: f64 = 2.0;
/// Coarser weights that every program stores.
const PRECISIONS: [Precision; 3] = [Precision::Float8, Precision::Uint(4), Precision::Uint(3)];
/// Rank of the recovery adapter that 3-bit weights want.
const RECOVERY_RANK: u64 = 16;

impl Choice {
    /// Tries a job of this many steps on every offer.
    ///
    /// # Errors
    /// [`PlanError`] if the job cannot be planned at all.
    pub fn new(job: &PlanJob, steps: u64, options: &ChoiceOptions) -> Result<Self, PlanError> {
        let mut choice = Self { candidates: Vec::new(), rejected: Vec::new() };
        for offer in &options.offers {
            let Ok(gpu) = Gpu::find(&offer.gpu) else { continue };
            match best(job, steps, &Machine::from(gpu), offer, options)? {
                Ok(candidate) => choice.candidates.push(candidate),
                Err(why) => choice.rejected.push(Rejected { offer: offer.clone(), why }),
            }
        }
        let order = |a: &Candidate, b: &Candidate| {
            a.loss.total_cmp(&b.loss).then(a.verdict.cmp(&b.verdict)).then(a.usd.high.total_cmp(&b.usd.high))
        };
        choice.candidates.sort_by(order);
        Ok(choice)
    }
}

/// The variant of the job that loses least on this offer; why there is none.
fn best(
    job: &PlanJob,
    steps: u64,
    machine: &Machine,
    offer: &Offer,
    options: &ChoiceOptions,
) -> Result<Result<Candidate, String>, PlanError> {
    let (mut best, mut why): (Option<Candidate>, Option<String>) = (None, None);
    for variant in variants(job, options.may_shrink) {
        if best.as_ref().is_some_and(|best| best.loss <= variant.loss) {
            break; // they come in the order of their loss
        }
        match tried(&variant, steps, machine, offer, options)? {
            Ok(candidate) if best.as_ref().is_none_or(|best| candidate.loss < best.loss) => {
                best = Some(candidate);
            }
            Ok(_) => {}
            // What the job as it is fails at is what the user wants to know.
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    Ok(best.ok_or_else(|| why.unwrap_or_default()))
}

/// The job, made smaller.
struct Variant {
    job: PlanJob,
    side_share: f64,
    loss: f64,
}

/// The job and what may become of it, in the order of what it loses.
fn variants(job: &PlanJob, may_shrink: bool) -> Vec<Variant> {
    let whole = Variant { job: job.clone(), side_share: 1.0, loss: 0.0 };
    if !may_shrink {
        return vec![whole];
    }
    let coarser = PRECISIONS.into_iter().filter(|p| p.bytes_per_weight() < job.precision.bytes_per_weight());
    let precisions: Vec<Precision> = std::iter::once(job.precision).chain(coarser).collect();
    let mut variants = Vec::new();
    for side_share in SIDE_SHARES {
        for rank_share in RANK_SHARES {
            let rank = (job.rank as f64 * rank_share).round() as u64;
            if rank_share < 1.0 && rank < LEAST_RANK {
                continue;
            }
            for &precision in &precisions {
                let recovered = precision == Precision::Uint(3) || precision == job.precision;
                let ara_rank = match job.ara_rank {
                    None if recovered && precision != job.precision => Some(RECOVERY_RANK),
                    kept => kept.filter(|_| recovered),
                };
                let smaller = PlanJob { rank, precision, ara_rank, ..job.scaled(side_share) };
                let loss =
                    harm(precision) - harm(job.precision) - rank_share.log2() - SIDE_HARM * side_share.log2();
                variants.push(Variant { job: smaller, side_share, loss: loss.max(0.0) });
            }
        }
    }
    variants.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    variants
}

/// A variant with as many of the steps as end in time and money at the slow end of the range, or why it does
/// not do.
fn tried(
    variant: &Variant,
    steps: u64,
    machine: &Machine,
    offer: &Offer,
    options: &ChoiceOptions,
) -> Result<Result<Candidate, String>, PlanError> {
    let planned = |steps: u64| {
        let job = PlanJob { steps: Some(steps), ..variant.job.clone() };
        Plan::new(&job, machine, options.program, &PlanOptions { budget_s: None, ..options.plan.clone() })
    };
    let plan = planned(steps)?;
    if plan.verdict == Verdict::TooLarge {
        return Ok(Err(format!("needs {} of {} GB", plan.memory_bytes.as_gigabytes(), gigabytes(&plan))));
    }
    let total_s = everything_s(&plan);
    let paid_s = options.most_usd.map_or(f64::INFINITY, |usd| usd / offer.usd_per_hour * 3600.0);
    let limit_s = options.deadline_s.min(paid_s);
    if total_s.high <= limit_s {
        return Ok(Ok(candidate(variant, steps, offer, &plan, 0.0)));
    }
    // What a step adds, at the slow end, samples and saves with it.
    let none_s = everything_s(&planned(1)?).high;
    let each_s = (total_s.high - none_s) / (steps.saturating_sub(1)).max(1) as f64;
    let fit = ((limit_s - none_s) / each_s.max(f64::MIN_POSITIVE)).max(0.0) as u64;
    if !options.may_shrink || (fit as f64) < FEWEST_STEPS * steps as f64 {
        return Ok(Err(if total_s.high > options.deadline_s {
            let deadline = rough_duration(options.deadline_s);
            format!("takes {}, the deadline is {deadline}", total_s.as_duration())
        } else {
            let usd = total_s.times(offer.usd_per_hour / 3600.0);
            format!("costs {usd} USD, {} may be spent", two_digits(options.most_usd.unwrap_or(0.0)))
        }));
    }
    let plan = planned(fit)?;
    Ok(Ok(candidate(variant, fit, offer, &plan, (steps as f64 / fit as f64).log2())))
}

fn gigabytes(plan: &Plan) -> String {
    two_digits(plan.fit.usable_bytes / 1e9)
}

/// Seconds of a run on a machine that has nothing yet.
fn everything_s(plan: &Plan) -> Range {
    plan.total_s.unwrap_or(Range::exactly(0.0)).plus(plan.first_start.download_s)
}

fn candidate(variant: &Variant, steps: u64, offer: &Offer, plan: &Plan, fewer: f64) -> Candidate {
    let total_s = everything_s(plan);
    Candidate {
        offer: offer.clone(),
        steps,
        precision: variant.job.precision,
        rank: variant.job.rank,
        side_share: variant.side_share,
        loss: variant.loss + fewer.max(0.0),
        total_s,
        download_s: plan.first_start.download_s,
        disk_bytes: plan.first_start.disk_bytes,
        usd: total_s.times(offer.usd_per_hour / 3600.0),
        memory_bytes: plan.memory_bytes,
        verdict: plan.verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(hours: f64, most_usd: Option<f64>, may_shrink: bool) -> Choice {
        let job = PlanJob { rank: 32, precision: Precision::Bf16, ..PlanJob::qwen_image() };
        let options = ChoiceOptions {
            program: Program::AiToolkit,
            deadline_s: 3600.0 * hours,
            most_usd,
            offers: Offer::known(),
            plan: PlanOptions::default(),
            may_shrink,
        };
        Choice::new(&job, 2000, &options).unwrap()
    }

    #[test]
    fn what_is_chosen_ends_in_time_and_money() {
        let choice = choose(3.0, Some(6.0), true);
        assert!(!choice.candidates.is_empty());
        for candidate in &choice.candidates {
            assert!(candidate.total_s.high <= 3.0 * 3600.0 * 1.001, "{candidate:?}");
            assert!(candidate.usd.high <= 6.0 * 1.001, "{candidate:?}");
            assert!(candidate.download_s > 60.0 && candidate.disk_bytes > 50e9, "{candidate:?}");
        }
        let key = |c: &Candidate| (c.loss, c.verdict, c.usd.high);
        assert!(choice.candidates.windows(2).all(|pair| key(&pair[0]) <= key(&pair[1])));
        assert_eq!(choice.candidates.len() + choice.rejected.len(), Offer::known().len());
    }

    #[test]
    fn every_offer_that_loses_says_why() {
        let choice = choose(1.0, Some(3.0), false);
        assert!(choice.candidates.iter().all(|candidate| candidate.loss == 0.0 && candidate.steps == 2000));
        let whys: String = choice.rejected.iter().map(|rejected| rejected.why.as_str()).collect();
        for part in ["needs", "the deadline is", "may be spent"] {
            assert!(whys.contains(part), "{part} is missing from {whys}");
        }
    }

    #[test]
    fn more_time_and_money_never_lose_more() {
        let best =
            |hours, usd| choose(hours, Some(usd), true).candidates.first().map_or(f64::MAX, |c| c.loss);
        assert!(best(6.0, 20.0) <= best(3.0, 6.0));
        assert!(best(3.0, 6.0) <= best(1.0, 2.0));
        assert_eq!(best(12.0, 40.0), 0.0);
    }
}
