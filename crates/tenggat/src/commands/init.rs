//! `tenggat init FOLDER`: a commented job for a folder of images.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tenggat_train::data::pictures::{self, Item};
use tenggat_train::files::atomic;
use tenggat_train::job::Job;

use crate::assets;
use crate::output::{say, warning};

/// Sample prompts that are taken from the captions.
const PROMPTS: usize = 3;
/// Longest caption, in characters, that makes a sample prompt.
const LONGEST_PROMPT: usize = 300;

/// `tenggat init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Folder of images with captions beside them (`fox.png`, `fox.txt`).
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
    /// Keep this many images out of training, to measure the LoRA on them; lists beside the job say which.
    #[arg(long, value_name = "IMAGES", value_parser = clap::value_parser!(u16).range(1..))]
    pub held_out: Option<u16>,
}

/// Writes the job; never over an existing file.
pub fn init(args: &InitArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        !args.folder.is_file(),
        "{} is a file; name the folder of your images",
        args.folder.display()
    );
    let folder = args.folder.canonicalize().with_context(|| format!("{}", args.folder.display()))?;
    let own = folder.file_name().map_or("lora".into(), |name| name.to_string_lossy().into_owned());
    let name = args.name.clone().unwrap_or_else(|| own.trim_start_matches('.').to_owned());
    let out = args.out.clone().unwrap_or_else(|| folder.with_file_name(format!("{own}.yaml")));
    anyhow::ensure!(!out.exists(), "{} already exists; name another file with --out", out.display());
    let shown = from_here(&out);
    let mut draft =
        Draft { name: &name, job: &shown, data: folder.clone(), held_out: None, prompts: Vec::new() };
    // The job is read back, so that a name that no job can have is reported here.
    let (job, _) = Job::from_str(&draft.text(args)?, &out, None, &|_| None)?;
    let pictures::Loaded { items, bad, remarks } = pictures::load(&job.datasets, job.compat, job.seed)?;
    for bad in &bad {
        warning!("left out: {}", bad.error);
    }
    remarks.iter().for_each(|remark| warning!("{remark}"));
    draft.prompts = sample_prompts(&items);
    let images: BTreeSet<&Path> = items.iter().map(|item| item.path.as_path()).collect();
    if let Some(count) = args.held_out {
        let (train, held_out) = split(&images, count)?;
        for (part, images) in [("train", &train), ("held-out", &held_out)] {
            let path = out.with_extension(format!("{part}.json"));
            anyhow::ensure!(!path.exists(), "{} already exists; remove it", path.display());
            write(&path, &list(images)?)?;
        }
        let absolute = std::path::absolute(&out)?;
        draft.data = absolute.with_extension("train.json");
        draft.held_out = Some(absolute.with_extension("held-out.json"));
    }
    write(&out, &draft.text(args)?)?;
    let held_out = args.held_out.map_or(String::new(), |n| format!(", {n} of them held out to measure on"));
    let count = images.len();
    say!(
        "{shown}: {count} image{}{held_out}; next: tenggat train {shown}",
        if count == 1 { "" } else { "s" }
    );
    if args.model == assets::MINI {
        say!(
            "mini knows drawings of 128 pixels; photographs show that everything works, not what Qwen-Image \
             would make of them"
        );
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    atomic::write(path, text.as_bytes()).with_context(|| path.display().to_string())
}

/// A path as one types it here.
fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// Some captions, from all over the data set: samples of what is trained show best what was learnt.
fn sample_prompts(items: &[Item]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let captions = items.iter().filter_map(|item| item.captions.first()).map(|caption| caption.trim());
    let is_usable = |caption: &&str| {
        !caption.is_empty() && caption.chars().count() <= LONGEST_PROMPT && !caption.contains(['\n', '\r'])
    };
    let usable: Vec<&str> = captions.filter(is_usable).filter(|caption| seen.insert(*caption)).collect();
    let count = usable.len().min(PROMPTS);
    (0..count).map(|i| usable[i * usable.len() / count].to_owned()).collect()
}

/// Images to train on and images to hold out, evenly spread.
fn split<'a>(images: &BTreeSet<&'a Path>, count: u16) -> anyhow::Result<(Vec<&'a Path>, Vec<&'a Path>)> {
    let (all, count) = (images.len(), usize::from(count));
    anyhow::ensure!(count < all, "--held-out {count} leaves nothing to train on: there are {all} images");
    let chosen: BTreeSet<usize> = (0..count).map(|i| (2 * i + 1) * all / (2 * count)).collect();
    let (held_out, train): (Vec<_>, Vec<_>) =
        images.iter().enumerate().partition(|(i, _)| chosen.contains(i));
    let paths = |part: Vec<(usize, &&'a Path)>| part.into_iter().map(|(_, path)| *path).collect();
    Ok((paths(train), paths(held_out)))
}

/// A list of images as a data set takes it; captions are read from the files beside them.
fn list(images: &[&Path]) -> anyhow::Result<String> {
    let entries = images.iter().map(|path| {
        let path = path.to_str().with_context(|| format!("{} is not UTF-8; rename it", path.display()))?;
        Ok((path, json!({})))
    });
    Ok(serde_json::to_string_pretty(&entries.collect::<anyhow::Result<BTreeMap<_, _>>>()?)? + "\n")
}

/// What the job says.
struct Draft<'a> {
    name: &'a str,
    /// The job's file as one types it.
    job: &'a str,
    data: PathBuf,
    held_out: Option<PathBuf>,
    prompts: Vec<String>,
}

impl Draft<'_> {
    /// The job: images at up to three resolutions that they reach.
    fn text(&self, args: &InitArgs) -> anyhow::Result<String> {
        let quoted = |text: &str| serde_json::to_string(text);
        let held_out = match &self.held_out {
            Some(path) => format!("{{held_out: {}}}", quoted(&path.display().to_string())?),
            None => String::new(),
        };
        let prompts = match (&self.prompts[..], &args.trigger) {
            ([], Some(_)) => "          - \"[trigger]\"".to_owned(),
            ([], None) => "          - \"a picture in this style\"".to_owned(),
            (prompts, _) => {
                let lines = prompts.iter().map(|prompt| Ok(format!("          - {}", quoted(prompt)?)));
                lines.collect::<anyhow::Result<Vec<_>>>()?.join("\n")
            }
        };
        job_text(self, args, &held_out, &prompts)
    }
}

fn job_text(draft: &Draft<'_>, args: &InitArgs, held_out: &str, prompts: &str) -> anyhow::Result<String> {
    let mini = args.model == assets::MINI;
    let resolution = if mini { "[128]" } else { "[512, 768, 1024]" };
    let quoted = |text: &str| serde_json::to_string(text);
    let mut text = String::new();
    let trigger = match &args.trigger {
        Some(word) => format!("      trigger_word: {}\n", quoted(word)?),
        None => "      # trigger_word: \"p3r5on\"    # put before captions that lack it\n".into(),
    };
    let held_out = match held_out {
        "" => "      # tenggat: {held_out: FOLDER}   # images to measure on, before and after\n".to_owned(),
        own => format!("      tenggat: {own}  # measured before and after\n"),
    };
    write!(
        text,
        "# A LoRA of the images in {folder}.
#
#   tenggat check {file}
#   tenggat train {file} --budget 2h
job: extension
config:
  name: {name}
  process:
    - type: sd_trainer
      training_folder: output           # results go to output/<name>
      log_dir: output/logs              # curves for TensorBoard: tensorboard --logdir output/logs
{trigger}{held_out}      training_seed: 42
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
{prompts}
meta:
  name: \"[name]\"
",
        folder = args.folder.display().to_string().replace(['\n', '\r'], " "),
        file = draft.job.replace(['\n', '\r'], " "),
        name = quoted(draft.name)?,
        rank = 16,
        path = quoted(&draft.data.display().to_string())?,
        timesteps = if mini { "sigmoid" } else { "weighted" },
        model = quoted(&args.model)?,
        quantise = if mini {
            ""
        } else {
            "        quantize: true                  # for cards below 48 GB; false is exact\n        \
             qtype: qfloat8\n"
        },
        side = if mini { 128 } else { 1024 },
    )?;
    Ok(text)
}
