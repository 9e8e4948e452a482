//! A trainer of one's own in a few lines: trains the LoRA of a job within a budget and prints how it goes.
//!
//! `cargo run --release -p tenggat-train --example train -- JOB MODEL_FOLDER SECONDS`
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::path::Path;

use tenggat_plan::WallClock;
use tenggat_tensor::Device;
use tenggat_train::job::Job;
use tenggat_train::run::{Event, Options, Stop, Summary, run};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [job, model, seconds] = &arguments[..] else {
        return Err("usage: train JOB MODEL_FOLDER SECONDS".into());
    };
    let summary = train(job.as_ref(), model.as_ref(), seconds.parse()?)?;
    println!("{} after {} steps", summary.lora.display(), summary.steps);
    Ok(())
}

/// Trains the LoRA of a job file on the processor, with the model in a folder.
fn train(job: &Path, model: &Path, budget_s: f64) -> Result<Summary, Box<dyn Error>> {
    // The budget runs from here on.
    let clock = WallClock::start();
    let (job, warnings) = Job::from_file(job, None, &|name| std::env::var(name).ok())?;
    for warning in warnings {
        println!("warning: {warning}");
    }
    // Another thread may ask for the end with `stop.request()`; what was trained is saved first.
    let stop = Stop::default();
    let device = Device::cpu();
    let options = Options::new(&device, &clock, model, &stop).with_budget(budget_s);
    let summary = run(&job, &options, &mut |event| match event {
        Event::Step(step) => println!("step {} loss {:.4}", step.done, step.smoothed),
        Event::Warning(text) => println!("warning: {text}"),
        _ => {}
    })?;
    Ok(summary)
}

#[test]
fn it_trains_the_mini_model() -> Result<(), Box<dyn Error>> {
    let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini");
    let folder = tempfile::tempdir()?;
    let job = folder.path().join("job.yaml");
    std::fs::write(
        &job,
        format!(
            "job: extension
config:
  name: neon
  process:
    - type: sd_trainer
      training_folder: \"{}\"
      network: {{type: lora, linear: 4}}
      datasets: [{{folder_path: \"{}\", resolution: 64}}]
      train: {{batch_size: 1, steps: 3, lr: 3e-4, timestep_type: sigmoid}}
      model: {{name_or_path: mini, arch: qwen_image}}
",
            folder.path().display(),
            mini.join("demo-dataset/train").display()
        ),
    )?;
    let summary = train(&job, &mini.join("model"), 120.0)?;
    assert_eq!(summary.steps, 3);
    assert!(summary.lora.is_file());
    Ok(())
}
