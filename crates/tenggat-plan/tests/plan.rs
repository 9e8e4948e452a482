//! Plans of whole jobs.
#![allow(clippy::print_stdout, reason = "tests say what they found")]

use std::time::Instant;

use proptest::prelude::*;
use tenggat_plan::{
    BucketShape, Budget, ComparisonTable, GPUS, Gpu, Machine, MemoryPart, Modulation, Phase, Plan, PlanJob,
    PlanOptions, PlanTable, Precision, SampleJob, Storage, Trainer, ValidationJob, compare_with_reports,
};

/// Rank 128 over a 3-bit base with a recovery adapter, 1500 steps.
fn note_job(sides: &[u64]) -> PlanJob {
    let bucket = |side: &u64| BucketShape { width_px: *side, height_px: *side, share: 1.0, pictures: 20 };
    PlanJob {
        rank: 128,
        precision: Precision::Uint(3),
        ara_rank: Some(16),
        steps: Some(1500),
        save_every: 250,
        buckets: sides.iter().map(bucket).collect(),
        ..PlanJob::qwen_image()
    }
}

fn on(gpu: &str) -> Machine {
    Machine::from(Gpu::find(gpu).unwrap())
}

fn plan(job: &PlanJob, gpu: &str, options: &PlanOptions) -> Plan {
    Plan::new(job, &on(gpu), Trainer::Tenggat, options).unwrap()
}

#[test]
fn tables_for_all_gpus_take_less_than_a_tenth_of_a_second() {
    let began = Instant::now();
    for sides in [&[1024][..], &[512, 768, 1024]] {
        let job = note_job(sides);
        let options = PlanOptions { price_per_hour: Some(2.0), ..PlanOptions::default() };
        let plan_on = |gpu| {
            let plan = |trainer| Plan::new(&job, &Machine::from(gpu), trainer, &options).unwrap();
            [plan(Trainer::Tenggat), plan(Trainer::AiToolkit)]
        };
        let plans: Vec<Plan> = GPUS.iter().flat_map(plan_on).collect();
        let table = PlanTable(&plans).to_string();
        println!("{table}");
        for gpu in GPUS {
            assert!(table.contains(gpu.name), "{} is missing from\n{table}", gpu.name);
        }
        assert!(table.contains("price"));
    }
    println!("{}", ComparisonTable(&compare_with_reports()));
    let took = began.elapsed();
    assert!(took.as_millis() < 100, "{took:?}");
}

#[test]
fn mixed_resolutions_are_faster_than_the_largest_alone() {
    let options = PlanOptions::default();
    let large = plan(&note_job(&[1024]), "h100 sxm", &options);
    let mixed = plan(&note_job(&[512, 768, 1024]), "h100 sxm", &options);
    assert_eq!(mixed.buckets.len(), 3);
    assert!((0.5..0.75).contains(&(mixed.step_s / large.step_s)), "{} {}", mixed.step_s, large.step_s);
    let tokens: Vec<u64> = mixed.buckets.iter().map(|b| b.image_tokens).collect();
    assert_eq!(tokens, [1024, 2304, 4096]);
}

#[test]
fn a_budget_decides_the_steps_as_the_run_will() {
    let mut job = note_job(&[512, 768, 1024]);
    job.steps = None;
    job.samples = Some(SampleJob {
        every_steps: 250,
        prompts: 2,
        denoising_steps: 25,
        guided: true,
        width_px: 1024,
        height_px: 1024,
        first: true,
        last: true,
    });
    let options = PlanOptions { budget_s: Some(7200.0), price_per_hour: Some(3.0), ..PlanOptions::default() };
    let plan = plan(&job, "h100 sxm", &options);
    println!("{plan}");
    let total_s = plan.total_s.unwrap();
    assert!((0.97 * 7200.0..7200.0).contains(&total_s), "{total_s}");
    assert!((plan.price.unwrap() - 3.0 * total_s / 3600.0).abs() < 1e-9);
    assert_eq!(plan.steps, plan.steps_that_fit);
    let parts: f64 = Phase::ALL.iter().map(|phase| plan.phases.get(*phase)).sum();
    assert!((parts + plan.training_s.unwrap() - total_s).abs() < 1e-6);
    // The same figures drive the controller.
    let mut budget = Budget::new(plan.budget_config(&job)).unwrap();
    assert_eq!(budget.forecast(0.0).steps_total, plan.steps);
}

#[test]
fn validation_and_uploading_take_their_time() {
    let mut job = PlanJob { steps: Some(1000), ..note_job(&[1024]) };
    let options = PlanOptions::default();
    let without = plan(&job, "h100 sxm", &options);
    let every_steps = 10;
    job.validation =
        Some(ValidationJob { every_steps, pictures: 2, levels: 4, side_px: 512, share_max: 0.1 });
    job.upload = true;
    let with = plan(&job, "h100 sxm", &options);
    // 8 forward passes at a quarter of the pixels, after the first and every tenth step; a step is about three at all of
    // them. What does not depend on the pixels, such as unpacking the weights, counts in full.
    let share = with.validation_s / without.step_s;
    assert!((8.0 / 3.0 / 4.0..8.0 / 3.0).contains(&share), "{share}");
    let more_s = with.training_s.unwrap() - without.training_s.unwrap();
    assert!((more_s - 101.0 * with.validation_s).abs() < 1e-6, "{more_s}");
    let upload_s = with.phases.get(Phase::Upload);
    assert!(upload_s > 10.0 && with.to_string().contains("upload"), "{with}");
    let total_s = without.total_s.unwrap() + more_s + upload_s;
    assert!((with.total_s.unwrap() - total_s).abs() < 1e-6);
    // Out of a budget they take steps: a tenth of a step after each, and the upload with its spread.
    job.steps = None;
    let options = PlanOptions { budget_s: Some(3600.0), ..options };
    let with = plan(&job, "h100 sxm", &options).steps.unwrap() as f64;
    (job.validation, job.upload) = (None, false);
    let without = plan(&job, "h100 sxm", &options).steps.unwrap() as f64;
    let expected = (1.0 - 1.7 * upload_s / 3600.0) / (1.0 + 0.1 * share);
    assert!((with / without - expected).abs() < 0.01, "{with} of {without} steps, {expected}");
}

#[test]
fn fixed_steps_within_a_budget_are_kept_and_the_rest_is_told() {
    let options = PlanOptions { budget_s: Some(7200.0), ..PlanOptions::default() };
    let plan = plan(&note_job(&[1024]), "h100 sxm", &options);
    assert_eq!(plan.steps, Some(1500));
    assert!(plan.steps_that_fit.unwrap() > 10_000);
    assert!(plan.notes.iter().any(|note| note.contains("fill: true")), "{:?}", plan.notes);
    let fill = PlanJob { fill: true, ..note_job(&[1024]) };
    let filled = self::plan(&fill, "h100 sxm", &options);
    assert_eq!(filled.steps, filled.steps_that_fit);
}

#[test]
fn what_does_not_fit_says_what_would() {
    let job = PlanJob { rank: 128, steps: Some(1000), ..PlanJob::qwen_image() };
    let plan = plan(&job, "3090", &PlanOptions::default());
    assert!(!plan.fit.fits);
    let note = &plan.notes[0];
    assert!(note.contains("RTX 3090") && note.contains("qtype"), "{note}");
    let nearest = plan.fit.nearest.as_ref().unwrap();
    assert!(nearest.memory.device_bytes() <= plan.fit.usable_bytes);
    assert!(plan.to_string().contains(note.as_str()));
    assert!(PlanTable(std::slice::from_ref(&plan)).to_string().contains("no: qtype"));
}

#[test]
fn memory_adds_up_and_every_part_is_shown() {
    let job = PlanJob { modulation: Modulation::EveryStep, ..note_job(&[1024]) };
    let plan = plan(&job, "h200", &PlanOptions::default());
    let text = plan.to_string();
    for (part, bytes) in &plan.fit.memory.parts {
        assert!(*bytes > 0.0 && text.contains(&part.to_string()), "{part}");
    }
    let weights = plan.fit.memory.part(MemoryPart::Weights);
    assert!((7.5e9..7.8e9).contains(&weights), "{weights:e}");
    assert!((0.9e9..1.0e9).contains(&plan.fit.memory.part(MemoryPart::QuantisationScales)));
    let limited = PlanJob { memory_limit_bytes: Some(40e9), ..job };
    let limited = self::plan(&limited, "h200", &PlanOptions::default());
    assert!(limited.fit.memory.device_bytes() <= 40e9);
    assert!(limited.fit.config.kept_blocks < plan.fit.config.kept_blocks);
    assert!(limited.step_s > plan.step_s);
}

#[test]
fn plans_survive_json() {
    let options = PlanOptions { budget_s: Some(3600.0), ..PlanOptions::default() };
    let plan = plan(&note_job(&[768]), "a100 80", &options);
    let text = serde_json::to_string(&plan).unwrap();
    let back: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(back.steps, plan.steps);
    assert_eq!(back.to_string(), plan.to_string());
}

#[test]
fn a_job_without_pictures_is_an_error() {
    let job = PlanJob { buckets: Vec::new(), ..PlanJob::qwen_image() };
    let error = Plan::new(&job, &on("h200"), Trainer::Tenggat, &PlanOptions::default()).unwrap_err();
    assert!(error.to_string().contains("folder_path"));
    let nonsense = PlanOptions { budget_s: Some(f64::NAN), ..PlanOptions::default() };
    assert!(Plan::new(&PlanJob::qwen_image(), &on("h200"), Trainer::Tenggat, &nonsense).is_err());
}

fn any_count() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>(), 0..5000_u64]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_job_makes_planning_panic(
        counts in prop::array::uniform12(any_count()),
        numbers in prop::array::uniform5(prop_oneof![
            Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), 0.0..1e9_f64
        ]),
        bits in any::<u8>(),
        upstream in any::<bool>(),
    ) {
        let [width_px, height_px, pictures, batch, rank, steps, every_steps, save_every, layers, heads, text, other] = counts;
        let bucket = BucketShape { width_px, height_px, share: numbers[0], pictures };
        let samples = SampleJob {
            every_steps,
            prompts: other,
            denoising_steps: other,
            guided: true,
            width_px,
            height_px,
            first: true,
            last: true,
        };
        let mut job = PlanJob {
            buckets: vec![bucket, BucketShape { share: 1.0, ..bucket }],
            batch,
            rank,
            steps: Some(steps),
            save_every,
            text_tokens: text,
            precision: Precision::Uint(bits),
            samples: Some(samples),
            validation: Some(ValidationJob {
                every_steps,
                pictures,
                levels: other,
                side_px: width_px,
                share_max: numbers[0],
            }),
            upload: upstream,
            score_passes: other,
            accumulation: other,
            memory_limit_bytes: Some(numbers[1]),
            ..PlanJob::qwen_image()
        };
        job.dims.layers = layers;
        job.dims.heads = heads;
        job.dims.pixels_per_token = other;
        let trainer = if upstream { Trainer::AiToolkit } else { Trainer::Tenggat };
        let storage = Storage { read_bytes_per_s: numbers[3], write_bytes_per_s: numbers[4] };
        let options = PlanOptions { budget_s: Some(numbers[2]), price_per_hour: Some(numbers[3]), storage };
        if let Ok(plan) = Plan::new(&job, &on("h200"), trainer, &options) {
            prop_assert!(!plan.to_string().is_empty());
            prop_assert!(!PlanTable(&[plan]).to_string().is_empty());
        }
    }
}
