//! ai-toolkit's job file: what a drive needs to know of it, and the copy that the trainer is given.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tenggat_job::Document;

use super::Saves;
use crate::lora::LAST;
use crate::trainer::Session;

/// Process types that train with a loop that can be driven.
const TYPES: [&str; 3] = ["diffusion_trainer", "sd_trainer", "ui_trainer"];
/// Learning-rate schedules that do not depend on the number of steps.
const STEADY: [&str; 3] = ["constant", "constant_with_warmup", "step"];
/// Names in the run's folder that are not the trainer's.
const OURS: [&str; 3] = [LAST, "metrics.jsonl", "deadline.request"];
/// Saves that the trainer keeps beyond those that the job asks for, so that those asked for by the drive push
/// none out.
const EXTRA_SAVES: u64 = 2;
/// Saves that ai-toolkit keeps unless it is told otherwise.
const KEEP: u64 = 5;

/// What the file says about drives, in its section `tenggat`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Wishes {
    /// Time for the whole run.
    pub budget: Option<String>,
    /// Moment by which it must have ended.
    pub deadline: Option<String>,
    /// Use all of it.
    pub fill: bool,
    /// Time kept free before the end.
    pub margin: Option<String>,
    /// Changes to try one after another when memory runs out: paths below the process, such as
    /// `train.batch_size`, and values; `datasets.resolution` is that of every data set.
    pub on_out_of_memory: Vec<Map<String, Value>>,
    /// Folder of pictures with captions that are kept out of training, to measure on.
    pub held_out: Option<PathBuf>,
    /// Which save is delivered at the end: the newest, or the best on those.
    pub deliver: Deliver,
    /// What errors on them with captions and with the empty prompt count, such as 1:3.
    pub held_out_weights: Option<String>,
}

/// Which of the saves is delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deliver {
    /// The newest.
    #[default]
    Newest,
    /// The one with the lowest held-out error.
    Best,
}

/// A job file that ai-toolkit runs.
#[derive(Debug, Clone)]
pub struct ToolkitJob {
    /// Name of the run.
    pub name: String,
    /// Its folder: `training_folder/name`.
    pub folder: PathBuf,
    /// What the trainer is told its name and training folder are; others than the job's where its names
    /// could be mistaken for ours.
    trainer_name: String,
    trainer_folder: PathBuf,
    /// What the file says about drives.
    pub wishes: Wishes,
    /// Steps that it asks for.
    pub steps: Option<u64>,
    /// Whether its learning-rate schedule depends on the number of steps.
    pub anneals: bool,
    /// Steps between two rounds of sample pictures, if any are drawn.
    pub sample_every: Option<u64>,
    /// First step with sample pictures.
    pub sample_from: u64,
    /// Steps between two of the job's own saves.
    pub save_every: u64,
    /// Most saves that it wants to be kept; 0 for all.
    pub keep: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
    tree: Value,
}

impl ToolkitJob {
    /// Reads a job file.
    ///
    /// # Errors
    /// The file cannot be read, or is no training job of one process; the message says where and what to do.
    pub fn read(
        path: &Path,
        name: Option<&str>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> tenggat_job::Result<ToolkitJob> {
        let document = Document::read(path, name, variable)?;
        let mut tree = document.to_json();
        tree["config"]["name"] = document.name().into();
        let processes = tree["config"]["process"].as_array().map_or(0, Vec::len);
        if processes != 1 {
            let message =
                format!("a drive runs one process, and this job has {processes}; write one file for each");
            return Err(document.error(&["config", "process"], message));
        }
        let process = &tree["config"]["process"][0];
        let kind = process["type"].as_str().unwrap_or_default();
        if !TYPES.contains(&kind) {
            let message = format!(
                "`{kind}` cannot be driven through ai-toolkit's control channel, only {}; use `tenggat drive \
                 … -- python run.py JOB` instead",
                TYPES.join(", ")
            );
            return Err(document.error(&["config", "process", "0", "type"], message));
        }
        let Some(training_folder) = process["training_folder"].as_str() else {
            let message = "`training_folder` is missing; say where the results go";
            return Err(document.error(&["config", "process", "0", "training_folder"], message));
        };
        let wishes: Wishes = match &process["tenggat"] {
            Value::Null => Wishes::default(),
            section => Wishes::deserialize(section)
                .map_err(|e| document.error(&["config", "process", "0", "tenggat"], e.to_string()))?,
        };
        let folder = Path::new(training_folder).join(document.name());
        let mut job = ToolkitJob {
            name: document.name().into(),
            trainer_name: document.name().into(),
            trainer_folder: folder.clone(),
            folder,
            wishes,
            steps: process["train"]["steps"].as_u64(),
            anneals: anneals(process),
            sample_every: sample_every(process),
            sample_from: process["sample"]["sample_start_step"].as_u64().unwrap_or(0),
            save_every: process["save"]["save_every"].as_u64().unwrap_or(1000),
            keep: process["save"]["max_step_saves_to_keep"].as_u64().unwrap_or(KEEP),
            warnings: Vec::new(),
            tree,
        };
        job.keep_names_apart();
        job.look_for_doubtful_keys();
        Ok(job)
    }

    /// ai-toolkit resumes from the newest path that begins with the job's name, whatever it is. A name that
    /// our own files begin with would have it read those.
    fn keep_names_apart(&mut self) {
        if OURS.iter().any(|file| file.starts_with(self.name.as_str())) {
            self.trainer_name = "trainer".into();
            self.trainer_folder = self.folder.join("trainer");
        }
    }

    fn look_for_doubtful_keys(&mut self) {
        if self.process()["save"]["push_to_hub"] == true {
            self.warnings.push(
                "`push_to_hub` is skipped: an upload of unknown length would endanger the deadline; `--then` \
                 can do it afterwards"
                    .into(),
            );
        }
    }

    fn process(&self) -> &Value {
        &self.tree["config"]["process"][0]
    }

    /// ai-toolkit's name of the architecture, without the tag that its interface adds.
    pub fn arch(&self) -> &str {
        let arch = self.process()["model"]["arch"].as_str().unwrap_or_default();
        arch.split(':').next().unwrap_or_default()
    }

    /// The model: a folder, a file or a name on the hub.
    pub fn model(&self) -> &str {
        self.process()["model"]["name_or_path"].as_str().unwrap_or_default()
    }

    /// Its saves.
    pub fn saves(&self) -> Saves {
        Saves::new(&self.trainer_folder, &self.trainer_name)
    }

    /// The folder that the trainer writes to.
    pub fn trainer_folder(&self) -> &Path {
        &self.trainer_folder
    }

    /// The name that the trainer's files begin with.
    pub fn trainer_name(&self) -> &str {
        &self.trainer_name
    }

    /// The job less what may change without the training becoming another.
    pub fn essence(&self) -> Value {
        let mut process = self.process().clone();
        if let Some(map) = process.as_object_mut() {
            for key in
                ["tenggat", "save", "sample", "logging", "performance_log_every", "log_dir", "type", "device"]
            {
                map.remove(key);
            }
        }
        if let Some(train) = process["train"].as_object_mut() {
            for key in ["steps", "disable_sampling", "skip_first_sample", "force_first_sample"] {
                train.remove(key);
            }
        }
        process
    }

    /// The job file for one session: ai-toolkit's JSON, with the control database `database`.
    pub fn for_session(&self, session: &Session, database: &Path) -> Value {
        let mut tree = self.tree.clone();
        if let Some(root) = tree.as_object_mut() {
            root.remove("compat");
        }
        tree["config"]["name"] = self.trainer_name.clone().into();
        let process = &mut tree["config"]["process"][0];
        if let Some(map) = process.as_object_mut() {
            map.remove("tenggat");
        }
        process["type"] = "diffusion_trainer".into();
        process["sqlite_db_path"] = json!(database);
        process["training_folder"] = json!(self.trainer_folder.parent().unwrap_or(Path::new(".")));
        section(process, "train").insert("steps".into(), session.steps.into());
        let save = section(process, "save");
        save.remove("push_to_hub");
        if self.keep > 0 {
            save.insert("max_step_saves_to_keep".into(), (self.keep + EXTRA_SAVES).into());
        }
        if session.no_samples {
            section(process, "train").insert("disable_sampling".into(), true.into());
        }
        for change in self.wishes.on_out_of_memory.iter().take(session.shrink) {
            for (path, value) in change {
                set(process, path, value);
            }
        }
        if self.trainer_name != self.name {
            // `training_folder/name` is where it saves.
            process["training_folder"] = json!(self.folder);
        }
        tree
    }
}

/// Whether the schedule depends on the number of steps. Source: ai-toolkit `toolkit/scheduler.py`.
fn anneals(process: &Value) -> bool {
    let name = process["train"]["lr_scheduler"].as_str().unwrap_or("constant");
    !STEADY.contains(&name)
}

/// Steps between two rounds of sample pictures. Source: ai-toolkit `toolkit/config_modules.py`,
/// `SampleConfig`.
fn sample_every(process: &Value) -> Option<u64> {
    if process["train"]["disable_sampling"] == true || process["sample"].is_null() {
        return None;
    }
    let every = process["sample"]["sample_every"].as_u64().unwrap_or(100);
    (every > 0).then_some(every)
}

/// A section of a map, made if it is not there.
fn section<'a>(parent: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !parent[name].is_object() {
        parent[name] = json!({});
    }
    match &mut parent[name] {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object above"),
    }
}

/// Sets `a.b.c` below `parent`; a list on the way means each of its items.
fn set(parent: &mut Value, path: &str, value: &Value) {
    if let Value::Array(items) = parent {
        return items.iter_mut().for_each(|item| set(item, path, value));
    }
    match path.split_once('.') {
        None => parent[path] = value.clone(),
        Some((first, rest)) => {
            if !parent[first].is_object() && !parent[first].is_array() {
                parent[first] = json!({});
            }
            set(&mut parent[first], rest, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "\
job: extension
config:
  name: NAME
  process:
    - type: sd_trainer
      training_folder: out
      save: {save_every: 250, max_step_saves_to_keep: 4, push_to_hub: true}
      datasets:
        - {folder_path: a, resolution: [512, 1024]}
        - {folder_path: b}
      train: {steps: 2000, lr: 1e-4, lr_scheduler: cosine, batch_size: 4}
      model: {name_or_path: krea/Krea-2-Raw, arch: krea2}
      sample: {sample_every: 250, prompts: [a fox]}
      tenggat:
        budget: 2h
        on_out_of_memory:
          - {train.batch_size: 1}
          - {datasets.resolution: [512], model.low_vram: true}
";

    fn read(text: &str) -> tenggat_job::Result<ToolkitJob> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, text).unwrap();
        ToolkitJob::read(&path, None, &|_| None)
    }

    fn session(shrink: usize) -> Session {
        Session { number: 2, from: 31, steps: 777, no_samples: shrink > 0, shrink }
    }

    #[test]
    fn the_copy_differs_where_it_must_alone() {
        let job = read(&JOB.replace("NAME", "fox")).unwrap();
        assert_eq!((job.steps, job.anneals, job.sample_every), (Some(2000), true, Some(250)));
        assert_eq!(job.folder, Path::new("out/fox"));
        let process = job.for_session(&session(0), Path::new("/x/c.db"))["config"]["process"][0].clone();
        assert_eq!(process["type"], "diffusion_trainer");
        assert_eq!(
            process["train"],
            json!({"steps": 777, "lr": 1e-4, "lr_scheduler": "cosine", "batch_size": 4})
        );
        assert_eq!(process["save"], json!({"save_every": 250, "max_step_saves_to_keep": 6}));
        assert_eq!(
            (&process["training_folder"], &process["sqlite_db_path"]),
            (&json!("out"), &json!("/x/c.db"))
        );
        assert!(process.get("tenggat").is_none() && process["model"]["arch"] == "krea2");
        assert_eq!(job.warnings.len(), 1);
    }

    #[test]
    fn memory_is_saved_entry_by_entry() {
        let job = read(&JOB.replace("NAME", "fox")).unwrap();
        let with = |n| job.for_session(&session(n), Path::new("c.db"))["config"]["process"][0].clone();
        assert_eq!(with(1)["train"]["batch_size"], 1);
        assert_eq!(
            (&with(1)["model"]["low_vram"], &with(1)["train"]["disable_sampling"]),
            (&Value::Null, &json!(true))
        );
        let both = with(2);
        assert_eq!(
            (&both["datasets"][0]["resolution"], &both["datasets"][1]["resolution"]),
            (&json!([512]), &json!([512]))
        );
        assert_eq!(both["model"]["low_vram"], true);
    }

    #[test]
    fn a_name_like_our_files_gets_a_folder_of_its_own() {
        let job = read(&JOB.replace("NAME", "last")).unwrap();
        assert_eq!((job.trainer_folder(), job.trainer_name()), (Path::new("out/last/trainer"), "trainer"));
        let tree = job.for_session(&session(0), Path::new("c.db"));
        assert_eq!(tree["config"]["name"], "trainer");
        assert_eq!(tree["config"]["process"][0]["training_folder"], "out/last");
    }

    #[test]
    fn what_may_change_is_no_part_of_the_essence() {
        let essence = |text: &str| read(text).unwrap().essence();
        let job = JOB.replace("NAME", "fox");
        assert_eq!(essence(&job), essence(&job.replace("steps: 2000", "steps: 9").replace("2h", "3h")));
        assert_ne!(essence(&job), essence(&job.replace("lr: 1e-4", "lr: 2e-4")));
    }

    #[test]
    fn what_cannot_be_driven_is_refused_with_its_place() {
        let error = read(&JOB.replace("sd_trainer", "slider")).unwrap_err().to_string();
        assert!(error.contains("job.yaml:5:13") && error.contains("`slider`"), "{error}");
        assert!(
            read(&JOB.replace("training_folder: out", "x: 1"))
                .unwrap_err()
                .to_string()
                .contains("training_folder")
        );
        assert!(read("config: {name: a, process: []}").unwrap_err().to_string().contains("one process"));
    }
}
