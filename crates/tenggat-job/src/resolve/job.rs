//! The job as a whole.

use std::path::PathBuf;

use super::resolver::{PROCESS, Resolver};
use crate::moment::parse_moment;
use crate::values::{self, Deliver};
use crate::{ARCH, Compat, ErrorWeights, Job, Limits, raw};

/// Seed of jobs that do not name one; ai-toolkit then draws one that nobody can repeat.
const DEFAULT_SEED: u64 = 42;
/// Most bytes of a name. File systems allow 255 for a file, and endings such as `_000000250.safetensors` and
/// those of unfinished files come behind the name.
const NAME_BYTES: usize = 200;

impl Resolver<'_> {
    /// Whether this is a job that trains a LoRA of Qwen-Image. Looked at first: other jobs have other keys,
    /// of which nothing need be said.
    pub(crate) fn is_ours(&mut self, file: &raw::File) -> bool {
        match file.job.as_deref() {
            None | Some("extension") => {}
            Some("train") => {
                self.refused("job", "`train` is the old form without `sd_trainer`", "write `job: extension`");
                return false;
            }
            Some(other) => {
                let why = format!("jobs of the kind `{other}` do not train a LoRA");
                self.refused("job", &why, "write `job: extension`");
                return false;
            }
        }
        let processes = file.config.as_ref().and_then(|c| c.process.as_ref());
        let Some(process) = processes.and_then(|p| p.first()) else { return true };
        match process.r#type.as_deref() {
            None | Some("sd_trainer" | "diffusion_trainer" | "ui_trainer") => {}
            Some(other) => {
                let why = format!("processes of the type `{other}` do not train a LoRA");
                self.refused(&format!("{PROCESS}.type"), &why, "write `type: sd_trainer`");
                return false;
            }
        }
        // `qwen_image:2512` is the same architecture; the tag is the user's note.
        let arch = process.model.as_ref().and_then(|m| m.arch.as_deref());
        match arch.map(|a| a.split(':').next().unwrap_or(a)) {
            None | Some(ARCH) => true,
            Some(other) => {
                let why = format!("the architecture `{other}` is not trained");
                self.refused(&format!("{PROCESS}.model.arch"), &why, "train `arch: qwen_image`");
                false
            }
        }
    }

    /// The whole job; of no use if there were errors.
    pub(crate) fn job(&mut self, file: raw::File, text: String, name: Option<String>) -> Job {
        if file.job.is_none() {
            self.missing("job", "write `job: extension`");
        }
        let config = file.config.unwrap_or_else(|| {
            self.missing("config", "it holds the name and the process");
            raw::Config { process: Some(Vec::new()), ..Default::default() }
        });
        let name = self.name(name.or(config.name));
        let process = self.process(config.process);
        let own = process.tenggat.unwrap_or_default();
        let compat = self.compat(file.compat, own.compat.clone());
        let limits = self.limits(&own);
        let train = process.train.unwrap_or_default();
        let seed = own.seed.or(process.training_seed).or(train.seed).unwrap_or(DEFAULT_SEED);
        let trigger_word = process.trigger_word.filter(|t| !t.trim().is_empty());
        let folder = process.training_folder.unwrap_or_else(|| "output".into());
        let batch_size = train.batch_size.unwrap_or(1) as usize;
        let cached_text = train.cache_text_embeddings.unwrap_or(false);
        let datasets = self.datasets(process.datasets, &trigger_word, batch_size, cached_text);
        let sample = self.sample(process.sample, &train, &trigger_word, compat);
        let save = process.save.unwrap_or_default();
        let push = self.push(&save);
        let mut train = self.train(train, batch_size, &trigger_word, compat);
        train.lr_times_steps = own.lr_times_steps;
        let best = own.keep_best.unwrap_or(false);
        if best && train.validation.is_none() {
            let message = "there is nothing to measure it by; name images in `train.validation_config`";
            self.wrong("config.process[0].tenggat.keep_best", message);
        }
        let held_out_weights = self.held_out_weights(own.held_out_weights.as_deref());
        let deliver = format!("{PROCESS}.tenggat.deliver");
        let deliver = self.choose(&deliver, own.deliver.as_deref(), values::DELIVERIES, Deliver::Newest);
        Job {
            folder: PathBuf::from(folder).join(&name),
            name,
            config: text.clone(),
            text,
            seed,
            log_dir: process.log_dir.filter(|d| !d.is_empty()).map(PathBuf::from),
            meta: file.meta.unwrap_or_default().0,
            log_every: process.logging.and_then(|l| l.log_every).unwrap_or(100).max(1),
            network: self.network(process.network),
            save: self.save(save, best, deliver),
            push,
            datasets,
            held_out: own.held_out.filter(|path| !path.is_empty()).map(PathBuf::from),
            held_out_weights,
            model: self.model(process.model.unwrap_or_default(), own.fp8_products.unwrap_or(false)),
            train,
            sample,
            resume: own.resume.unwrap_or(true),
            limits,
            compat,
            trigger_word,
        }
    }

    /// The name becomes a folder and the start of file names.
    fn name(&mut self, name: Option<String>) -> String {
        let Some(name) = name else {
            self.missing("config.name", "name the run, there or with `--name`");
            return String::new();
        };
        if name.trim().is_empty() || name.contains(['/', '\\', '\0']) || name.starts_with('.') {
            let message =
                format!("{name:?} cannot be a folder's name; expected no slash, and no dot at the start");
            self.wrong("config.name", message);
        } else if name.len() > NAME_BYTES {
            let bytes = name.len();
            let message = format!(
                "the name has {bytes} bytes; files are named after it, so it may have at most {NAME_BYTES}"
            );
            self.wrong("config.name", message);
        }
        name
    }

    fn process(&mut self, processes: Option<Vec<raw::Process>>) -> raw::Process {
        let processes = processes.unwrap_or_default();
        if processes.len() > 1 {
            self.refused("config.process[1]", "a job has one process", "write one file for each");
        }
        let Some(process) = processes.into_iter().next() else {
            self.missing("config.process", "write one process of `type: sd_trainer`");
            return raw::Process::default();
        };
        if process.r#type.is_none() {
            self.missing("config.process[0].type", "write `type: sd_trainer`");
        }
        process
    }

    fn compat(
        &mut self,
        file: Option<raw::OneOrMany<String>>,
        own: Option<raw::OneOrMany<String>>,
    ) -> Compat {
        let mut compat = Compat::default();
        for (path, names) in [("compat", file), ("config.process[0].tenggat.compat", own)] {
            for name in names.unwrap_or_default().0 {
                if let Err(message) = compat.turn_on(&name) {
                    self.wrong(path, message);
                }
            }
        }
        compat
    }

    fn limits(&mut self, own: &raw::Tenggat) -> Limits {
        Limits {
            budget_s: self.parsed("budget", own.budget.as_deref(), tenggat_plan::parse_duration_s),
            deadline: self.deadline(own.deadline.as_deref()),
            fill: own.fill.unwrap_or(false),
            margin_s: self.parsed("margin", own.margin.as_deref(), tenggat_plan::parse_duration_s),
            memory_bytes: self.parsed("memory_limit", own.memory_limit.as_deref(), tenggat_plan::parse_bytes),
            threads: own.threads.map(|threads| threads as usize),
        }
    }

    fn held_out_weights(&mut self, text: Option<&str>) -> ErrorWeights {
        let Some(text) = text else { return ErrorWeights::default() };
        text.parse().unwrap_or_else(|message: String| {
            self.wrong("config.process[0].tenggat.held_out_weights", message);
            ErrorWeights::default()
        })
    }

    /// A quantity with its unit, under `tenggat`.
    fn parsed<E: ToString>(
        &mut self,
        key: &str,
        text: Option<&str>,
        parse: impl Fn(&str) -> Result<f64, E>,
    ) -> Option<f64> {
        match parse(text?) {
            Ok(value) => Some(value),
            Err(e) => {
                self.wrong(&format!("{PROCESS}.tenggat.{key}"), e.to_string());
                None
            }
        }
    }

    fn deadline(&mut self, text: Option<&str>) -> Option<jiff::Timestamp> {
        match parse_moment(text?) {
            Ok(moment) => Some(moment),
            Err(message) => {
                self.wrong("config.process[0].tenggat.deadline", message);
                None
            }
        }
    }
}
