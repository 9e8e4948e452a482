//! Noise schedules of sampling, and the tables that training draws from.

use tenggat_models::qwen_image::Scheduler;
use tenggat_train::step::timesteps;

use crate::fixture::{Golden, assert_close, folder, skip};

fn scheduler() -> Scheduler {
    Scheduler::load(&folder().join("qwen_image/scheduler")).expect("scheduler")
}

/// Height and width in pixels of a picture named `HEIGHTxWIDTH`.
fn pixels(size: &str) -> (usize, usize) {
    let (height, width) = size.split_once('x').expect("HEIGHTxWIDTH");
    (height.parse().expect("a height"), width.parse().expect("a width"))
}

/// Image tokens as sampling counts them: whole patches.
fn image_tokens(size: &str) -> usize {
    let (height, width) = pixels(size);
    (height / 16) * (width / 16)
}

#[test]
fn schedules_for_every_size_and_step_count() {
    let (golden, scheduler) = (Golden::open("sampling.safetensors"), scheduler());
    let names = golden.names();
    let sigmas = names.iter().filter_map(|n| n.strip_prefix("schedule.")?.strip_suffix(".sigmas"));
    let mut seen = 0;
    for case in sigmas {
        let (size, steps) = case.split_once('.').expect("SIZE.STEPS");
        let (tokens, steps) = (image_tokens(size), steps.parse().expect("steps"));
        let get = |what: &str| golden.f64(&format!("schedule.{case}.{what}"));
        if steps == 1 {
            // The reference stretches 1 − σ of the last step to `shift_terminal`, and for σ = 1 divides zero
            // by zero.
            assert!(get("sigmas")[0].is_nan(), "{case} sigmas");
            assert_eq!(scheduler.sigmas(1, tokens), [1.0, 0.0], "{case} sigmas");
            continue;
        }
        assert_close(&format!("{case} sigmas"), &scheduler.sigmas(steps, tokens), &get("sigmas"), 1e-6);
        assert_close(
            &format!("{case} timesteps"),
            &scheduler.timesteps(steps, tokens),
            &get("timesteps"),
            1e-3,
        );
        let mu = golden.f64(&format!("schedule.{size}.mu"));
        assert_close(&format!("{size} mu"), &[scheduler.mu(tokens)], &mu, 1e-6);
        seen += 1;
    }
    assert!(seen > 0, "the set has no schedules");
}

#[test]
fn schedules_of_the_sampling_runs() {
    let (golden, scheduler) = (Golden::open("sampling.safetensors"), scheduler());
    let tokens = golden.shape("initial_latents")[1];
    for run in ["cfg", "plain"] {
        let (sigmas, timesteps) =
            (golden.f64(&format!("{run}.sigmas")), golden.f64(&format!("{run}.timesteps")));
        let steps = timesteps.len();
        assert_close(&format!("{run}.sigmas"), &scheduler.sigmas(steps, tokens), &sigmas, 1e-6);
        assert_close(&format!("{run}.timesteps"), &scheduler.timesteps(steps, tokens), &timesteps, 1e-3);
    }
}

#[test]
fn training_tables() {
    let (golden, scheduler) = (Golden::open("sampling.safetensors"), scheduler());
    if !golden.contains("train.timesteps.linear") && std::env::var_os("TENGGAT_GOLDEN").is_some() {
        return skip("the set was made without the ai-toolkit");
    }
    for name in golden.names() {
        let Some(size) = name.strip_prefix("train.timesteps.shift.") else { continue };
        // The reference counts a quarter of the latent pixels, half patches included.
        let (height, width) = pixels(size);
        let table = timesteps::shifted(&scheduler, (height / 8) * (width / 8) / 4);
        assert_close(&name, &table, &golden.f64(&name), 1e-3);
    }
    for (name, table, tolerance) in [
        ("train.timesteps.linear", timesteps::linear(), 1e-3),
        ("train.weights.weighted", timesteps::weighted_loss_weights(), 1e-6),
        ("train.linear_timesteps_weights", timesteps::bell_loss_weights(), 1e-6),
        ("train.linear_timesteps_weights2", timesteps::half_bell_loss_weights(), 1e-6),
    ] {
        assert_close(name, &table, &golden.f64(name), tolerance);
    }
}
