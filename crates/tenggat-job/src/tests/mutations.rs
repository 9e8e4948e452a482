//! Thousands of spoilt jobs: each is a job whose numbers are sane, or an error that says something. Nothing
//! panics.

use super::frame::{TYPICAL, file_with, parse};
use super::mutant::{count, mutant};
use super::whole::FROM_THE_PAGE;
use crate::Job;

/// Mutants that the test tries; `TENGGAT_MUTANTS` asks for more.
const MUTANTS: u64 = 3600;

/// What the rest of the program may rely on.
fn assert_sane(job: &Job) {
    assert!(
        (1..=1024).contains(&job.train.batch_size) && (1..=65_536).contains(&job.train.gradient_accumulation)
    );
    assert!((1..=4096).contains(&job.network.rank) && !job.name.is_empty() && job.name.len() <= 200);
    assert!(job.train.steps != Some(0) && (0.0..=1e38).contains(&job.train.lr));
    assert!(job.train.denoising_steps.0 < job.train.denoising_steps.1);
    assert!(!job.datasets.is_empty() && !job.model.name_or_path.is_empty());
    for set in &job.datasets {
        assert!(set.resolutions.iter().all(|side| (32..=8192).contains(side)) && !set.resolutions.is_empty());
        assert!((1..=10_000).contains(&set.num_repeats) && (1..=1024).contains(&set.batch_size));
        assert!(set.scale > 0.0 && set.scale <= 100.0 && (0.0..=1.0).contains(&set.caption_dropout_rate));
    }
    for prompt in &job.sample.prompts {
        assert!((32..=8192).contains(&prompt.width) && (32..=8192).contains(&prompt.height));
        assert!(
            (1..=1000).contains(&prompt.steps)
                && prompt.guidance_scale.is_finite()
                && prompt.strength.is_finite()
        );
    }
}

#[test]
fn spoilt_jobs_are_sane_jobs_or_errors() {
    let mutants = count(MUTANTS);
    let framed = file_with("config.process[].train", "steps: 5, ");
    let texts = [TYPICAL, FROM_THE_PAGE, &framed];
    let (mut jobs, mut errors) = (0, 0);
    for number in 0..mutants {
        let text = mutant(number, &texts);
        match parse(&text) {
            Ok((job, _)) => {
                assert_sane(&job);
                jobs += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                errors += 1;
            }
        }
    }
    // Mutants that are all broken, or all whole, would show little.
    assert!(jobs > mutants / 20 && errors > mutants / 3, "{jobs} jobs and {errors} errors");
}
