//! ai-toolkit's job files as far as planning needs them, whatever model they are of.
//!
//! `Job` reads every key of a job of Qwen-Image and refuses other models. A plan of another program needs a
//! dozen keys, and may be of a model that tenggat does not train.

use serde_json::Value;
use tenggat_plan::{
    BucketShape, ControlImage, Elsewhere, ModelProfile, Optimiser, PlanJob, Precision, SampleJob,
    SamplePicture,
};

/// Pictures of a data set that is not looked at.
const UNKNOWN_PICTURES: u64 = 20;

/// The job's first process, if the text is a job at all.
fn process(text: &str) -> Option<(Value, String)> {
    let all: Value = serde_saphyr::from_str(text).ok()?;
    let config = all.get("config")?;
    let name = config.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some((config.get("process")?.get(0)?.clone(), name))
}

/// A job of a model that has a profile and that tenggat does not train, with its name and what was assumed;
/// `None` for others.
pub fn of_another_model(text: &str) -> Option<(PlanJob, String, Vec<String>)> {
    let (process, name) = process(text)?;
    let model = &process["model"];
    let by = |key: &str| model[key].as_str().and_then(|name| ModelProfile::find(name).ok());
    let arch = model["arch"].as_str().map(|arch| arch.split(':').next().unwrap_or(arch));
    let by_arch = arch.and_then(|arch| ModelProfile::find(arch).ok());
    let flux = (model["is_flux"] == true).then(|| ModelProfile::find("flux").ok()).flatten();
    let profile = by_arch.or(flux).or_else(|| by("name_or_path"))?;
    if profile.is_trained_here() {
        return None;
    }
    let (buckets, controls) = (buckets(&process), controls(&process));
    let mut job = PlanJob {
        model: profile.clone(),
        buckets,
        controls: vec![ControlImage::AsImage; controls],
        batch: number(&process["train"]["batch_size"]).unwrap_or(1).max(1),
        accumulation: accumulation(&process["train"]),
        rank: number(&process["network"]["linear"]).unwrap_or(4).max(1),
        optimiser: optimiser(&process["train"]["optimizer"]),
        steps: number(&process["train"]["steps"]),
        save_every: number(&process["save"]["save_every"]).unwrap_or(0),
        samples: samples(&process["sample"], &process["train"]),
        ..PlanJob::qwen_image()
    };
    if model["quantize"] == true {
        let text = model["qtype"].as_str().unwrap_or("qfloat8");
        job.precision = text.parse().unwrap_or(Precision::Float8);
        job.ara_rank = text.contains('|').then_some(16);
    }
    for_others(text, &mut job);
    let notes = vec![format!(
        "{} is planned by its profile, as {UNKNOWN_PICTURES} square images per data set; tenggat itself does \
         not train it",
        profile.name
    )];
    Some((job, name, notes))
}

/// Adds what a job says to other programs alone.
pub fn for_others(text: &str, job: &mut PlanJob) {
    let Some((process, _)) = process(text) else { return };
    let (train, model) = (&process["train"], &process["model"]);
    let datasets = process["datasets"].as_array().map_or(&[][..], Vec::as_slice);
    let cached = |set: &Value| set["cache_text_embeddings"] == true;
    let all_cached = !datasets.is_empty() && datasets.iter().all(cached);
    let offloaded = model["layer_offloading"] == true;
    let share = model["layer_offloading_transformer_percent"].as_f64().unwrap_or(1.0).clamp(0.0, 1.0);
    let swapped = if offloaded { (share * job.model.layers() as f64).ceil() as u64 } else { 0 };
    job.elsewhere = Elsewhere {
        compiled: model["compile"].as_bool().or(job.elsewhere.compiled),
        checkpointed: train["gradient_checkpointing"].as_bool(),
        captions_encoded: train["cache_text_embeddings"] == true
            || train["unload_text_encoder"] == true
            || all_cached,
        swapped_blocks: swapped,
        ..job.elsewhere
    };
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64))
}

fn accumulation(train: &Value) -> u64 {
    let of = |key: &str| number(&train[key]).unwrap_or(1);
    of("gradient_accumulation").max(of("gradient_accumulation_steps")).max(1)
}

fn optimiser(name: &Value) -> Optimiser {
    match name.as_str().unwrap_or_default().to_lowercase().as_str() {
        "adamw" | "adam" => Optimiser::AdamW,
        name if name.contains("prodigy") => Optimiser::Prodigy,
        name if name.contains("adafactor") => Optimiser::Adafactor,
        name if name.contains("lion") => Optimiser::Lion,
        _ => Optimiser::AdamW8bit,
    }
}

/// Squares of the data sets' resolutions.
fn buckets(process: &Value) -> Vec<BucketShape> {
    let square =
        |side: u64| BucketShape { width_px: side, height_px: side, share: 1.0, pictures: UNKNOWN_PICTURES };
    let sides = |set: &Value| -> Vec<u64> {
        match &set["resolution"] {
            Value::Array(sides) => sides.iter().filter_map(number).collect(),
            one => vec![number(one).unwrap_or(512)],
        }
    };
    let datasets = process["datasets"].as_array().map_or(&[][..], Vec::as_slice);
    let sides: Vec<u64> = datasets.iter().flat_map(sides).filter(|side| (32..=8192).contains(side)).collect();
    if sides.is_empty() { vec![square(1024)] } else { sides.into_iter().map(square).collect() }
}

/// Control images of the data set that has most.
fn controls(process: &Value) -> usize {
    let given = |value: &Value| match value {
        Value::Null => 0,
        Value::Array(paths) => paths.len(),
        _ => 1,
    };
    let of = |set: &Value| {
        let numbered: usize = (1..=3).map(|n| given(&set[format!("control_path_{n}")])).sum();
        given(&set["control_path"]) + numbered
    };
    process["datasets"].as_array().map_or(0, |sets| sets.iter().map(of).max().unwrap_or(0))
}

fn samples(sample: &Value, train: &Value) -> Option<SampleJob> {
    let prompts = sample["prompts"].as_array().or_else(|| sample["samples"].as_array())?;
    let off = train["disable_sampling"] == true || sample["disabled"] == true;
    let side = |key: &str, own: &Value| number(&own[key]).or_else(|| number(&sample[key])).unwrap_or(1024);
    let guidance = sample["guidance_scale"].as_f64().unwrap_or(1.0);
    let picture = |own: &Value| SamplePicture {
        width_px: side("width", own),
        height_px: side("height", own),
        denoising_steps: number(&sample["sample_steps"]).unwrap_or(20),
        guided: guidance > 1.0,
    };
    (!off && !prompts.is_empty()).then(|| SampleJob {
        every_steps: number(&sample["sample_every"]).unwrap_or(0),
        start_step: 0,
        pictures: prompts.iter().map(picture).collect(),
        first: train["skip_first_sample"] != true,
        last: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KREA: &str = "\
job: extension
config:
  name: my_krea
  process:
    - type: diffusion_trainer
      network: {type: lora, linear: 32, linear_alpha: 32}
      save: {save_every: 250}
      datasets:
        - {folder_path: pictures, resolution: [512, 1024], control_path: before}
      train: {batch_size: 2, steps: 2000, gradient_accumulation: 3, gradient_checkpointing: true, optimizer: adamw8bit,
              cache_text_embeddings: true}
      model: {name_or_path: krea/Krea-2-Raw, arch: krea2, quantize: true, qtype: qfloat8}
      sample: {sample_every: 250, width: 1024, height: 768, sample_steps: 25, guidance_scale: 4,
               samples: [{prompt: a fox}, {prompt: an owl, width: 1344}]}
";

    #[test]
    fn a_job_of_another_model_is_read_as_far_as_planning_needs() {
        let (job, name, notes) = of_another_model(KREA).unwrap();
        assert_eq!((name.as_str(), job.model.name.as_ref()), ("my_krea", "krea2"));
        assert_eq!((job.rank, job.batch, job.accumulation, job.steps), (32, 2, 3, Some(2000)));
        assert_eq!((job.precision, job.save_every, job.controls.len()), (Precision::Float8, 250, 1));
        assert_eq!(job.buckets.iter().map(|b| b.width_px).collect::<Vec<_>>(), [512, 1024]);
        assert_eq!((job.elsewhere.checkpointed, job.elsewhere.captions_encoded), (Some(true), true));
        let samples = job.samples.unwrap();
        assert_eq!(samples.pictures.iter().map(|p| p.width_px).collect::<Vec<_>>(), [1024, 1344]);
        assert!(samples.pictures[0].guided && notes[0].contains("krea2"));
    }

    #[test]
    fn other_texts_are_left_to_others() {
        assert!(of_another_model("").is_none());
        assert!(of_another_model("not: a job").is_none());
        assert!(of_another_model(&KREA.replace("arch: krea2", "arch: qwen_image")).is_none());
        assert!(of_another_model(&KREA.replace("krea2", "sd15").replace("krea/Krea-2-Raw", "x")).is_none());
        let edit = KREA.replace("arch: krea2", "arch: 'qwen_image_edit_plus:2509'");
        assert_eq!(of_another_model(&edit).unwrap().0.model.name, "qwen-image-edit-plus");
    }
}
