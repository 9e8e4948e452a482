//! From the raw structs to the job: defaults, names, limits. Defaults: ai-toolkit
//! `toolkit/config_modules.py`.

mod datasets;
mod optimiser;
mod sample;
mod train;

use std::path::PathBuf;

use super::raw;
use super::source::{Mark, Source};
use super::tree::{Node, Value};
use super::types::*;
use super::values::{self, Choice, Deliver, NetworkKind, Qtype, Unchosen};
use super::{Compat, Error, Result, Warning};
use crate::repository::is_repository;

/// Decides; keeps the tree to say where a value is that makes no sense.
pub(super) struct Resolver<'a> {
    pub source: &'a Source,
    pub tree: &'a Node,
    pub warnings: &'a mut Vec<Warning>,
}

const PROCESS: &str = "config.process[0]";

impl Resolver<'_> {
    /// The place of a key such as `config.process[0].train.lr`, or of the nearest section around it.
    fn mark(&self, path: &str) -> Mark {
        let mut node = self.tree;
        for part in path.split('.') {
            let (key, index) = match part.split_once('[') {
                Some((key, index)) => (key, index.trim_end_matches(']').parse::<usize>().ok()),
                None => (part, None),
            };
            let Some(mut next) = node.get(key) else { break };
            if let (Some(i), Value::List(items)) = (index, &next.value)
                && let Some(item) = items.get(i)
            {
                next = item;
            }
            node = next;
        }
        node.at
    }

    pub(super) fn wrong(&self, path: &str, message: impl Into<String>) -> Error {
        let place = self.source.place(self.mark(path));
        Error::Value { place: place.into(), key: path.into(), message: message.into() }
    }

    pub(super) fn refused(&self, path: &str, why: &str, instead: &str) -> Error {
        let place = self.source.place(self.mark(path));
        Error::Refused { place: place.into(), key: path.into(), why: why.into(), instead: instead.into() }
    }

    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>) {
        let place = self.source.place(self.mark(path));
        self.warnings.push(Warning { place, message: message.into() });
    }

    fn missing(&self, key: &'static str, hint: &'static str) -> Error {
        Error::Missing { place: self.source.place(self.mark(key)).into(), key, hint }
    }

    pub(super) fn choose<T: Copy>(
        &self,
        path: &str,
        name: Option<&str>,
        choices: &'static [Choice<T>],
        default: T,
    ) -> Result<T> {
        let Some(name) = name else { return Ok(default) };
        values::choose(name, choices).map_err(|e| match e {
            Unchosen::Refused(instead) => self.refused(path, &format!("`{name}` is not done"), instead),
            Unchosen::Unknown(message) => self.wrong(path, message),
        })
    }

    /// A value within limits.
    pub(super) fn within(&self, path: &str, value: f64, low: f64, high: f64) -> Result<f64> {
        if (low..=high).contains(&value) {
            return Ok(value);
        }
        let limits = if high.is_finite() { format!("{low} to {high}") } else { format!("{low} or more") };
        Err(self.wrong(path, format!("{value} is out of range; expected {limits}")))
    }

    /// A count of at least 1.
    pub(super) fn count(&self, path: &str, value: Option<u64>, default: usize) -> Result<usize> {
        match value {
            None => Ok(default),
            Some(0) => Err(self.wrong(path, "0 is out of range; expected 1 or more")),
            Some(n) => usize::try_from(n).map_err(|_| self.wrong(path, "too large a number")),
        }
    }

    fn seconds(&self, path: &str, text: Option<&str>) -> Result<Option<f64>> {
        text.map(tenggat_plan::parse_duration_s).transpose().map_err(|e| self.wrong(path, e.to_string()))
    }

    /// Refuses other architectures; done first, for their jobs have keys that Qwen-Image's have not.
    pub(super) fn architecture(&self, file: &raw::File) -> Result<()> {
        let processes = file.config.as_ref().and_then(|c| c.process.as_ref());
        let model = processes.and_then(|p| p.first()?.model.as_ref());
        // `qwen_image:2512` is the same architecture; the tag is the user's note.
        match model.and_then(|m| m.arch.as_deref()).map(|a| a.split(':').next().unwrap_or(a)) {
            None | Some(ARCH) => Ok(()),
            Some(other) => {
                let why = format!("the architecture `{other}` is not done");
                Err(self.refused(&format!("{PROCESS}.model.arch"), &why, "train `arch: qwen_image`"))
            }
        }
    }

    /// The whole job.
    pub(super) fn job(&mut self, file: raw::File, text: String, name: Option<String>) -> Result<Job> {
        match file.job.as_deref() {
            Some("extension") => {}
            Some("train") => {
                return Err(self.refused(
                    "job",
                    "`train` is the old form without `sd_trainer`",
                    "write `job: extension`",
                ));
            }
            Some(other) => {
                let why = format!("jobs of the kind `{other}` do not train a LoRA");
                return Err(self.refused("job", &why, "write `job: extension`"));
            }
            None => return Err(self.missing("job", "write `job: extension`")),
        }
        let config =
            file.config.ok_or_else(|| self.missing("config", "it holds the name and the process"))?;
        let name = name
            .or(config.name)
            .ok_or_else(|| self.missing("config.name", "name the run, there or with `--name`"))?;
        self.check_name(&name)?;
        let processes = config.process.unwrap_or_default();
        if processes.len() > 1 {
            return Err(self.refused(
                "config.process[1]",
                "a job has one process",
                "write one file for each",
            ));
        }
        let process = processes
            .into_iter()
            .next()
            .ok_or_else(|| self.missing("config.process", "write one process of `type: sd_trainer`"))?;
        match process.r#type.as_deref() {
            Some("sd_trainer" | "diffusion_trainer" | "ui_trainer") => {}
            Some(other) => {
                let why = format!("processes of the type `{other}` do not train a LoRA");
                return Err(self.refused(&format!("{PROCESS}.type"), &why, "write `type: sd_trainer`"));
            }
            None => return Err(self.missing("config.process[0].type", "write `type: sd_trainer`")),
        }
        let own = process.tenggat.unwrap_or_default();
        let mut compat = Compat::default();
        for (path, names) in [("compat", file.compat), ("config.process[0].tenggat.compat", own.compat)] {
            for name in names.unwrap_or_default().0 {
                compat.turn_on(&name).map_err(|message| self.wrong(path, message))?;
            }
        }
        let limits = Limits {
            budget_s: self.seconds(&format!("{PROCESS}.tenggat.budget"), own.budget.as_deref())?,
            deadline: self.deadline(own.deadline.as_deref())?,
            fill: own.fill.unwrap_or(false),
            margin_s: self.seconds(&format!("{PROCESS}.tenggat.margin"), own.margin.as_deref())?,
            memory_bytes: match own.memory_limit.as_deref().map(tenggat_plan::parse_bytes) {
                None => None,
                Some(Ok(bytes)) => Some(bytes),
                Some(Err(e)) => {
                    return Err(self.wrong(&format!("{PROCESS}.tenggat.memory_limit"), e.to_string()));
                }
            },
            threads: match own.threads {
                None => None,
                some => Some(self.count(&format!("{PROCESS}.tenggat.threads"), some, 1)?),
            },
        };
        let train = process.train.unwrap_or_default();
        let seed = own.seed.or(process.training_seed).or(train.seed).unwrap_or(DEFAULT_SEED);
        let trigger_word = process.trigger_word.filter(|t| !t.trim().is_empty());
        let folder = process.training_folder.unwrap_or_else(|| "output".into());
        let batch_size = self.count(&format!("{PROCESS}.train.batch_size"), train.batch_size, 1)?;
        let cached_text = train.cache_text_embeddings.unwrap_or(false);
        let datasets =
            self.datasets(process.datasets.unwrap_or_default(), &trigger_word, batch_size, cached_text)?;
        let sample = self.sample(process.sample, &train, &trigger_word, compat)?;
        let save = process.save.unwrap_or_default();
        let push = self.push(&save)?;
        let mut train = self.train(train, batch_size, &trigger_word, compat)?;
        if let Some(product) = own.lr_times_steps {
            let path = format!("{PROCESS}.tenggat.lr_times_steps");
            train.lr_times_steps = Some(self.within(&path, product, 1e-9, 1e9)?);
        }
        let best = own.keep_best.unwrap_or(false);
        if best && train.validation.is_none() {
            let message = "nothing says what is best; name pictures in `train.validation_config`";
            return Err(self.wrong("config.process[0].tenggat.keep_best", message));
        }
        let deliver = self.choose(
            &format!("{PROCESS}.tenggat.deliver"),
            own.deliver.as_deref(),
            values::DELIVERIES,
            Deliver::Newest,
        )?;
        Ok(Job {
            folder: PathBuf::from(folder).join(&name),
            name,
            text,
            seed,
            log_dir: process.log_dir.filter(|d| !d.is_empty()).map(PathBuf::from),
            meta: file.meta.unwrap_or_default().0,
            log_every: process.logging.and_then(|l| l.log_every).unwrap_or(100).max(1),
            network: self.network(process.network.unwrap_or_default())?,
            save: self.save(save, best, deliver)?,
            push,
            datasets,
            held_out: own.held_out.filter(|path| !path.is_empty()).map(PathBuf::from),
            model: self.model(process.model.unwrap_or_default(), own.fp8_products.unwrap_or(false))?,
            train,
            sample,
            resume: own.resume.unwrap_or(true),
            limits,
            compat,
            trigger_word,
        })
    }

    /// The name becomes a folder and the start of file names.
    fn check_name(&self, name: &str) -> Result<()> {
        if name.trim().is_empty() || name.contains(['/', '\\', '\0']) || name.starts_with('.') {
            let message =
                format!("{name:?} cannot be a folder's name; expected no slash, and no dot at the start");
            return Err(self.wrong("config.name", message));
        }
        Ok(())
    }

    fn deadline(&self, text: Option<&str>) -> Result<Option<jiff::Timestamp>> {
        let Some(text) = text else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let message = format!("{text:?} is no moment; expected one such as 2026-05-01T18:00:00+02:00");
            self.wrong("config.process[0].tenggat.deadline", message)
        })
    }

    fn network(&mut self, raw: raw::Network) -> Result<Network> {
        let at = |key: &str| format!("{PROCESS}.network.{key}");
        let is_lokr = match raw.r#type.as_deref().unwrap_or("lora") {
            "lora" => false,
            "lokr" => true,
            other => {
                let why = format!("networks of the type `{other}` are not trained");
                return Err(self.refused(&at("type"), &why, "write `type: lora` or `type: lokr`"));
            }
        };
        if is_lokr && raw.lokr_full_rank == Some(false) {
            let why = "factors of Kronecker products are whole matrices";
            return Err(self.refused(&at("lokr_full_rank"), why, "make them smaller with `lokr_factor`"));
        }
        let factor = usize::try_from(raw.lokr_factor.unwrap_or(-1)).ok().filter(|&f| f > 0);
        let key = if raw.rank.is_some() { "rank" } else { "linear" };
        let rank = self.count(&at(key), raw.rank.or(raw.linear), 4)?;
        let alpha = raw.linear_alpha.or(raw.alpha);
        if let Some(alpha) = alpha.filter(|&a| a != rank as f64 && !is_lokr) {
            let message = format!(
                "alpha {alpha} has no effect: ai-toolkit sets it to the rank, {rank}, for this model"
            );
            let key = if raw.linear_alpha.is_some() { "linear_alpha" } else { "alpha" };
            self.warn(&at(key), message);
        }
        let arguments = raw.network_kwargs.unwrap_or_default();
        let chance = |key: &str, value: Option<f64>| match value.unwrap_or(0.0) {
            rate if (0.0..1.0).contains(&rate) => Ok(rate),
            rate => Err(self.wrong(&at(key), format!("{rate} is out of range; expected 0 to below 1"))),
        };
        let dropped = [raw.dropout, arguments.rank_dropout, arguments.module_dropout];
        if is_lokr && dropped.iter().flatten().any(|&rate| rate > 0.0) {
            return Err(self.refused(&at("dropout"), "LoKr has no dropout", "leave it out, or train a LoRA"));
        }
        Ok(Network {
            kind: if is_lokr { NetworkKind::Lokr { factor } } else { NetworkKind::Lora },
            rank,
            only_if_contains: arguments.only_if_contains.unwrap_or_default().0,
            ignore_if_contains: arguments.ignore_if_contains.unwrap_or_default().0,
            dropout: chance("dropout", raw.dropout)?,
            rank_dropout: chance("network_kwargs.rank_dropout", arguments.rank_dropout)?,
            module_dropout: chance("network_kwargs.module_dropout", arguments.module_dropout)?,
            pretrained: raw.pretrained_lora_path.filter(|p| !p.is_empty()).map(PathBuf::from),
        })
    }

    fn push(&self, raw: &raw::Save) -> Result<Option<Push>> {
        if raw.push_to_hub != Some(true) {
            return Ok(None);
        }
        let path = format!("{PROCESS}.save.hf_repo_id");
        match &raw.hf_repo_id {
            Some(name) if is_repository(name) => {
                Ok(Some(Push { repository: name.clone(), private: raw.hf_private.unwrap_or(false) }))
            }
            other => {
                let message = format!("{other:?} names no repository; expected account/name");
                Err(self.wrong(&path, message))
            }
        }
    }

    fn save(&self, raw: raw::Save, best: bool, deliver: Deliver) -> Result<Save> {
        let at = |key: &str| format!("{PROCESS}.save.{key}");
        // Upstream ignores the format of a LoRA, and its web page writes `diffusers`.
        match raw.save_format.as_deref() {
            None | Some("safetensors" | "diffusers") => {}
            Some(other) => {
                return Err(
                    self.wrong(&at("save_format"), format!("{other:?} is not known; expected safetensors"))
                );
            }
        }
        Ok(Save {
            every: self.count(&at("save_every"), raw.save_every, 1000)? as u64,
            best,
            deliver,
            keep: raw.max_step_saves_to_keep.unwrap_or(5),
            dtype: self.choose(
                &at("dtype"),
                raw.dtype.as_deref(),
                values::SAVE_TYPES,
                values::SaveType::F16,
            )?,
        })
    }

    fn model(&mut self, raw: raw::Model, fp8_products: bool) -> Result<Model> {
        let at = |key: &str| format!("{PROCESS}.model.{key}");
        let name_or_path = raw.name_or_path.filter(|n| !n.trim().is_empty()).ok_or_else(|| {
            self.missing(
                "config.process[0].model.name_or_path",
                "name a folder, or a model such as Qwen/Qwen-Image",
            )
        })?;
        if raw.arch.is_none() {
            return Err(self.missing("config.process[0].model.arch", "write `arch: qwen_image`"));
        }
        let qtype = raw.qtype.as_deref().unwrap_or("qfloat8");
        let mut parts = qtype.split('|').map(str::trim);
        let (format, adapter) = (parts.next().unwrap_or_default(), parts.next());
        if parts.next().is_some() {
            return Err(self.wrong(&at("qtype"), "more than one `|`; expected `format` or `format|adapter`"));
        }
        let quantise = raw.quantize.unwrap_or(false);
        let quantisation = if quantise {
            Some(self.choose(&at("qtype"), Some(format), values::QUANTISATIONS, Qtype::QFloat8)?)
        } else {
            None
        };
        let text_quantisation = if raw.quantize_te.unwrap_or(quantise) {
            let name = raw.qtype_te.as_deref();
            Some(self.choose(&at("qtype_te"), name, values::QUANTISATIONS, Qtype::QFloat8)?)
        } else {
            None
        };
        let recovery_adapter =
            adapter.map(String::from).or(raw.accuracy_recovery_adapter).filter(|_| quantise);
        let low_vram = raw.low_vram.unwrap_or(false);
        let offloads = raw.layer_offloading.unwrap_or(false);
        let share = raw.layer_offloading_transformer_percent.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&share) {
            let message = format!("{share}: expected a share from 0 to 1");
            return Err(self.wrong(&at("layer_offloading_transformer_percent"), message));
        }
        // As ai-toolkit does: quanto's tensors do not move between devices.
        let quantisation = quantisation.map(|format| match format {
            Qtype::QFloat8 if offloads => Qtype::Float8,
            other => other,
        });
        let offloaded_share = if offloads { share } else { 0.0 };
        Ok(Model {
            name_or_path,
            quantisation,
            recovery_adapter,
            text_quantisation,
            fp8_products,
            low_vram,
            offloaded_share,
        })
    }
}

/// Seed of jobs that do not name one; ai-toolkit then draws one that nobody can repeat.
const DEFAULT_SEED: u64 = 42;
