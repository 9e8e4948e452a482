//! `tenggat init FOLDER`: a commented job for a folder of pictures.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use tenggat_train::data::pictures;
use tenggat_train::job::Job;

use crate::output::{say, warning};

/// `tenggat init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Folder of pictures with captions beside them (`fox.png`, `fox.txt`).
    pub folder: PathBuf,
    /// Name of the LoRA (default: the folder's).
    #[arg(long)]
    pub name: Option<String>,
    /// Word that stands for the new concept, if the captions need one.
    #[arg(long)]
    pub trigger: Option<String>,
    /// Model folder, hub id, or `mini`.
    #[arg(long, default_value = "Qwen/Qwen-Image")]
    pub model: String,
    /// Job file to write (default: the folder's name with .yaml, beside the folder).
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Writes the job; never over an existing file.
pub fn init(args: &InitArgs) -> anyhow::Result<()> {
    let folder = args.folder.canonicalize().with_context(|| format!("{}", args.folder.display()))?;
    let own = folder.file_name().map_or("lora".into(), |name| name.to_string_lossy().into_owned());
    let name = args.name.clone().unwrap_or_else(|| own.trim_start_matches('.').to_owned());
    let out = args.out.clone().unwrap_or_else(|| folder.with_file_name(format!("{own}.yaml")));
    anyhow::ensure!(!out.exists(), "{} already exists; name another file with --out", out.display());
    let text = job_text(&folder, &name, args)?;
    // The job is read back, so that a name that no job can have is reported here.
    let (job, _) = Job::from_str(&text, &out, None, &|_| None)?;
    let pictures::Loaded { items, bad, remarks } = pictures::load(&job.datasets, job.compat, job.seed)?;
    for bad in &bad {
        warning!("left out: {}", bad.error);
    }
    remarks.iter().for_each(|remark| warning!("{remark}"));
    tenggat_train::files::atomic::write(&out, text.as_bytes()).with_context(|| out.display().to_string())?;
    let pictures: BTreeSet<&Path> = items.iter().map(|item| item.path.as_path()).collect();
    say!("{}: {} images; try `tenggat check {0}`", out.display(), pictures.len());
    Ok(())
}

/// The job: pictures at up to three resolutions that they reach, 100 steps a picture.
fn job_text(folder: &Path, name: &str, args: &InitArgs) -> anyhow::Result<String> {
    let mini = args.model == crate::assets::MINI;
    let resolution = if mini { "[128]" } else { "[512, 768, 1024]" };
    let quoted = |text: &str| serde_json::to_string(text);
    let mut text = String::new();
    let trigger = match &args.trigger {
        Some(word) => format!("      trigger_word: {}\n", quoted(word)?),
        None => "      # trigger_word: \"p3r5on\"    # put before captions that lack it\n".into(),
    };
    write!(
        text,
        "# A Qwen-Image LoRA of the pictures in {folder}.
#
#   tenggat check this.yaml
#   tenggat train this.yaml --budget 2h
job: extension
config:
  name: {name}
  process:
    - type: sd_trainer
      training_folder: output           # results go to output/<name>
      log_dir: output/logs              # curves for TensorBoard: tensorboard --logdir output/logs
{trigger}      training_seed: 42
      network:
        type: lora
        linear: {rank}                      # rank: more learns more detail and takes more memory
        linear_alpha: {rank}
      save:
        dtype: bf16
        save_every: 250
        max_step_saves_to_keep: 4
      datasets:
        - folder_path: {path}
          caption_ext: txt              # fox.png has its caption in fox.txt
          caption_dropout_rate: 0.05    # share of steps without the caption
          resolution: {resolution}
          cache_latents_to_disk: true   # in _latent_cache beside the pictures
          # flip_x: true                # add mirrored copies, where left and right do not matter
      train:
        # Without `steps`, or with --fill, a --budget decides; the learning rate reaches its end with it.
        steps: 2000
        batch_size: 1
        lr: 1e-4
        optimizer: adamw8bit
        optimizer_params:
          weight_decay: 1e-4
        timestep_type: {timesteps}
        cache_text_embeddings: true
        dtype: bf16
      model:
        name_or_path: {model}
        arch: qwen_image
{quantise}      sample:
        sample_every: 500
        width: {side}
        height: {side}
        guidance_scale: 4
        sample_steps: 25
        neg: \"\"
        seed: 42
        prompts:
          - {prompt}
meta:
  name: \"[name]\"
",
        folder = folder.display().to_string().replace(['\n', '\r'], " "),
        name = quoted(name)?,
        rank = 16,
        path = quoted(&folder.display().to_string())?,
        timesteps = if mini { "sigmoid" } else { "weighted" },
        model = quoted(&args.model)?,
        quantise = if mini {
            ""
        } else {
            "        quantize: true                  # for cards below 48 GB; false is exact\n        \
             qtype: qfloat8\n"
        },
        side = if mini { 128 } else { 1024 },
        prompt = match &args.trigger {
            Some(_) => "\"[trigger]\"",
            None => "\"a picture in this style\"",
        },
    )?;
    Ok(text)
}
