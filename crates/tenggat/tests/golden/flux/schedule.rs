//! Noise levels of sampling, with the shift of the dev model and without.

use tenggat_models::qwen_image::Scheduler;

use super::{folder, open};
use crate::fixture::assert_close;

#[test]
fn schedules_of_every_size_and_step_count() {
    let golden = open("schedule.safetensors");
    let dev = Scheduler::load(&folder().join("model/scheduler")).expect("scheduler");
    let schnell = Scheduler::load(&folder().join("schnell/scheduler")).expect("scheduler");
    let mut seen = [0, 0];
    for name in golden.names() {
        let Some(case) = name.strip_suffix(".sigmas") else { continue };
        let parts: Vec<&str> = case.split('.').collect();
        let (scheduler, tokens, steps) = match parts[..] {
            ["dev", size, steps] => {
                let (height, width) = size.split_once('x').expect("HEIGHTxWIDTH");
                let side = |n: &str| n.parse::<usize>().expect("pixels") / 16;
                let tokens = side(height) * side(width);
                let mu = golden.f64(&format!("dev.{size}.mu"));
                assert_close(&format!("{size} mu"), &[dev.mu(tokens)], &mu, 1e-9);
                seen[0] += 1;
                (&dev, tokens, steps)
            }
            ["schnell", steps] => {
                seen[1] += 1;
                (&schnell, 999, steps)
            }
            _ => panic!("{case}"),
        };
        let steps = steps.parse().expect("steps");
        assert_close(&name, &scheduler.sigmas(steps, tokens), &golden.f64(&name), 1e-6);
        let name = format!("{case}.timesteps");
        assert_close(&name, &scheduler.timesteps(steps, tokens), &golden.f64(&name), 1e-3);
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}
