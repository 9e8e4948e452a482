//! Plans of whole jobs.
#![allow(clippy::print_stdout, reason = "tests say what they found")]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tenggat_plan::{
    Basis, BucketShape, Budget, ControlImage, Ending, GPUS, Gpu, Machine, MemoryPart, ModelProfile,
    Modulation, Phase, Plan, PlanError, PlanJob, PlanOptions, PlanTable, Precision, Program, Range, Report,
    SampleJob, SamplePicture, Span, Storage, ValidationJob, Verdict, explain, recommend_steps, reports,
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

/// Rounds of squares at 1024², before, between and after.
fn samples(every_steps: u64, pictures: usize) -> SampleJob {
    let picture = SamplePicture { width_px: 1024, height_px: 1024, denoising_steps: 25, guided: true };
    SampleJob { every_steps, start_step: 0, pictures: vec![picture; pictures], first: true, last: true }
}

fn on(gpu: &str) -> Machine {
    Machine::from(Gpu::find(gpu).unwrap())
}

fn plan(job: &PlanJob, gpu: &str, options: &PlanOptions) -> Plan {
    Plan::new(job, &on(gpu), Program::Tenggat, options).unwrap()
}

#[test]
fn tables_for_all_gpus_take_less_than_a_tenth_of_a_second() {
    // Neighbours on the machine make some rounds slower and none faster.
    let fastest = (0..8).map(|_| tables_for_all_gpus()).min().unwrap();
    assert!(fastest.as_millis() < 100, "{fastest:?}");
}

fn tables_for_all_gpus() -> Duration {
    let began = Instant::now();
    for sides in [&[1024][..], &[512, 768, 1024]] {
        let job = note_job(sides);
        let options = PlanOptions { price_per_hour: Some(2.0), ..PlanOptions::default() };
        let plan_on = |gpu| {
            let plan = |program| Plan::new(&job, &Machine::from(gpu), program, &options).unwrap();
            [plan(Program::Tenggat), plan(Program::AiToolkit)]
        };
        let plans: Vec<Plan> = GPUS.iter().flat_map(plan_on).collect();
        let table = PlanTable(&plans).to_string();
        for gpu in GPUS {
            assert!(table.contains(gpu.name.as_ref()), "{} is missing from\n{table}", gpu.name);
        }
        assert!(table.contains("price"));
    }
    began.elapsed()
}

#[test]
fn mixed_resolutions_are_faster_than_the_largest_alone() {
    let options = PlanOptions::default();
    let large = plan(&note_job(&[1024]), "h100 sxm", &options);
    let mixed = plan(&note_job(&[512, 768, 1024]), "h100 sxm", &options);
    assert_eq!(mixed.buckets.len(), 3);
    assert!(
        (0.5..0.75).contains(&(mixed.mean_step_s.likely / large.mean_step_s.likely)),
        "{} {}",
        mixed.mean_step_s,
        large.mean_step_s
    );
    let tokens: Vec<u64> = mixed.buckets.iter().map(|b| b.image_tokens).collect();
    assert_eq!(tokens, [1024, 2304, 4096]);
}

#[test]
fn a_budget_decides_the_steps_as_the_run_will() {
    let mut job = note_job(&[512, 768, 1024]);
    job.steps = None;
    job.samples = Some(samples(250, 2));
    let options = PlanOptions { budget_s: Some(7200.0), price_per_hour: Some(3.0), ..PlanOptions::default() };
    let plan = plan(&job, "h100 sxm", &options);
    println!("{plan}");
    let total_s = plan.total_s.unwrap().likely;
    assert!((0.97 * 7200.0..7200.0).contains(&total_s), "{total_s}");
    assert!((plan.price.unwrap().likely - 3.0 * total_s / 3600.0).abs() < 1e-9);
    let parts: f64 = Phase::ALL.iter().map(|phase| plan.phases.get(*phase)).sum();
    assert!((parts + plan.training.unwrap().total_s() - total_s).abs() < 1e-6);
    // The same figures drive the controller, whose first guess of the steps is near what the rehearsal comes
    // to.
    let mut budget = Budget::new(plan.budget_config(&job)).unwrap();
    let guess = budget.forecast(0.0).steps_total.unwrap() as f64;
    assert!((plan.steps.unwrap() as f64 / guess - 1.0).abs() < 0.02, "{guess} {:?}", plan.steps);
    let [slow, fast] = plan.steps_range.unwrap();
    assert!(slow < plan.steps.unwrap() && plan.steps.unwrap() <= fast + fast / 20, "{slow} {fast}");
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
    // 8 forward passes at a quarter of the pixels, after the first and every tenth step; a step is about
    // three at all of them. What does not depend on the pixels, such as unpacking the weights, counts in
    // full.
    let share = with.validation_s / without.mean_step_s.likely;
    assert!((8.0 / 3.0 / 4.0..8.0 / 3.0).contains(&share), "{share}");
    let more_s = with.training.unwrap().total_s() - without.training.unwrap().total_s();
    assert!((more_s - 101.0 * with.validation_s).abs() < 1e-6, "{more_s}");
    let upload_s = with.phases.get(Phase::Upload);
    assert!(upload_s > 10.0 && with.to_string().contains("upload"), "{with}");
    let total_s = without.total_s.unwrap().likely + more_s + upload_s;
    assert!((with.total_s.unwrap().likely - total_s).abs() < 1e-6);
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
    assert!(plan.idle_s.unwrap() > 3600.0 && plan.to_string().contains("of it unused"), "{plan}");
    assert!(plan.notes.iter().any(|note| note.contains("fill: true")), "{:?}", plan.notes);
    let fill = PlanJob { fill: true, ..note_job(&[1024]) };
    let filled = self::plan(&fill, "h100 sxm", &options);
    let (filled, fit) = (filled.steps.unwrap() as f64, filled.steps_that_fit.unwrap() as f64);
    assert!((filled / fit - 1.0).abs() < 0.02, "{filled} {fit}");
}

#[test]
fn what_does_not_fit_says_what_would() {
    let job = PlanJob { rank: 128, steps: Some(1000), ..PlanJob::qwen_image() };
    let plan = plan(&job, "3090", &PlanOptions::default());
    assert_eq!(plan.verdict, Verdict::TooLarge);
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
    assert!(limited.fit.config.keep_all < plan.fit.config.keep_all);
    assert!(limited.mean_step_s.likely > plan.mean_step_s.likely);
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
    let error = Plan::new(&job, &on("h200"), Program::Tenggat, &PlanOptions::default()).unwrap_err();
    assert!(error.to_string().contains("folder_path"));
    let nonsense = PlanOptions { budget_s: Some(f64::NAN), ..PlanOptions::default() };
    assert!(Plan::new(&PlanJob::qwen_image(), &on("h200"), Program::Tenggat, &nonsense).is_err());
}

/// The round that is due at the last step is the final one; a run of 1000 steps with a round every 200 draws
/// 0, 200, ..., 1000.
#[test]
fn the_round_of_the_last_step_is_counted_once() {
    let job = PlanJob { samples: Some(samples(200, 2)), steps: Some(1000), ..note_job(&[1024]) };
    let plan = plan(&job, "4090", &PlanOptions::default());
    let training = plan.training.unwrap();
    assert_eq!(training.sample_rounds, 4);
    let rounds =
        [plan.phases.get(Phase::FirstSample), plan.phases.get(Phase::FinalSample), training.samples_s];
    assert!((rounds.iter().sum::<f64>() - 6.0 * plan.sample_round_s).abs() < 1e-6);
    // What the steps take is told apart from what is drawn between them.
    assert!((training.steps_s - 1000.0 * plan.mean_step_s.likely).abs() < 1e-6);
    assert!(
        plan.to_string().contains("train, 1000 steps") && plan.to_string().contains("samples between, 4")
    );
    // A number of steps that ends between two rounds has as many, and the final one.
    let odd = PlanJob { steps: Some(1100), ..job.clone() };
    assert_eq!(self::plan(&odd, "4090", &PlanOptions::default()).training.unwrap().sample_rounds, 5);
    let late = SampleJob { start_step: 400, ..samples(200, 2) };
    let late = PlanJob { samples: Some(late), ..job };
    assert_eq!(self::plan(&late, "4090", &PlanOptions::default()).training.unwrap().sample_rounds, 3);
}

/// Two squares and one wide picture are not three pictures as wide as the one and as high as the others.
#[test]
fn samples_are_planned_in_their_own_sizes() {
    let square = SamplePicture { width_px: 1024, height_px: 1024, denoising_steps: 25, guided: true };
    let wide = SamplePicture { width_px: 1344, height_px: 768, ..square };
    let round_s = |pictures: Vec<SamplePicture>| {
        let job = PlanJob { samples: Some(SampleJob { pictures, ..samples(250, 0) }), ..note_job(&[1024]) };
        plan(&job, "h100 sxm", &PlanOptions::default()).sample_round_s
    };
    let each = round_s(vec![square]) + round_s(vec![square]) + round_s(vec![wide]);
    assert!((round_s(vec![square, square, wide]) / each - 1.0).abs() < 1e-9);
    let few = SamplePicture { denoising_steps: 5, guided: false, ..square };
    assert!(round_s(vec![few]) < 0.15 * round_s(vec![square]));
}

/// What a budget leaves out is counted and told, so that the totals with and without one can be understood.
#[test]
fn a_budget_says_what_it_leaves_out_and_what_stays_unused() {
    let job = PlanJob { samples: Some(samples(100, 4)), steps: Some(1500), ..note_job(&[1024]) };
    let all = plan(&job, "4090", &PlanOptions::default());
    assert_eq!(all.training.unwrap().sample_rounds, 14);
    let budget_s = 0.9 * all.total_s.unwrap().likely;
    let options = PlanOptions { budget_s: Some(budget_s), ..PlanOptions::default() };
    let short = plan(&job, "4090", &options);
    let training = short.training.unwrap();
    assert!(training.sample_rounds_left_out > 0, "{training:?}");
    let said = format!("leaves no time for {} of", training.sample_rounds_left_out);
    assert!(short.notes.iter().any(|note| note.contains(&said)), "{:?}", short.notes);
    // Parts, unused time and the budget add up.
    let drawn_last = if training.last_round_is_drawn { short.phases.get(Phase::FinalSample) } else { 0.0 };
    let total_s = training.total_s() + short.other_phases_s() - drawn_last;
    assert!((short.total_s.unwrap().likely - total_s).abs() < 1e-6);
    assert!((short.idle_s.unwrap() - (budget_s - total_s).max(0.0)).abs() < 1e-6);
    // So does a run without a budget.
    let parts_s = all.training.unwrap().total_s() + all.other_phases_s();
    assert!((all.total_s.unwrap().likely - parts_s).abs() < 1e-6);
    assert!(all.notes.iter().any(|note| note.contains("samples take")), "{:?}", all.notes);
}

/// A budget that loading alone uses up says so, rather than that saving takes too long.
#[test]
fn a_budget_that_is_gone_before_the_first_step_says_where_it_goes() {
    let options = PlanOptions { budget_s: Some(20.0), ..PlanOptions::default() };
    let plan = plan(&note_job(&[1024]), "4090", &options);
    assert_eq!(plan.training.unwrap().steps, 0);
    let note = plan.notes.iter().find(|note| note.contains("no step fits")).unwrap();
    assert!(note.contains("in the 20 s left") && note.contains("pass before the first step"), "{note}");
}

/// Kinds of work add up to the step of the bucket that they are said to belong to.
#[test]
fn work_by_kind_belongs_to_the_largest_bucket() {
    for program in [Program::Tenggat, Program::Musubi] {
        let plan = Plan::new(&note_job(&[512, 1024]), &on("3090"), program, &PlanOptions::default()).unwrap();
        let largest = &plan.largest_bucket;
        assert_eq!((largest.width_px, largest.height_px), (1024, 1024));
        let by_class: f64 = largest.step_s_by_class.values().sum();
        assert!(by_class < 1.05 * largest.step_s && by_class > 0.7 * largest.step_s, "{program}: {by_class}");
        assert_eq!(largest.step_s, plan.buckets[1].step_s);
        assert!(largest.step_s > plan.mean_step_s.likely);
        // No more than the card does.
        assert!(largest.step_tflop / largest.step_s < 71.0, "{program}");
    }
}

#[test]
fn ranges_say_what_they_stand_on() {
    let options = PlanOptions::default();
    let own = plan(&note_job(&[1024]), "h100 sxm", &options);
    assert_eq!(own.evidence.basis, Basis::NoReport);
    let width = own.mean_step_s.high / own.mean_step_s.low;
    assert!((1.5..1.7).contains(&width), "{width}");
    let of = |program| Plan::new(&note_job(&[1024]), &on("5090"), program, &options).unwrap();
    let musubi = of(Program::Musubi);
    assert_eq!(musubi.evidence.basis, Basis::Reports);
    assert!(musubi.evidence.reports >= 5 && musubi.evidence.on_this_card >= 5);
    assert!(musubi.to_string().contains("public reports"), "{musubi}");
    let width = |plan: &Plan| plan.mean_step_s.high / plan.mean_step_s.low;
    let unknown = of(Program::OneTrainer);
    assert_eq!(unknown.evidence.basis, Basis::OtherPrograms);
    assert!(width(&unknown) > width(&musubi));
}

/// A report in the form of a line of the table, as `plan learn` stores it.
fn measured(size: &str, step_s: f64) -> Report {
    let head = "id,source,date,program,version,model,gpu,os,sizes,controls,batch,accumulation,rank,precision,\
                targets,text_tokens,compiled,checkpointed,swapped_blocks,step_s_low,step_s_high,memory_gb_low,\
                memory_gb_high,memory_outcome,trust,note";
    let line = format!(
        "mine,here,2026,ai-toolkit,,qwen-image,RTX \
         4090,,{size},,1,1,128,uint3,,,,,,{step_s},{step_s},,,,high,"
    );
    Report::read_all(&format!("{head}\n{line}\n")).unwrap().remove(0)
}

#[test]
fn a_measured_step_shrinks_the_range() {
    let job = note_job(&[1024]);
    let with = |measured: Vec<Report>| {
        let options = PlanOptions { measured, ..PlanOptions::default() };
        Plan::new(&job, &on("4090"), Program::AiToolkit, &options).unwrap()
    };
    let before = with(Vec::new());
    let same = with(vec![measured("1024x1024", 7.0)]);
    assert_eq!(same.evidence.basis, Basis::MeasuredHere);
    assert!((same.mean_step_s.low - 6.3).abs() < 1e-9 && (same.mean_step_s.high - 7.7).abs() < 1e-9);
    assert!((same.buckets[0].step_s - 7.0).abs() < 1e-9, "buckets move with the mean");
    assert!(same.to_string().contains("measured here"), "{same}");
    // Twice as slow as forecast at 512: so at 1024 too, less surely.
    let at_512 =
        Plan::new(&note_job(&[512]), &on("4090"), Program::AiToolkit, &PlanOptions::default()).unwrap();
    let other = with(vec![measured("512x512", 2.0 * at_512.mean_step_s.likely)]);
    assert_eq!(other.evidence.basis, Basis::MeasuredSimilar);
    assert!((other.mean_step_s.likely / before.mean_step_s.likely - 2.0).abs() < 1e-6);
    // Another program or card is none of its business.
    let options = PlanOptions { measured: vec![measured("1024x1024", 7.0)], ..PlanOptions::default() };
    let elsewhere = Plan::new(&job, &on("3090"), Program::AiToolkit, &options).unwrap();
    assert!(elsewhere.evidence.basis != Basis::MeasuredHere);
}

#[test]
fn other_models_are_planned_for_programs_that_train_them() {
    for model in ["flux1-dev", "flux2-klein-9b", "krea2", "z-image", "qwen-image-2.1", "qwen-image-edit"] {
        let model = ModelProfile::find(model).unwrap().clone();
        let job = PlanJob { model, steps: Some(1000), precision: Precision::Float8, ..PlanJob::qwen_image() };
        let plan = |program| Plan::new(&job, &on("4090"), program, &PlanOptions::default());
        let theirs = plan(Program::AiToolkit).unwrap();
        assert!(
            (0.3..10.0).contains(&theirs.mean_step_s.likely),
            "{}: {}",
            job.model.name,
            theirs.mean_step_s
        );
        let own = plan(Program::Tenggat);
        assert!(own.is_err() || job.model.is_trained_here(), "{}", job.model.name);
    }
    // A control image is as many tokens again.
    let edit = ModelProfile::find("qwen-image-edit").unwrap().clone();
    let job = PlanJob { model: edit, ..PlanJob::qwen_image() };
    let step_s = |job: &PlanJob| {
        Plan::new(job, &on("a100 80"), Program::Qflux, &PlanOptions::default()).unwrap().mean_step_s.likely
    };
    let with = PlanJob { controls: vec![ControlImage::AsImage], ..job.clone() };
    assert!((2.0..3.5).contains(&(step_s(&with) / step_s(&job))), "{}", step_s(&with) / step_s(&job));
    let own = Plan::new(&with, &on("a100 80"), Program::Tenggat, &PlanOptions::default());
    assert!(matches!(own, Err(PlanError::NotTrainedHere { .. })));
}

/// A job fits only if the upper end of its memory does.
#[test]
fn tight_jobs_only_may_fit() {
    let of = |gpu: &str, precision| {
        let job = PlanJob { precision, rank: 16, ..PlanJob::qwen_image() };
        Plan::new(&job, &on(gpu), Program::Musubi, &PlanOptions::default()).unwrap()
    };
    let verdicts = ["4090", "5090", "a6000"].map(|gpu| of(gpu, Precision::Float8).verdict);
    assert_eq!(verdicts, [Verdict::MayFit, Verdict::MayFit, Verdict::Fits]);
    assert_eq!(of("5090", Precision::Bf16).verdict, Verdict::TooLarge);
    let plan = of("5090", Precision::Float8);
    assert!(
        plan.memory_bytes.low < plan.memory_bytes.likely && plan.memory_bytes.likely < plan.memory_bytes.high
    );
    assert!(PlanTable(&[plan]).to_string().contains("maybe"));
}

#[test]
fn other_programs_are_slower_than_this_one_says_it_is() {
    for gpu in GPUS {
        let step_s = |program| {
            let options = PlanOptions::default();
            Plan::new(&note_job(&[1024]), &Machine::from(gpu), program, &options).unwrap().mean_step_s.likely
        };
        assert!(step_s(Program::AiToolkit) > 1.3 * step_s(Program::Tenggat), "{}", gpu.name);
        // Fewer bytes a weight since it unpacks them itself.
        assert!(step_s(Program::AiToolkit2025) > step_s(Program::AiToolkit), "{}", gpu.name);
    }
    assert!(!reports().is_empty());
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
        let picture = SamplePicture { width_px, height_px, denoising_steps: other, guided: true };
        let samples =
            SampleJob { every_steps, start_step: steps, pictures: vec![picture; 2], first: true, last: true };
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
        let trainer = if upstream { Program::AiToolkit } else { Program::Tenggat };
        job.elsewhere.swapped_blocks = layers;
        job.controls = if upstream { vec![ControlImage::Sized { width_px, height_px }] } else { Vec::new() };
        let storage = Storage {
            read_bytes_per_s: numbers[3],
            write_bytes_per_s: numbers[4],
            download_bytes_per_s: numbers[2],
        };
        let options = PlanOptions {
            budget_s: Some(numbers[2]),
            price_per_hour: Some(numbers[3]),
            storage,
            ..PlanOptions::default()
        };
        if let Ok(plan) = Plan::new(&job, &on("h200"), trainer, &options) {
            prop_assert!(!plan.to_string().is_empty());
            prop_assert!(!PlanTable(&[plan]).to_string().is_empty());
        }
    }
}

/// `plan`, `explain` and `steps` are about the same times.
#[test]
fn explain_and_steps_agree_with_the_plan() {
    let job = PlanJob { save_every: 0, ..note_job(&[1024]) };
    let plan = Plan::new(&job, &on("4090"), Program::AiToolkit, &PlanOptions::default()).unwrap();
    let Range { low, high, .. } = plan.mean_step_s;
    let overhead_s = plan.other_phases_s();
    let total = plan.total_s.unwrap();
    let run = explain(total.high, 1500, Span { low, high }, overhead_s);
    assert!((run.needed_s.high / total.high - 1.0).abs() < 1e-9, "{run:?} {total:?}");
    assert!((run.needed_s.low / total.low - 1.0).abs() < 1e-9, "{run:?} {total:?}");
    assert_eq!(run.ending, Ending::Finished);
    let advice = recommend_steps(total.high / 0.97 + 1.0, Span { low, high }, overhead_s);
    assert_eq!(advice.steps, 1500, "{}", advice.reason);
}
